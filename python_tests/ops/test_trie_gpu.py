"""The CUDA kernels against the plain-PyTorch oracle. Needs only torch and pytest."""

import pytest
import torch

from crs_fast import _native
from crs_fast.ops import reference, trie_mask_, trie_step, trie_walk
from crs_fast.trie import ItemFilter, SidTrie, TrieSlot

from ..helpers import DTYPES, clear_places, random_sids, vocab_of


@pytest.mark.gpu
def test_kernels_are_built_for_this_gpu():
    """Else the reference would be compared with itself."""
    assert _native.has_cuda(torch.cuda.get_device_capability())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [90, 32_011, 300_001])
def test_cuda_kernels_equal_the_reference(dtype, vocab_size):
    sids = random_sids(0, 500, 3, 6, ragged=True)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(3, 6, end=3, begin=2).tensors()
    filters = ItemFilter.stack([trie.filter(allow=range(0, 500, 7)), None]).tensors
    codes = torch.randint(-1, 6, (128, 3))
    nodes = reference.trie_walk(trie.tensors, codes)
    on_gpu = trie.to("cuda").tensors
    assert torch.equal(trie_walk(on_gpu, codes.cuda()).cpu(), nodes)
    gpu_tokens = tokens._replace(column=tokens.column.cuda(), denied=tokens.denied.cuda())
    for chosen in (None, filters):
        logits = torch.randn(128, vocab_size).to(dtype)
        expected = reference.trie_mask(logits, nodes, trie.tensors, tokens, chosen)
        gpu_filters = None if chosen is None else type(chosen)(*(t.cuda() for t in chosen))
        got = trie_mask_(logits.cuda(), nodes.cuda(), on_gpu, gpu_tokens, gpu_filters)
        assert torch.equal(got.cpu(), expected)


def to_gpu(tensors):
    """A bundle with its tensors on the GPU."""
    moved = (t.cuda() if isinstance(t, torch.Tensor) else t for t in tensors)
    return type(tensors)(*moved)


# items, levels, codes, batch, beams, out_beams, depth: sparse and dense steps, steps with more
# candidates than a block sorts at once, leaves.
STEPS = [
    (500, 3, 6, 2, 7, 9, 1),
    (500, 3, 6, 2, 7, 9, 3),
    (20_000, 2, 300, 3, 12, 30, 1),
    (5_000, 2, 2048, 2, 1, 300, 0),
    (50_000, 4, 2048, 2, 70, 70, 2),
]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", reference.NORMALIZE)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_cuda_step_equals_the_reference(shape, ties, normalize, dtype):
    items, levels, codes, batch, beams, out_beams, depth = shape
    sids = random_sids(1, items, levels, codes, ragged=items == 500)
    trie, vocab = SidTrie.from_sids(sids), vocab_of(levels, codes)
    tokens = vocab.tensors()
    prefixes = sids[torch.randint(items, (batch * beams,))].clone()
    prefixes[:, depth:] = -1
    nodes = reference.trie_walk(trie.tensors, prefixes).view(batch, beams)
    wide = torch.randn(batch * beams, tokens.num_columns + 11).to(dtype)
    scores = torch.randn(batch, beams)
    if ties:
        wide, scores = torch.ones_like(wide), torch.zeros_like(scores)
    if beams > 2:
        nodes[0, 1], scores[-1, 0] = -1, float("-inf")
    half = trie.filter(allow=torch.randperm(items)[: items // 2])
    for filters in (None, ItemFilter.stack([half] * batch).tensors):
        expected = reference.trie_step(
            wide[:, 3:], scores, nodes, trie.tensors, tokens, out_beams, normalize, 0.8, filters
        )
        got = trie_step(
            wide.cuda()[:, 3:],
            scores.cuda(),
            nodes.cuda(),
            to_gpu(trie.tensors),
            to_gpu(tokens),
            out_beams,
            normalize,
            0.8,
            None if filters is None else to_gpu(filters),
        )
        torch.testing.assert_close(got[0].cpu(), expected[0], atol=1e-4, rtol=0)
        # Sums are taken in another order, so beams that score alike may change places.
        clear = clear_places(got[0].cpu()) | torch.isinf(expected[0]) | ties
        for mine, theirs in zip(got[1:], expected[1:], strict=True):
            assert torch.equal(mine.cpu()[clear], theirs[clear])


@pytest.mark.gpu
def test_a_recorded_step_follows_the_slot():
    small, large = (SidTrie.from_sids(random_sids(s, n, 3, 40)) for s, n in ((1, 90), (2, 4000)))
    slot = TrieSlot(5000, num_levels=3, num_codes=40, device="cuda")
    tokens = to_gpu(vocab_of(3, 40).tensors())
    logits = torch.randn(2, tokens.num_columns, device="cuda")
    scores = torch.zeros(2, 1, device="cuda")
    nodes = torch.zeros(2, 1, dtype=torch.int64, device="cuda")
    slot.load(large)
    args = (logits, scores, nodes, slot.trie.tensors, tokens, 50)
    trie_step(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = trie_step(*args)
    for trie in (small, large, small):
        slot.load(trie)
        graph.replay()
        expected = trie_step(logits, scores, nodes, trie.to("cuda").tensors, tokens, 50)
        for mine, theirs in zip(out, expected, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.gpu
def test_cuda_step_compiles_without_graph_breaks():
    trie, tokens = SidTrie.from_sids(random_sids(1, 500, 3, 6)), vocab_of(3, 6).tensors()
    args = (
        torch.randn(4, tokens.num_columns, device="cuda"),
        torch.zeros(2, 2, device="cuda"),
        torch.zeros(2, 2, dtype=torch.int64, device="cuda"),
        to_gpu(trie.tensors),
        to_gpu(tokens),
        8,
    )
    compiled = torch.compile(trie_step, fullgraph=True, backend="aot_eager")
    for mine, theirs in zip(compiled(*args), trie_step(*args), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize(("barred", "out_beams"), [(412, 150), (452, 70), (0, 300)])
def test_cuda_step_orders_ties_of_many_candidates(barred, out_beams):
    trie, tokens = SidTrie.from_sids(torch.arange(1200)[:, None]), vocab_of(1, 1200).tensors()
    filters = trie.filter(deny=torch.arange(barred)).tensors
    logits, scores = torch.zeros(1, tokens.num_columns), torch.zeros(1, 1)
    nodes = torch.zeros(1, 1, dtype=torch.int64)
    codes = trie_step(
        logits.cuda(),
        scores.cuda(),
        nodes.cuda(),
        to_gpu(trie.tensors),
        to_gpu(tokens),
        out_beams,
        filters=to_gpu(filters),
    )[3]
    assert codes.tolist() == [list(range(barred, barred + out_beams))]
