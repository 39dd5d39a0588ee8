"""The CUDA kernels against the plain-PyTorch oracle: on a GPU, and in an interpreter on any machine
with a C++ compiler. Needs only torch and pytest."""

import pytest
import torch

from crs_fast import _native
from crs_fast.ops import LEAVE, trie_mask, trie_mask_, trie_step, trie_walk
from crs_fast.ops.trie import NORMALIZE, reference
from crs_fast.trie import ItemFilter, SidTrie, TrieSlot
from python_tests.helpers import DTYPES, clear_places, random_sids, vocab_of

from .. import cuda_interpreter


@pytest.fixture(scope="session")
def interpreted(tmp_path_factory):
    if cuda_interpreter.compiler() is None:
        pytest.skip("no C++ compiler")
    return cuda_interpreter.build(tmp_path_factory.mktemp("cuda_interpreter"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where the tensors of the CUDA kernels stand: "cpu" is the interpreter's."""
    if request.param == "cpu":
        kernels = request.getfixturevalue("interpreted")
        monkeypatch.setattr(_native, "load", lambda: kernels)
    return request.param


def moved(tensors, device):
    """A bundle with its tensors on the device."""
    there = (t.to(device) if isinstance(t, torch.Tensor) else t for t in tensors)
    return type(tensors)(*there)


@pytest.mark.gpu
def test_kernels_are_built_for_this_gpu():
    """Else the reference would be compared with itself."""
    assert _native.has_cuda(torch.cuda.get_device_capability())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [90, 32_011, 300_001])
def test_cuda_kernels_equal_the_reference(dtype, vocab_size, device):
    sids = random_sids(0, 500, 3, 6, ragged=True)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(3, 6, end=3, begin=2).tensors()
    filters = ItemFilter.stack([trie.filter(allow=range(0, 500, 7)), None]).tensors
    codes = torch.randint(-1, 6, (128, 3))
    nodes = reference.trie_walk(trie.tensors, codes)
    there = moved(trie.tensors, device)
    assert torch.equal(trie_walk(there, codes.to(device)).cpu(), nodes)
    for chosen in (None, filters):
        logits = torch.randn(128, vocab_size).to(dtype)
        expected = reference.trie_mask(logits, nodes, trie.tensors, tokens, chosen)
        got = trie_mask_(
            logits.to(device, copy=True),
            nodes.to(device),
            there,
            moved(tokens, device),
            None if chosen is None else moved(chosen, device),
        )
        assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_masks_of_rows_that_differ(dtype, device):
    """Rows that are left alone, and rows that share filters, in place and not."""
    sids = random_sids(0, 500, 3, 6, ragged=True)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(3, 6, end=3, begin=2).tensors()
    filters = ItemFilter.stack([trie.filter(allow=range(n, 500, 7)) for n in range(3)]).tensors
    nodes = reference.trie_walk(trie.tensors, torch.randint(-1, 6, (128, 3)))
    nodes[::5] = LEAVE
    which = torch.randint(-1, 3, (128,))
    logits = torch.randn(128, 90).to(dtype)
    expected = reference.trie_mask(logits, nodes, trie.tensors, tokens, filters, which)
    for run in (trie_mask, trie_mask_):
        got = run(
            logits.to(device, copy=True),
            nodes.to(device),
            moved(trie.tensors, device),
            moved(tokens, device),
            moved(filters, device),
            which.to(device),
        )
        assert torch.equal(got.cpu(), expected)


# items, levels, codes, batch, beams, out_beams, depth: sparse and dense steps, more candidates than
# a block sorts at once, more children than it holds at once, leaves.
STEPS = [
    (500, 3, 6, 2, 7, 9, 1),
    (500, 3, 6, 2, 7, 9, 3),
    (20_000, 2, 300, 3, 12, 30, 1),
    (5_000, 2, 2048, 2, 1, 300, 0),
    (50_000, 4, 2048, 2, 70, 70, 2),
    (8_000, 1, 20_000, 2, 1, 300, 0),
    (8_000, 2, 4000, 1, 3, 1000, 0),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_step_takes_normalizers(dtype, device):
    sids = random_sids(1, 500, 3, 6, ragged=True)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(3, 6).tensors()
    nodes = reference.trie_walk(trie.tensors, sids[:14, :1]).view(2, 7)
    logits, scores = torch.randn(14, tokens.num_columns).to(dtype), torch.randn(2, 7)
    known = torch.randn(14) + 3
    known[5] = torch.nan  # no number: none of the row's tokens may follow
    rest = (9, "vocab", 0.8, None)
    want = reference.trie_step(logits, scores, nodes, trie.tensors, tokens, *rest, known)
    got = trie_step(
        logits.to(device), scores.to(device), nodes.to(device), moved(trie.tensors, device),
        moved(tokens, device), *rest, known.to(device),
    )  # fmt: skip
    torch.testing.assert_close(got[0].cpu(), want[0], atol=1e-5, rtol=0)
    for ours, expected_one in zip(got[1:], want[1:], strict=True):
        assert torch.equal(ours.cpu(), expected_one)


# More beams than a block's buffer lists: one row's candidates are all listed.
MANY_BEAMS = [(9_000, 2, 5000, 1, 1, 4000, 0), (60_000, 2, 600, 1, 60, 5000, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shape", STEPS, ids=str)
def test_cuda_step_equals_the_reference(shape, ties, normalize, dtype, device):
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
            wide.to(device)[:, 3:],
            scores.to(device),
            nodes.to(device),
            moved(trie.tensors, device),
            moved(tokens, device),
            out_beams,
            normalize,
            0.8,
            None if filters is None else moved(filters, device),
        )
        torch.testing.assert_close(got[0].cpu(), expected[0], atol=1e-4, rtol=0)
        # Sums are taken in another order, so beams that score alike may change places.
        clear = clear_places(got[0].cpu()) | torch.isinf(expected[0]) | ties
        for ours, expected_one in zip(got[1:], expected[1:], strict=True):
            assert torch.equal(ours.cpu()[clear], expected_one[clear])


@pytest.mark.parametrize("shape", MANY_BEAMS, ids=str)
def test_cuda_step_of_thousands_of_beams(shape, device):
    items, levels, codes, batch, beams, out_beams, depth = shape
    sids = random_sids(2, items, levels, codes)
    trie, tokens = SidTrie.from_sids(sids), vocab_of(levels, codes).tensors()
    prefixes = torch.full((batch * beams, levels), -1)
    prefixes[:, 0] = sids[:, 0].unique()[: batch * beams]
    prefixes[:, depth:] = -1
    nodes = reference.trie_walk(trie.tensors, prefixes).view(batch, beams)
    logits = 4 * torch.randn(batch * beams, tokens.num_columns)
    scores = torch.randn(batch, beams)
    args = (out_beams, "legal", 1.0)
    expected = reference.trie_step(logits, scores, nodes, trie.tensors, tokens, *args)
    got = trie_step(
        logits.to(device), scores.to(device), nodes.to(device), moved(trie.tensors, device),
        moved(tokens, device), *args,
    )  # fmt: skip
    torch.testing.assert_close(got[0].cpu(), expected[0], atol=1e-4, rtol=0)
    clear = clear_places(got[0].cpu()) | torch.isinf(expected[0])
    assert clear.float().mean() > 0.5
    for values, wanted in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(values.cpu()[clear], wanted[clear])


@pytest.mark.gpu
def test_a_recorded_step_follows_the_slot():
    small, large = (SidTrie.from_sids(random_sids(s, n, 3, 40)) for s, n in ((1, 90), (2, 4000)))
    slot = TrieSlot(5000, num_levels=3, num_codes=40, device="cuda")
    tokens = moved(vocab_of(3, 40).tensors(), "cuda")
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
        for ours, expected_one in zip(out, expected, strict=True):
            assert torch.equal(ours, expected_one)


@pytest.mark.gpu
def test_cuda_step_compiles_without_graph_breaks():
    trie, tokens = SidTrie.from_sids(random_sids(1, 500, 3, 6)), vocab_of(3, 6).tensors()
    args = (
        torch.randn(4, tokens.num_columns, device="cuda"),
        torch.zeros(2, 2, device="cuda"),
        torch.zeros(2, 2, dtype=torch.int64, device="cuda"),
        moved(trie.tensors, "cuda"),
        moved(tokens, "cuda"),
        8,
    )
    compiled = torch.compile(trie_step, fullgraph=True, backend="aot_eager")
    for ours, expected_one in zip(compiled(*args), trie_step(*args), strict=True):
        assert torch.equal(ours, expected_one)


@pytest.mark.parametrize(("barred", "out_beams"), [(412, 150), (452, 70), (0, 300)])
def test_cuda_step_orders_ties_of_many_candidates(barred, out_beams, device):
    trie, tokens = SidTrie.from_sids(torch.arange(1200)[:, None]), vocab_of(1, 1200).tensors()
    filters = trie.filter(deny=torch.arange(barred)).tensors
    logits, scores = torch.zeros(1, tokens.num_columns), torch.zeros(1, 1)
    nodes = torch.zeros(1, 1, dtype=torch.int64)
    codes = trie_step(
        logits.to(device),
        scores.to(device),
        nodes.to(device),
        moved(trie.tensors, device),
        moved(tokens, device),
        out_beams,
        filters=moved(filters, device),
    )[3]
    assert codes.tolist() == [list(range(barred, barred + out_beams))]


def test_a_node_that_the_trie_cannot_hold_leads_nowhere(device):
    """Nobody waits for a GPU to hear of an error: the row is -inf, the beam dead."""
    trie, tokens = SidTrie.from_sids(random_sids(0, 100, 3, 6, ragged=True)), vocab_of(3, 6, end=3)
    tokens = tokens.tensors()
    wrong = [-3, -(1 << 63), (1 << 63) - 1, 4 << 56 | 1 << 28, 1 << 56 | 11 << 28 | 90, 2 << 28]
    nodes = torch.tensor([0, -1, *wrong])
    logits, scores = torch.randn(nodes.numel(), 40), torch.zeros(1, nodes.numel())
    there, known = moved(trie.tensors, device), moved(tokens, device)
    expected = reference.trie_mask(logits, nodes, trie.tensors, tokens)
    got = trie_mask_(logits.to(device, copy=True), nodes.to(device), there, known)
    assert torch.equal(got.cpu(), expected)
    assert bool((expected[2:] == -torch.inf).all())
    expected = reference.trie_step(logits, scores, nodes[None], trie.tensors, tokens, 5)
    got = trie_step(
        *(t.to(device) for t in (logits, scores, nodes[None])), there, known, num_beams=5
    )
    assert torch.allclose(got[0].cpu(), expected[0], atol=1e-5)
    for part, other in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(part.cpu(), other)
    assert set(expected[2][expected[0] > -torch.inf].tolist()) == {0}
