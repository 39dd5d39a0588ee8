"""docs/reliability.md names tests that exist, and the bad-input table covers what it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/reliability.md").read_text()
# `test_file.py` or a list of them, and in parentheses the words of which a test's name has one.
NAMED = re.compile(r"((?:`[\w/]+\.py`(?:, | and )?)+)(?: \(((?:`\w+`(?:, )?)+)\))?")


def promises():
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")]
    return [(cells[1].strip(), cells[2]) for cells in rows if ".py`" in cells[2]]


def test_the_page_has_promises():
    assert len(promises()) > 25


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise[0][:40])
def test_the_tests_of_each_promise_exist(promise):
    for files, words in NAMED.findall(promise[1]):
        paths = [
            next(p for p in (ROOT / "python_tests" / name, ROOT / name) if p.is_file())
            for name in re.findall(r"`([\w/]+\.py)`", files)
        ]
        tests = {path: re.findall(r"def (test_\w+)", path.read_text()) for path in paths}
        assert all(tests.values()), promise
        for word in re.findall(r"`(\w+)`", words):
            # A case of a parametrised test is no name of a function.
            text = [name for names in tests.values() for name in names]
            text += re.findall(r'"(\w+)"', "".join(path.read_text() for path in paths))
            assert any(word in one for one in text), (promise, word)
