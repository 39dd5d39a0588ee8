"""gpu_tune.py checks that an op's designs agree, times them and names the fastest."""

import os
import time

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

from benchmarks.gpu_tune import CONTESTS, Contest, by_turns, checked, run_all, timed, winners
from crs_fast.ops.designs import Choice

CHOICE = Choice({"slow": 2e-2, "quick": 0.0, "wrong": -1.0})


def sleep(size, device):
    def run():
        time.sleep(max(CHOICE.now, 0))
        return torch.tensor(float(CHOICE.now < 0))

    return "a nap", run


def test_the_fastest_design_that_is_right_wins():
    row = timed(Contest("nap", CHOICE, sleep), "toy", "cpu", 3)
    assert list(row["median_ms"]) == ["slow", "quick"]
    assert "AssertionError" in row["failed"]["wrong"]
    assert winners([row]) == {"nap": "quick"}
    assert CHOICE.now == 2e-2  # the first is taken again


def test_a_design_that_fails_on_one_workload_is_out():
    rows = [
        {"op": "nap", "median_ms": {"slow": 2.0, "quick": 1.0}},
        {"op": "nap", "median_ms": {"slow": 2.0}},
    ]
    assert winners(rows) == {"nap": "slow"}


def test_a_workload_without_any_design_does_not_end_the_run():
    def too_large(size, device):
        raise torch.OutOfMemoryError("2 GiB more than there are")

    contests = [Contest("nap", CHOICE, too_large), Contest("nap", CHOICE, sleep)]
    rows = list(run_all(contests, "toy", "cpu", 3, 60.0))
    assert rows[0]["failed"] == {"all designs": "OutOfMemoryError: 2 GiB more than there are"}
    assert winners(rows) == {"nap": "quick"}


def test_the_first_design_that_works_is_what_others_are_compared_with():
    first = Choice({"broken": None, "slow": 2e-2, "quick": 0.0})

    def make(size, device):
        return "a nap", lambda: torch.tensor(first.now * 0)

    assert list(checked(Contest("nap", first, make), "toy", "cpu")[1]) == ["slow", "quick"]


def test_every_op_has_had_a_turn_before_one_has_its_second():
    a, b = (Contest(name, CHOICE, sleep) for name in "ab")
    assert [contest.op for contest in by_turns([a, a, a, b, b])] == ["a", "b", "a", "b", "a"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels are interpreted here")
@pytest.mark.parametrize("op", dict.fromkeys(c.op for c in CONTESTS))
def test_the_designs_of_each_op_agree(op):
    contest = next(c for c in CONTESTS if c.op == op)
    _, calls, failed = checked(contest, "toy", "cpu")
    assert list(calls) == list(contest.choice.designs), failed
