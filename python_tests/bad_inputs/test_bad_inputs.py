"""Bad arguments give clear errors or documented results, and never a crash (see `table.py`)."""

import re
from collections import Counter

import pytest

import crs_fast
from crs_fast import crs, decode, ops, quantize, trie

from . import pool
from .rows import ROWS

# Of rows whose error may be unclear.
MOST_UNCLEAR = 0.02

# Public names without rows.
NO_ROWS = {
    # results, and values and protocols that the package alone makes
    "Capability", "Evaluation", "Grammar", "Named", "Ranking", "ReadReport", "RecommendOutput",
    "Response", "SidIndex", "TurnCache", "TypedCatalogue", "Vocabulary",
    # without arguments
    "register", "show_config",
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes():
    """About 20 seconds of one core for 4,200 rows."""
    return pool.run([row.name for row in ROWS], workers=1)


def of_kind(outcomes, *kinds):
    return [f"{one.row}: {one.what}: {one.details}" for one in outcomes if one.what in kinds]


def test_the_table_covers_every_op():
    covered = {row.name.split("/")[0].split(" ")[0] for row in ROWS}
    for name in ops.__all__:
        if name[0].islower():
            assert name in covered, name
    assert len(ROWS) >= 600


def test_public_names_without_rows_are_listed():
    covered = {re.split(r"[/. ]", row.name)[0] for row in ROWS}
    public = {
        name
        for module in (crs_fast, trie, quantize, decode, crs)
        for name in module.__all__
        if callable(getattr(module, name))
    }
    assert public - covered == NO_ROWS


def test_no_row_crashes(outcomes):
    assert of_kind(outcomes, "crash") == []


def test_no_row_is_silently_wrong_or_silently_accepted(outcomes):
    assert of_kind(outcomes, "wrong", "accepted") == []


def test_what_is_right_is_not_refused(outcomes):
    assert of_kind(outcomes, "refused") == []


def test_errors_name_the_argument_and_what_it_must_be(outcomes):
    unclear = of_kind(outcomes, "unclear")
    assert len(unclear) <= MOST_UNCLEAR * len(ROWS), "\n".join(unclear)
    assert Counter(one.what for one in outcomes)["ok"] >= (1 - MOST_UNCLEAR) * len(ROWS)


def test_a_crash_is_a_row():
    """A worker that dies takes no other row with it."""
    before, after = ROWS[0].name, ROWS[1].name
    found = pool.run([before, "crash", after], workers=1)
    assert [one.what for one in found] == ["ok", "crash", "ok"]
