"""The list of runs for a rented GPU: every command is one that the experiment takes."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recommendation.arms import choose_arms
from benchmarks.recommendation.cli import _parser

SCRIPT = Path(__file__).parents[1] / "gpu_queue.sh"
FREE = ("arms", "seeds")  # what runs of one folder may differ in


def call(*arguments, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("size", [[], ["--tiny"]])
def test_every_command_is_understood(size):
    shown = call("--dry-run", *size)
    assert shown.returncode == 0, shown.stderr
    lines = [shlex.split(line) for line in shown.stdout.splitlines()]
    assert len(lines) == len({tuple(line) for line in lines}) > 15
    folders: dict[str, dict] = {}
    for program, flag, module, *arguments in lines:
        assert (program, flag, module) == ("python3", "-m", "benchmarks.recommendation")
        args = vars(_parser().parse_args(arguments))
        assert choose_arms(args["arms"])
        assert args["model"] == ("tiny" if size else "smollm2")
        settings = {name: value for name, value in args.items() if name not in FREE}
        assert folders.setdefault(args["out"], settings) == settings
        assert args["data"] == Path(args["out"]).name.partition("_")[0]


# In place of an experiment: it notes that 5e-4 is the best rate.
EXPERIMENT = f"""#!/bin/bash
[ "$1" = -m ] || exec {sys.executable} "$@"
while [ "$1" != --out ]; do shift; done
case "$2" in *_5e-4) recall=0.3 ;; *) recall=0.1 ;; esac
echo '{{"recommendation": {{"paper": {{"gcrs": {{"recall@10": '$recall'}}}}}}}}' >"$2/results.json"
"""


def test_the_rest_is_trained_at_the_best_rate_of_the_same_call(tmp_path):
    (tmp_path / "python3").write_text(EXPERIMENT)
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    shown = call("--tiny", "--out", str(tmp_path / "out"), PATH=path)
    assert shown.returncode == 0, shown.stderr
    assert "the list is done" in shown.stdout
    folders = {folder.name for folder in (tmp_path / "out").iterdir()} - {"done"}
    rates = {f"redial_valid_{rate}" for rate in ("1e-3", "5e-4", "2e-3")}
    assert folders == {*rates, "redial_5e-4", "inspired"}


def test_bad_arguments():
    unknown = call("--fast")
    assert unknown.returncode == 2
    assert "unknown argument --fast" in unknown.stderr
    assert call("--dry-run", "--minutes", "soon").returncode == 2


def test_merge_needs_tables(tmp_path):
    nothing = call("merge", "--out", str(tmp_path))
    assert nothing.returncode == 1
    assert "holds no results.md" in nothing.stderr
