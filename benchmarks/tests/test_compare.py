"""`run.py --base`: which rows are compared, and what is called slower."""

import argparse

import pytest

from benchmarks import compare

RUN = """
import json, sys
assert sys.argv[1:] == ["walk", "--size", "toy", "--device", "cpu", "--repeats", "3"]
print("a table")
print(json.dumps({result}))
"""


def tree(folder, result):
    """A source tree whose run.py prints this."""
    run = folder / "benchmarks" / "run.py"
    run.parent.mkdir(parents=True)
    run.write_text(RUN.format(result=repr(result)))
    return folder


def result(name, **medians):
    rows = [
        {"case": "walk", name: method, "workload": "prefixes", "median_ms": ms}
        for method, ms in medians.items()
    ]
    return {"rows": rows, "failed": {}}


def compared(monkeypatch, tmp_path, base, head):
    monkeypatch.setattr(compare, "ROOT", tree(tmp_path / "head", head))
    arguments = argparse.Namespace(size="toy", device="cpu", repeats=3, rounds=3)
    outcome = {"ratios": [], "failed": {}, "missing": {}}
    compare._compare_case("walk", tree(tmp_path / "base", base), arguments, outcome)
    return outcome


def test_rows_are_matched_by_name_whatever_the_base_calls_them(monkeypatch, tmp_path, capsys):
    base = result("way", same=2.0, removed=1.0)
    head = result("method", same=3.0, new=1.0)
    outcome = compared(monkeypatch, tmp_path, base, head)
    (ratio,) = outcome["ratios"]
    assert (ratio["method"], ratio["ratio"], ratio["verdict"]) == ("same", 1.5, "slower")
    assert (ratio["base_ms"], ratio["head_ms"]) == ([2.0] * 3, [3.0] * 3)
    assert outcome["missing"] == {"walk, removed": "head", "walk, new": "base"}
    assert "x1.500 [1.500, 1.500]  slower" in capsys.readouterr().out


def test_a_case_that_fails_on_one_side_is_named(monkeypatch, tmp_path):
    base = {"rows": [], "failed": {"walk": "AssertionError: the methods disagree"}}
    outcome = compared(monkeypatch, tmp_path, base, result("method", same=1.0))
    assert outcome["failed"] == {"walk": "base: AssertionError: the methods disagree"}
    assert not outcome["ratios"]


def test_a_run_without_json_gives_its_last_error_line(tmp_path):
    script = tmp_path / "benchmarks" / "run.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit('run.py: error: no case')")
    arguments = argparse.Namespace(size="toy", device="cpu", repeats=3)
    assert compare._run_case(tmp_path, "walk", arguments) == ([], "run.py: error: no case")


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.1, 1.2, 1.3], "slower"),
        ([1.1, 0.99, 1.3], "no clear difference"),
        ([1.01, 1.02, 1.01], "no clear difference"),
        ([0.9, 0.8, 0.7], "faster"),
        ([1.5, 1.5], "too few rounds to tell"),
    ],
)
def test_a_difference_must_show_in_every_round(ratios, expected):
    assert compare.verdict(ratios) == expected


def test_a_base_that_is_no_commit_is_refused(capsys):
    arguments = argparse.Namespace(device="cpu")
    assert compare.against("no-such-commit", [], arguments) == 2
    assert "--base must be a commit (got 'no-such-commit')" in capsys.readouterr().err


def test_a_tree_is_run_with_its_own_package(tmp_path):
    (tmp_path / "crs_fast.py").write_text("name = 'that of the tree'")
    done = compare._python(tmp_path, "-c", "import crs_fast; print(crs_fast.name)")
    assert done.stdout == "that of the tree\n"
