"""The list of runs for a rented GPU: every command is one that the experiment takes."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.recommendation import reply_decoding
from benchmarks.recommendation.arms import choose_arms
from benchmarks.recommendation.cli import _parser

SCRIPT = Path(__file__).parents[1] / "gpu_queue.sh"
FREE = ("arms", "seeds")  # what runs of one folder may differ in


def call(*arguments, script=SCRIPT, **environment):
    return subprocess.run(
        ["bash", str(script), *arguments],
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
        if module == "benchmarks.recommendation.reply_decoding":
            args = vars(reply_decoding.argument_parser().parse_args(arguments))
            assert all(map(reply_decoding.Decoding.parse, args["decoding"]))
            assert folders[str(args["out"])]["keep_models"]
            continue
        assert (program, flag, module) == ("python3", "-m", "benchmarks.recommendation")
        args = vars(_parser().parse_args(arguments))
        assert choose_arms(args["arms"])
        assert Path(args["model"]).name == ("tiny" if size else "smollm2")
        settings = {name: value for name, value in args.items() if name not in FREE}
        assert folders.setdefault(args["out"], settings) == settings
        assert args["data"] == Path(args["out"]).name.partition("_")[0]


# In place of an experiment: it notes that 5e-4 is the best rate. A run of the methods $ENDLESS is
# always cut off, and SmolLM2 is unpacked as a folder without a model.
EXPERIMENT = f"""#!/bin/bash
case "$2" in */smollm2) mkdir -p "$2" && echo once >>"$2/unpacked"; exit ;; esac
[ "$1" = -m ] || exec {sys.executable} "$@"
case "$*" in *"--methods $ENDLESS "*) exit 124 ;; esac
while [ "$1" != --out ]; do shift; done
case "$2" in *_5e-4) recall=0.3 ;; *) recall=0.1 ;; esac
echo '{{"recommendation": {{"paper": {{"gcrs": {{"recall@10": '$recall'}}}}}}}}' >"$2/results.json"
"""


@pytest.fixture
def path(tmp_path):
    """The search path on which the experiment stands in for Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python3").write_text(EXPERIMENT)
    (folder / "python3").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("size", [[], ["--tiny"]])
def test_the_rest_is_trained_at_the_best_rate_of_the_same_call(size, path, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):  # the second call goes on
        shown = call(*size, "--out", str(out), PATH=path)
        assert shown.returncode == 0, shown.stderr
    assert "the list is done" in shown.stdout
    folders = {folder.name for folder in out.iterdir()} - {"done", "prepared"}
    rates = {f"redial_valid_{rate}" for rate in ("1e-3", "5e-4", "2e-3")}
    assert folders == {*rates, "redial_5e-4", "redial_replies", "inspired"}
    if not size:
        assert (out / "prepared" / "smollm2" / "unpacked").read_text() == "once\n"


def test_a_run_that_is_always_cut_off_stops_no_other(path, tmp_path):
    shown = call("--tiny", "--out", str(tmp_path / "out"), PATH=path, ENDLESS="titles")
    assert shown.returncode == 1
    lines = shown.stdout.splitlines()
    assert sum("status 124" in line for line in lines) == 4
    assert "cut off 4 times: redial_5e-4 " in shown.stderr
    assert len(list((tmp_path / "out" / "done").iterdir())) == len(lines) - 4 - 1
    again = call("--tiny", "--out", str(tmp_path / "out"), PATH=path)
    assert again.returncode == 0
    assert len(again.stdout.splitlines()) == 1 + 1  # the one that was left, and the end


def test_merge_copies_the_tables(tmp_path):
    results = tmp_path / "benchmarks" / "recommendation" / "results"
    results.mkdir(parents=True)
    shutil.copy(SCRIPT, results.parent)
    (tmp_path / "out" / "inspired").mkdir(parents=True)
    (tmp_path / "out" / "inspired" / "results.md").write_text("a table")
    (tmp_path / "out" / "inspired" / "decodings.md").write_text("another")
    copied = call("merge", "--out", str(tmp_path / "out"), script=results.parent / SCRIPT.name)
    assert copied.returncode == 0, copied.stderr
    assert (results / "inspired_queue.md").read_text() == "a table"
    assert (results / "inspired_decodings_queue.md").read_text() == "another"
    assert len(list(results.iterdir())) == 2


def test_bad_arguments():
    unknown = call("--fast")
    assert unknown.returncode == 2
    assert "unknown argument --fast" in unknown.stderr
    assert call("--dry-run", "--minutes", "soon").returncode == 2


def test_merge_needs_tables(tmp_path):
    nothing = call("merge", "--out", str(tmp_path))
    assert nothing.returncode == 1
    assert "holds no results.md" in nothing.stderr
