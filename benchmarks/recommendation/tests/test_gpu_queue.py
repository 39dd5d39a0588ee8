"""The list of runs for a lent GPU: every command is one that the experiment takes."""

import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks.recommendation.arms import choose_arms
from benchmarks.recommendation.cli import _parser

SCRIPT = Path(__file__).parents[1] / "gpu_queue.sh"
FREE = ("arms", "seeds")  # what runs of one folder may differ in


def call(*arguments):
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], check=False, capture_output=True, text=True
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


def test_bad_arguments():
    unknown = call("--fast")
    assert unknown.returncode == 2
    assert "unknown argument --fast" in unknown.stderr
    assert call("--dry-run", "--minutes", "soon").returncode == 2


def test_merge_needs_tables(tmp_path):
    nothing = call("merge", "--out", str(tmp_path))
    assert nothing.returncode == 1
    assert "holds no results.md" in nothing.stderr
