"""Memory that runs out is an exception, at every allocation and in every thread."""

import subprocess

import pytest

from . import build, compiler


@pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
def test_memory_that_runs_out_is_an_exception(tmp_path):
    """As SQLite does it: the n-th allocation fails, for every n. The 15 seconds are the compiler's;
    a race of the same program is looked for by benchmarks/sanitize.sh."""
    done = subprocess.run([build(tmp_path), "memory"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an exception each time" in done.stdout
