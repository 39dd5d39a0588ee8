"""Each example of docs/examples runs by its one command and is short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.py"))


def run(name, *arguments):
    """What an example prints."""
    path = str(ROOT / "docs" / "examples" / name)
    done = subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.data
def test_minionerec(data_root):
    """A popularity ranking reaches 0.089 at ten."""
    out = run("minionerec.py", data_root / "minionerec_industrial")
    recall = {int(k): float(share) for k, share in re.findall(r"recall@(\d+) ([0-9.]+)", out)}
    assert recall.keys() == {1, 10, 50}
    assert recall[10] > 0.1
