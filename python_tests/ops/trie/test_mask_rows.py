"""Masks of batches whose rows differ: rows left alone, and rows that share filters."""

import pytest
import torch

from crs_fast import _native
from crs_fast.ops import LEAVE, token_tensors, trie_mask, trie_mask_, trie_walk
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import DTYPES, random_sids, vocab_of

V = 90


def catalogue():
    trie = SidTrie.from_sids(random_sids(0, 40, 3, 6))
    return trie, vocab_of(3, 6, end=3).tensors()


def some_nodes(trie):
    """The root, an inner node, a leaf, free text, and a row to leave alone."""
    first = trie.sids()[0].tolist()
    prefixes = [[-1, -1, -1], [first[0], -1, -1], first]
    nodes = trie_walk(trie.tensors, torch.tensor(prefixes))
    return torch.cat([nodes, torch.tensor([-1, LEAVE])])


@pytest.fixture(params=["native", "reference"])
def backend(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(_native, "load", lambda: None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_left_alone(backend, dtype):
    trie, tokens = catalogue()
    nodes = some_nodes(trie)
    logits = torch.randn(5, V).to(dtype)
    logits[4, 7] = -torch.inf
    expected = logits.clone()
    expected[:4] = trie_mask(logits[:4], nodes[:4], trie.tensors, tokens)
    assert torch.equal(trie_mask(logits, nodes, trie.tensors, tokens), expected)
    trie_mask_(logits, nodes, trie.tensors, tokens)
    assert torch.equal(logits, expected)


def test_rows_share_filters(backend):
    """Each row as if it were alone with its own bitmap; -1 takes none."""
    trie, tokens = catalogue()
    items = range(0, 40, 7)
    filters = ItemFilter.stack([trie.filter(allow=items), trie.filter(deny=items)]).tensors
    nodes = some_nodes(trie).repeat(4)
    filter_of_row = torch.arange(len(nodes)) % 3 - 1
    logits = torch.randn(len(nodes), V)
    got = trie_mask(logits, nodes, trie.tensors, tokens, filters, filter_of_row)
    for row, which in enumerate(filter_of_row.tolist()):
        own = None if which < 0 else type(filters)(*(t[which : which + 1] for t in filters))
        alone = trie_mask(logits[row : row + 1], nodes[row : row + 1], trie.tensors, tokens, own)
        assert torch.equal(got[row : row + 1], alone), row
    trie_mask_(logits, nodes, trie.tensors, tokens, filters, filter_of_row)
    assert torch.equal(logits, got)


def test_filters_of_rows_that_do_not_fit(backend):
    trie, tokens = catalogue()
    filters = trie.filter(allow=[0]).tensors
    logits, nodes = torch.zeros(3, V), torch.zeros(3, dtype=torch.int64)
    for bad, message in (
        (torch.tensor([0, 0]), "one entry per row of logits, 3"),
        (torch.tensor([0, 0, 0], dtype=torch.int32), "filter_of_row must be int64"),
        (torch.tensor([0, 1, 0]), r"filter_of_row must lie in -1 \.\. 0 \(got 0 \.\. 1\)"),
        (torch.tensor([0, -2, 0]), r"filter_of_row must lie in -1 \.\. 0 \(got -2 \.\. 0\)"),
    ):
        with pytest.raises(ValueError, match=f"trie_mask: .*{message}"):
            trie_mask(logits, nodes, trie.tensors, tokens, filters, bad)
    with pytest.raises(ValueError, match="filters must be given beside filter_of_row"):
        trie_mask(logits, nodes, trie.tensors, tokens, None, torch.tensor([0, 0, 0]))
    assert bool((logits == 0).all())


def test_masks_that_differ_by_row_are_traced_whole():
    trie, tokens = catalogue()
    filters = ItemFilter.stack([trie.filter(allow=[0, 5]), None]).tensors

    def run(logits, nodes, filter_of_row):
        return trie_mask(logits, nodes, trie.tensors, tokens, filters, filter_of_row)

    args = (torch.randn(5, V), some_nodes(trie), torch.tensor([1, 0, 0, -1, 1]))
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), run(*args))


def test_a_large_mask_into_a_new_tensor():
    """Large outputs take another kind of memory pages."""
    trie = SidTrie.from_sids([[0], [3]])
    tokens = token_tensors([[5, -1, -1, 1 << 19]])
    logits = torch.randn(5, (1 << 19) + 3)
    nodes = torch.tensor([0, -1, 0, LEAVE, 0])
    expected = torch.full_like(logits, -torch.inf)
    expected[:, [5, 1 << 19]] = logits[:, [5, 1 << 19]]
    expected[[1, 3]] = logits[[1, 3]]
    assert torch.equal(trie_mask(logits, nodes, trie.tensors, tokens), expected)
