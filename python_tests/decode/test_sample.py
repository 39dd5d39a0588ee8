"""Sampling behind one prefill: the model's own distribution over the catalogue."""

import itertools

import pytest
import torch

from crs_fast.decode.sample import sample
from crs_fast.ops import trie_logprob
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import tiny_model

from .test_recommend import VOCAB, make_vocab, prompts


def own_logprobs(model, vocab, trie, ids, mask, sids, temperature, filters=None):
    """By plain forward passes over each sample's whole sequence."""
    out = []
    for row, kept, of_row in zip(ids, mask.bool(), sids, strict=True):
        for sid in of_row:
            tokens = vocab.encode(sid)
            logits = model(torch.cat([row[kept], tokens])[None]).logits[0, -len(tokens) - 1 : -1]
            out.append(logits)
    return trie_logprob(
        torch.stack(out), sids.flatten(0, 1), trie.tensors, vocab.tensors(), temperature, filters
    ).view(sids.shape)


@pytest.mark.parametrize("filtered", [False, True])
@torch.no_grad()
def test_samples_and_their_logprobs(filtered):
    model, vocab = tiny_model("llama", VOCAB), make_vocab(3, 5)
    trie = SidTrie.from_sids(list(itertools.product(range(3), range(2), range(4))))
    ids, mask = prompts((5, 3))
    filters = None
    if filtered:
        filters = ItemFilter.stack([trie.filter(allow=range(0, 24, 3)), None])
    torch.manual_seed(0)
    drawn = sample(
        model, ids, mask, trie=trie, vocab=vocab, num_samples=40, temperature=1.3, filters=filters
    )
    assert torch.equal(vocab.encode(drawn.sids), drawn.tokens)
    assert all(trie.items(drawn.sids.flatten(0, 1)))
    if filtered:
        named = {item for items in trie.items(drawn.sids[0]) for item in items}
        assert named <= set(range(0, 24, 3))
    bitmaps = None if filters is None else filters.tensors
    expected = own_logprobs(model, vocab, trie, ids, mask, drawn.sids, 1.3, bitmaps)
    torch.testing.assert_close(drawn.logprobs, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_frequencies_are_the_probabilities():
    model, vocab = tiny_model("llama", VOCAB), make_vocab(2, 5)
    trie = SidTrie.from_sids([[0, 0], [0, 3], [2, 1], [4, 4]])
    ids, mask = prompts((4,))
    torch.manual_seed(1)
    drawn = sample(model, ids, mask, trie=trie, vocab=vocab, num_samples=4000, temperature=4.0)
    share = torch.bincount(torch.tensor([i for (i,) in trie.items(drawn.sids[0])]), minlength=4)
    sids = trie.sids()[None]
    expected = own_logprobs(model, vocab, trie, ids, mask, sids, 4.0).sum(2).exp()[0]
    torch.testing.assert_close(share / 4000, expected, atol=0.03, rtol=0)


def test_refusals():
    model, vocab, (ids, mask) = tiny_model("llama", VOCAB), make_vocab(2, 5), prompts((4,))
    grid = SidTrie.from_sids([[0, 1], [1, 0]])
    with pytest.raises(ValueError, match="SIDs of one length"):
        sample(model, ids, mask, trie=SidTrie.from_sids([[0], [1, 0]]), vocab=vocab)
    with pytest.raises(ValueError, match="every filter must allow an item"):
        sample(model, ids, mask, trie=grid, vocab=vocab, filters=grid.filter(allow=[]))
    with pytest.raises(ValueError, match="must be able to hold a token tree"):
        sample(tiny_model("bloom", VOCAB), ids, mask, trie=grid, vocab=vocab)
