"""Contents that kernels follow are checked once, and nodes in every call."""

import copy
import gc

import pytest
import torch

from crs_fast import _native
from crs_fast.ops import trie_mask, trie_step, trie_walk
from crs_fast.ops.trie import checks, contents
from crs_fast.ops.trie.tensors import TrieTensors
from crs_fast.trie import SidTrie, TrieSlot
from python_tests.helpers import random_sids, vocab_of

LEVELS, CODES = 3, 6
TRIE = SidTrie.from_sids(random_sids(0, 100, LEVELS, CODES, ragged=True))
TOKENS = vocab_of(LEVELS, CODES, end=3).tensors()


def of(depth, begin, end):
    return depth << 56 | (end - begin) << 28 | begin


WRONG = [-3, -(1 << 63), (1 << 63) - 1, of(LEVELS + 1, 0, 1), of(1, 90, 101), of(0, 3, 5)]


@pytest.fixture
def count(monkeypatch):
    """How often the contents of a trie were looked at."""
    calls = []

    def counted(trie):
        calls.append(trie)
        return contents.trie_problem(trie)

    monkeypatch.setattr(checks, "trie_problem", counted)
    return calls


def test_what_the_package_built_is_never_looked_at(count, tmp_path):
    TRIE.save(tmp_path / "trie")
    slot = TrieSlot(200, num_levels=LEVELS, num_codes=CODES)
    changed = TRIE.add([[1, 2, 3]], [1000]).remove([3])
    for trie in (TRIE, changed, SidTrie.load(tmp_path / "trie"), slot.load(TRIE)):
        trie_walk(trie.tensors, torch.tensor([[1, 2]]))
        trie.filter(allow=[5])
        trie.sids()
    assert not count


def test_what_a_caller_built_is_looked_at_once_and_again_after_a_change(count):
    trie = TrieTensors(*(tensor.clone() for tensor in TRIE.tensors))
    for _ in range(3):
        trie_walk(trie, torch.tensor([[1, 2]]))
        torch.ops.crs_fast.trie_walk(*trie, torch.tensor([[1, 2]]))
    assert len(count) == 1
    trie.codes[0] += 0
    trie_walk(trie, torch.tensor([[1, 2]]))
    assert len(count) == 2
    trie.codes.fill_(200)
    with pytest.raises(ValueError, match="trie_walk: the trie's tensors must agree"):
        trie_walk(trie, torch.tensor([[1, 2]]))


def test_tensors_that_are_gone_are_forgotten():
    gc.collect()  # what earlier tests left
    before = len(checks.TRIES._entries)
    for _ in range(5):
        trie_walk(copy.deepcopy(TRIE.tensors), torch.tensor([[1, 2]]))
    assert len(checks.TRIES._entries) == before


def test_what_a_slot_s_trie_uses_is_a_trie():
    slot = TrieSlot(5000, num_levels=LEVELS, num_codes=CODES)
    used = slot.load(TRIE).tensors.used()
    paths = TRIE.sids()
    assert torch.equal(trie_walk(used, paths), trie_walk(TRIE.tensors, paths))


@pytest.mark.parametrize("has_native", [True, False])
@pytest.mark.parametrize("node", WRONG)
def test_nodes_that_the_trie_cannot_hold_are_refused_in_the_same_words(
    node, has_native, monkeypatch
):
    if not has_native:
        monkeypatch.setattr(_native, "load", lambda: None)
    nodes, logits = torch.tensor([0, -1, node]), torch.randn(3, 40)
    before = logits.clone()
    for op in (trie_mask, torch.ops.crs_fast.trie_mask):
        spread = (*TRIE.tensors, *TOKENS, None, None)
        arguments = (TRIE.tensors, TOKENS) if op is trie_mask else spread
        with pytest.raises(ValueError, match="trie_mask: nodes must be -1, -2 or nodes of"):
            op(logits, nodes, *arguments)
    assert torch.equal(logits, before)
    with pytest.raises(ValueError, match=rf"trie_step: nodes must be .*\(got {node}"):
        trie_step(logits, torch.zeros(1, 3), nodes[None], TRIE.tensors, TOKENS, 4)
