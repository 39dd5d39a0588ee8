"""trie_logprob: SIDs' log-probs under the constraint, and their gradient."""

import itertools

import pytest
import torch

from crs_fast.ops import token_tensors, trie_logprob
from crs_fast.ops.trie import reference
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import CASES, DTYPES, BruteForce, random_sids, vocab_of

CODES, VOCAB = 6, 40


def tried(trie, rows=60, seed=0):
    """Random codes and all SIDs of the catalogue, and logits for them."""
    generator = torch.Generator().manual_seed(seed)
    sids = torch.cat([trie.sids(), random_sids(seed, rows, trie.num_levels, CODES, ragged=True)])
    return sids, torch.randn(len(sids), trie.num_levels, VOCAB, generator=generator) * 3


def enumerated(oracle, vocab, sid, logits, temperature):
    """One SID's log-probs, from all that may follow each of its prefixes."""
    out, prefix = [], ()
    for level, code in enumerate(sid):
        following = oracle.next_codes(prefix) - {-1} if prefix is not None else set()
        if prefix is None or code < 0:
            out.append(0.0)
            prefix = None
        elif code not in following:
            out.append(float("-inf"))
            prefix = None
        else:
            pool = vocab.token_ids[level][sorted(following)]
            scaled = logits[level].double() / temperature
            out.append(float(scaled[vocab.token_ids[level][code]] - scaled[pool].logsumexp(0)))
            prefix = (*prefix, code)
    return out


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("name", "rows"), CASES, ids=[name for name, _ in CASES])
def test_against_enumeration(name, rows, filtered):
    trie = SidTrie.from_sids(rows)
    vocab = vocab_of(trie.num_levels, CODES, end=3)
    allowed = range(0, len(rows), 2) if filtered else None
    filters = trie.filter(allow=list(allowed)).tensors if filtered else None
    oracle = BruteForce(rows, allowed)
    sids, logits = tried(trie)
    got = trie_logprob(logits, sids, trie.tensors, vocab.tensors(), 0.7, filters)
    assert got.dtype == torch.float32
    expected = [
        enumerated(oracle, vocab, sid, of_row, 0.7)
        for sid, of_row in zip(sids.tolist(), logits, strict=True)
    ]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-5, rtol=1e-5)
    plain = reference.trie_logprob(logits, sids, trie.tensors, vocab.tensors(), 0.7, filters)
    torch.testing.assert_close(plain, got, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_the_references(dtype):
    trie = SidTrie.from_sids(random_sids(3, 40, 3, CODES))
    vocab = vocab_of(3, CODES)
    filters = ItemFilter.stack([trie.filter(deny=[0, 5]), None]).tensors
    sids, logits = tried(trie)
    grads = []
    for op in (trie_logprob, reference.trie_logprob):
        leaf = logits.to(dtype).requires_grad_()
        values = op(leaf, sids, trie.tensors, vocab.tensors(), 1.0, filters)
        finite = torch.isfinite(values)
        assert finite.any(1).all()
        (values[finite] * torch.arange(int(finite.sum()))).sum().backward()
        grads.append(leaf.grad)
    assert torch.isfinite(grads[0]).all()
    torch.testing.assert_close(*grads, atol=1e-3, rtol=1e-2 if dtype != torch.float32 else 1e-4)
    # The whole sum, of which some terms are -inf, has a gradient without NaN as well.
    leaf = logits.requires_grad_()
    trie_logprob(leaf, sids, trie.tensors, vocab.tensors()).sum().backward()
    assert torch.isfinite(leaf.grad).all()


def test_probabilities_of_all_sids_add_up_to_one():
    rows = list(itertools.product(range(3), range(4)))
    trie, vocab = SidTrie.from_sids(rows), vocab_of(2, 5)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(VOCAB, generator=generator),
        torch.randn(3, VOCAB, generator=generator),
    )
    logits = torch.stack([torch.stack([first, second[a]]) for a, _ in rows])
    sums = trie_logprob(logits, torch.tensor(rows), trie.tensors, vocab.tensors()).sum(1)
    torch.testing.assert_close(sums.exp().sum(), torch.tensor(1.0))


def test_compiles_whole():
    trie = SidTrie.from_sids(random_sids(3, 40, 3, CODES))
    sids, logits = tried(trie, rows=4)
    call = torch.compile(trie_logprob, fullgraph=True, backend="aot_eager")
    tokens = vocab_of(3, CODES).tensors()
    expected = trie_logprob(logits, sids, trie.tensors, tokens)
    torch.testing.assert_close(call(logits, sids, trie.tensors, tokens), expected)


def test_refusals():
    trie = SidTrie.from_sids([[0, 1], [1, 0]])
    tokens, sids, logits = vocab_of(2, 3).tensors(), torch.zeros(3, 2).long(), torch.zeros(3, 2, 20)
    for args, kwargs, message in [
        ((logits.double(), sids), {}, r"logits must be float32.*\(got float64\)"),
        ((logits, sids.int()), {}, r"sids must be int64 \(got int32\)"),
        ((logits, sids[:2]), {}, r"sids must be \[R, L\] of logits"),
        ((logits.repeat(1, 2, 1), sids.repeat(1, 2)), {}, "at most 2 levels"),
        ((logits, sids), dict(temperature=0.0), "temperature must be above 0"),
        ((logits[..., :5], sids), {}, "trie_logprob: logits must have"),
    ]:
        with pytest.raises(ValueError, match=message):
            trie_logprob(*args, trie.tensors, tokens, **kwargs)


def test_token_tensors():
    tokens = token_tensors([[5, 6, 7], [9, -1]], terminator=11, denied=[5, 6])
    assert tokens.column.tolist() == [[5, 6, 7], [9, -1, -1]]
    assert (tokens.denied.tolist(), tokens.terminator, tokens.num_columns) == ([5, 6], 11, 12)
    vocab = vocab_of(3, 4, end=2)
    same = token_tensors(vocab.token_ids, 2, [*vocab.code_tokens().tolist(), 2])
    for a, b in zip(same, vocab.tensors(), strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    for bad in ([], [[]], [[-2]]):
        with pytest.raises(ValueError, match="token_tensors: "):
            token_tensors(bad)
