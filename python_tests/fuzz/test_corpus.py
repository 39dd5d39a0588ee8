"""What fuzzing found, and small files of every kind, again (`benchmarks/fuzz.py` finds more)."""

from pathlib import Path

import pytest

from .files import DIALOGUE_KINDS, INDEX_KINDS, seeds
from .targets import ROUTES, TARGETS, dialogues

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_the_kept_corpus(target, tmp_path):
    kept = sorted((CORPUS / target).iterdir())
    assert kept
    for content in [*seeds(target, tmp_path), *(path.read_bytes() for path in kept)]:
        TARGETS[target](content)


def test_there_is_a_seed_for_every_kind(tmp_path):
    kinds = {"dialogues": DIALOGUE_KINDS, "index": INDEX_KINDS, "http": ROUTES}
    for target, expected in kinds.items():
        assert [seed[0] for seed in seeds(target, tmp_path)] == list(range(len(expected)))


def test_a_fault_is_said():
    """An error of another kind, or one that does not say who speaks, is a finding."""
    with pytest.MonkeyPatch.context() as patch:
        for error in (KeyError("x"), ValueError("invalid literal")):

            def fail(*_, error=error):
                raise error

            patch.setattr("python_tests.fuzz.targets.load_dataset", fail)
            with pytest.raises(type(error)):
                dialogues(b"\0{}")
