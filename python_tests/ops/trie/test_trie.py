"""The native trie ops against full enumeration and against the plain-PyTorch oracle."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_fast import _native
from crs_fast.ops import (
    FilterTensors,
    TokenTensors,
    trie_build,
    trie_mask,
    trie_mask_,
    trie_rows,
    trie_step,
    trie_walk,
)
from crs_fast.ops.trie import nodes as trie_nodes
from crs_fast.ops.trie import reference
from crs_fast.trie import ItemFilter, SidTrie
from python_tests.helpers import CASES, DTYPES, BruteForce, clear_places, random_sids, vocab_of

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-5, torch.float16: 1e-5}


def walk_all(trie: SidTrie, prefixes) -> torch.Tensor:
    codes = torch.full((len(prefixes), trie.num_levels), -1)
    for row, prefix in enumerate(prefixes):
        codes[row, : len(prefix)] = torch.tensor(prefix, dtype=torch.int64)
    return trie_walk(trie.tensors, codes)


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_walk_finds_exactly_the_prefixes(name, sids):
    trie, oracle = SidTrie.from_sids(sids), BruteForce(sids)
    tried = [p for n in range(trie.num_levels + 1) for p in itertools.product(range(6), repeat=n)]
    nodes = walk_all(trie, tried)
    assert [bool(n >= 0) for n in nodes] == [oracle.is_prefix(p) for p in tried]
    reached = nodes[nodes >= 0]
    assert reached.unique().numel() == reached.numel()


@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_nodes_cover_their_items(name, sids):
    trie = SidTrie.from_sids(sids)
    ordered = BruteForce(trie.sids()).sids
    assert ordered == sorted(BruteForce(sids).sids)
    prefixes = sorted(BruteForce(sids).prefixes(), key=len)
    nodes = walk_all(trie, prefixes)
    depth, begin, end = trie_nodes.unpack(trie.tensors, nodes)
    assert depth.tolist() == [len(p) for p in prefixes]
    for prefix, first, last in zip(prefixes, begin.tolist(), end.tolist(), strict=True):
        below = [i for i, sid in enumerate(ordered) if sid[: len(prefix)] == prefix]
        assert below == list(range(first, last))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_mask_leaves_exactly_the_legal_tokens(name, sids, filtered, dtype):
    trie, terminator = SidTrie.from_sids(sids), 3
    vocab = vocab_of(trie.num_levels, 6, end=terminator)
    prefixes = sorted(BruteForce(sids).prefixes(), key=len)
    rows = [*prefixes, None]  # None: outside a SID
    nodes = torch.cat([walk_all(trie, prefixes), torch.tensor([-1])])
    allow = list(range(0, len(sids), 2))
    oracle = BruteForce(sids, allow if filtered else None)
    filters = trie.filter(allow=allow).tensors if filtered else None
    wide = torch.randn(len(rows), 101).to(dtype)
    logits = wide[:, :90]  # rows 101 apart
    expected_rest = wide[:, 90:].clone()
    before = logits.clone()
    tokens = vocab.tensors()
    out = trie_mask_(logits, nodes, trie.tensors, tokens, filters)
    assert out is logits
    codes = vocab.code_tokens().tolist()
    for row, prefix in enumerate(rows):
        if prefix is None:
            legal = set(range(90)) - set(codes) - {terminator}
        else:
            follow = oracle.next_codes(prefix) or {-1}
            legal = {
                terminator if c == -1 else int(vocab.token_ids[len(prefix)][c]) for c in follow
            }
        kept = (logits[row] > float("-inf")).nonzero().flatten().tolist()
        assert set(kept) == legal, prefix
        assert torch.equal(logits[row, kept], before[row, kept])
    assert torch.equal(wide[:, 90:], expected_rest)
    assert torch.equal(logits, reference.trie_mask(before, nodes, trie.tensors, tokens, filters))


def brute_step(sids, allowed, logits, scores, prefixes, vocab, num_beams, normalize, temperature):
    """Beam step over tuples: [(score, parent, code)] per request, best first."""
    logits, out = logits.double() / temperature, []
    for b in range(scores.shape[0]):
        oracle, found = BruteForce(sids, allowed[b]), []
        for m, prefix in enumerate(prefixes[b]):
            row, score = logits[b * scores.shape[1] + m], float(scores[b, m])
            if prefix is None or score == float("-inf"):
                continue
            codes = sorted(oracle.next_codes(prefix))
            table = vocab.token_ids[min(len(prefix), vocab.num_levels - 1)]
            legal = [int(table[c]) for c in codes if c >= 0]
            pool = {"vocab": slice(None), "level": table, "legal": legal}[normalize]
            norm = float(row[pool].logsumexp(0)) if legal else 0.0
            for code in codes:
                gain = 0.0 if code == -1 else float(row[int(table[code])]) - norm
                found.append((score + gain, m, code))
        out.append(sorted(found, key=lambda f: (-f[0], f[1], f[2]))[:num_beams])
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", ["vocab", "level", "legal"])
@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("name", "sids"), CASES, ids=[name for name, _ in CASES])
def test_step_against_enumeration(name, sids, filtered, normalize, dtype):
    trie = SidTrie.from_sids(sids)
    vocab, vocab_size = vocab_of(trie.num_levels, 6), 61
    known = sorted(BruteForce(sids).prefixes(), key=len)
    generator = torch.Generator().manual_seed(1)
    batch, beams, num_beams = 2, len(known) + 2, 5
    prefixes = [[*known, None, ()], [*reversed(known), (), None]]
    nodes = torch.stack([walk_all(trie, [p or () for p in row]) for row in prefixes])
    for b, row in enumerate(prefixes):
        for m, prefix in enumerate(row):
            if prefix is None:
                nodes[b, m] = -1
    scores = torch.randn(batch, beams, generator=generator)
    scores[0, -1] = float("-inf")
    logits = torch.randn(batch * beams, vocab_size, generator=generator).to(dtype)
    allow = [list(range(len(sids)))] * batch
    filters = None
    if filtered:
        allow = [[0], list(range(1, len(sids)))]
        filters = ItemFilter.stack([trie.filter(allow=a) for a in allow]).tensors
    got = trie_step(
        logits, scores, nodes, trie.tensors, vocab.tensors(), num_beams, normalize, 0.7, filters
    )
    plain = reference.trie_step(
        logits, scores, nodes, trie.tensors, vocab.tensors(), num_beams, normalize, 0.7, filters
    )
    for ours, expected_one in zip(got[1:], plain[1:], strict=True):
        assert torch.equal(ours, expected_one)
    torch.testing.assert_close(got[0], plain[0], atol=TOLERANCE[dtype], rtol=0)
    expected = brute_step(sids, allow, logits, scores, prefixes, vocab, num_beams, normalize, 0.7)
    for b in range(batch):
        for k in range(num_beams):
            score, node, parent, code = (t[b, k].item() for t in got)
            if k >= len(expected[b]):
                assert (score, node, parent, code) == (float("-inf"), -1, 0, -1)
                continue
            assert (parent, code) == expected[b][k][1:]
            assert score == pytest.approx(expected[b][k][0], abs=2e-5)
            mother = prefixes[b][int(parent)]
            child = mother if code == -1 and len(mother) == trie.num_levels else None
            if code >= 0:
                child = (*mother, int(code))
            if child is not None:
                assert int(walk_all(trie, [child])[0]) == node


@pytest.mark.parametrize("dtype", DTYPES)
def test_step_with_known_normalizers_needs_only_the_levels_logits(dtype):
    """Of a ragged catalogue, where one beam waits, one is dead and one may end."""
    trie = SidTrie.from_sids([[0], [0, 1], [2, 1], [2, 3], [2, 3, 0]])
    tokens = vocab_of(3, 4).tensors()
    nodes = torch.cat([walk_all(trie, [(0,), (2,), (2,)]), torch.tensor([-1])])[None]
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 4, generator=generator)
    logits = torch.randn(4, 40, generator=generator).to(dtype)
    want = reference.trie_step(logits, scores, nodes, trie.tensors, tokens, 8, "vocab", 0.7)
    known = (logits.float() / 0.7).logsumexp(1)
    few = TokenTensors(torch.arange(4).expand(3, -1), tokens.denied[:0], -1, 4)
    of_level = logits[:, tokens.column[1]]  # all beams stand at depth 1
    arguments = (scores, nodes, trie.tensors, few, 8, "vocab", 0.7, None, known)
    for run in (trie_step, reference.trie_step):
        got = run(of_level, *arguments)
        torch.testing.assert_close(got[0], want[0], atol=TOLERANCE[dtype], rtol=0)
        for ours, expected_one in zip(got[1:], want[1:], strict=True):
            assert torch.equal(ours, expected_one)
    for wrong, normalize in ((known[1:], "vocab"), (known, "level")):
        with pytest.raises(ValueError, match=r"trie_step: normalizers must be .* = \[4\] with"):
            trie_step(of_level, scores, nodes, trie.tensors, few, 8, normalize, 1.0, None, wrong)


def test_a_suppressed_token_at_the_highest_temperatures():
    """All logits but the suppressed one are alike then."""
    trie, tokens = SidTrie.from_sids([[0, 1], [1, 0]]), vocab_of(2, 2).tensors()
    logits = torch.arange(40.0)[None]
    logits[0, 30] = -torch.inf
    root = torch.zeros(1, 1, dtype=torch.int64)
    for temperature in (1e10, 4e37, 3e38):
        step = trie_step(
            logits, torch.zeros(1, 1), root, trie.tensors, tokens, 2, "vocab", temperature
        )
        torch.testing.assert_close(step[0], torch.full((1, 2), -math.log(39)))


def test_step_breaks_ties_to_the_lower_parent_then_code():
    trie = SidTrie.from_sids(list(itertools.product(range(3), repeat=2)))
    logits = torch.zeros(4, 20)
    nodes = torch.zeros(1, 4, dtype=torch.int64)
    _, _, parents, codes = trie_step(
        logits, torch.zeros(1, 4), nodes, trie.tensors, vocab_of(2, 3).tensors(), 5, "legal"
    )
    assert parents.tolist() == [[0, 0, 0, 1, 1]]
    assert codes.tolist() == [[0, 1, 2, 0, 1]]


def test_step_over_an_empty_trie_gives_no_beam():
    trie = SidTrie.from_sids(torch.empty(0, 3, dtype=torch.int64))
    vocab = vocab_of(3, 4)
    nodes = torch.zeros(1, 1, dtype=torch.int64)
    args = (torch.randn(1, 30), torch.zeros(1, 1), nodes, trie.tensors, vocab.tensors(), 4)
    for scores, following, parents, codes in (trie_step(*args), reference.trie_step(*args)):
        assert scores.tolist() == [[float("-inf")] * 4]
        assert (following.tolist(), codes.tolist()) == ([[-1] * 4], [[-1] * 4])
        assert parents.tolist() == [[0] * 4]
    assert trie.items(torch.full((1, 3), -1)) == [[]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    items=st.integers(1, 40),
    levels=st.integers(1, 5),
    codes=st.integers(1, 7),
    ragged=st.booleans(),
    num_beams=st.integers(1, 60),
    normalize=st.sampled_from(["vocab", "level", "legal"]),
    dtype=st.sampled_from(DTYPES),
    suppressed=st.sampled_from([0.0, 0.1, 0.9]),
)
def test_native_step_equals_the_reference(
    seed, items, levels, codes, ragged, num_beams, normalize, dtype, suppressed
):
    """Whole descents, so that nodes and scores are those of real beams; quantised logits tie."""
    trie = SidTrie.from_sids(random_sids(seed, items, levels, codes, ragged))
    vocab = vocab_of(levels, codes)
    generator = torch.Generator().manual_seed(seed)
    keep = [torch.rand(items, generator=generator) < 0.6 for _ in range(2)]
    filters = ItemFilter.stack([trie.filter(allow=keep[0]), None]).tensors
    scores, nodes = torch.zeros(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    for _ in range(levels):
        rows = scores.numel()
        logits = torch.randint(-3, 4, (rows, 33 + levels * codes), generator=generator).to(dtype)
        # Suppressed tokens, in whole vectors and in the rest.
        logits[torch.rand(logits.shape, generator=generator) < suppressed] = float("-inf")
        args = (nodes, trie.tensors, vocab.tensors(), num_beams, normalize, 1.0, filters)
        got = trie_step(logits, scores, *args)
        plain = reference.trie_step(logits, scores, *args)
        torch.testing.assert_close(got[0], plain[0], atol=3e-5, rtol=0)
        # Rounding may order two near-equal sums either way; equal sums must give equal beams.
        sure = clear_places(plain[0]) | torch.equal(got[0], plain[0])
        for ours, expected_one in zip(got[1:], plain[1:], strict=True):
            assert torch.equal(ours[sure], expected_one[sure])
        scores, nodes = got[0], got[1]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    items=st.integers(1, 200),
    levels=st.integers(1, 5),
    codes=st.integers(1, 9),
    ragged=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_native_walk_and_mask_equal_the_reference(seed, items, levels, codes, ragged, dtype):
    sids = random_sids(seed, items, levels, codes, ragged)
    trie = SidTrie.from_sids(sids)
    generator = torch.Generator().manual_seed(seed)
    tried = torch.randint(-1, codes + 1, (50, levels), generator=generator)
    nodes = trie_walk(trie.tensors, tried)
    assert torch.equal(nodes, reference.trie_walk(trie.tensors, tried))
    tokens = vocab_of(levels, codes, end=2, begin=1).tensors()
    keep = [torch.rand(items, generator=generator) < p for p in (0.5, 0.1)]
    filters = ItemFilter.stack([trie.filter(allow=k) for k in keep]).tensors
    for chosen in (None, filters):
        logits = torch.randn(50, 80, generator=generator).to(dtype)
        expected = reference.trie_mask(logits, nodes, trie.tensors, tokens, chosen)
        assert torch.equal(trie_mask_(logits, nodes, trie.tensors, tokens, chosen), expected)


def test_mask_of_a_column_strided_tensor():
    trie = SidTrie.from_sids(CASES[2][1])
    tokens = vocab_of(3, 6, end=3).tensors()
    logits = torch.randn(32, 4).T  # [4, 32], columns adjacent in memory
    expected = reference.trie_mask(
        logits.clone(), torch.zeros(4, dtype=torch.int64), trie.tensors, tokens
    )
    got = trie_mask_(logits, torch.zeros(4, dtype=torch.int64), trie.tensors, tokens)
    assert torch.equal(got, expected)


def opcheck(op, args):
    torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor"))


def test_opcheck():
    trie = SidTrie.from_sids(CASES[2][1])
    tokens = vocab_of(3, 6, end=3).tensors()
    words = trie.filter(allow=[0, 1]).tensors
    nodes = torch.zeros(2, dtype=torch.int64)
    ops = torch.ops.crs_fast
    opcheck(ops.trie_walk.default, (*trie.tensors, torch.zeros(2, 3, dtype=torch.int64)))
    for chosen in ((None, None), tuple(words)):
        for mask in (ops.trie_mask.default, ops.trie_mask_.default):
            opcheck(mask, (torch.randn(2, 40), nodes, *trie.tensors, *tokens, *chosen))
        opcheck(
            ops.trie_step.default,
            (torch.randn(2, 40), torch.zeros(1, 2), nodes[None], *trie.tensors, *tokens, *chosen,
             4, "vocab", 1.0),
        )  # fmt: skip


def test_compiles_without_graph_breaks():
    trie = SidTrie.from_sids(CASES[2][1])
    tokens = vocab_of(3, 6, end=3).tensors()

    def step(logits, scores, nodes):
        masked = trie_mask_(logits * 1.0, nodes.flatten(), trie.tensors, tokens)
        return masked, *trie_step(logits, scores, nodes, trie.tensors, tokens, 4)

    args = (torch.randn(2, 40), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.int64))
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(*args), step(*args), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("sids", "message"),
    [
        ([[0, -2]], r"must hold codes in \[0, 2\^31 - 1\]"),
        ([[-1, -1]], "must hold at least one code"),
        ([[1, -1, 2]], "no code after padding"),
        ([[2**31]], "must hold codes in"),
    ],
)
def test_build_refuses_bad_rows(sids, message):
    with pytest.raises(ValueError, match=message):
        trie_build(torch.tensor(sids))


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("codes", [3, 40, 300, 2**31])
def test_large_tries_agree_with_their_rows(codes, ragged):
    # Several words a bitmap, all code widths, dense and sparse depths.
    sids = random_sids(5, 3000, 5, codes, ragged)
    sids[1500:] = sids[:1500]
    trie = SidTrie.from_sids(sids)
    order = sorted(range(3000), key=lambda i: (sids[i].tolist(), i))
    assert trie.item_ids.tolist() == order
    assert torch.equal(trie.sids(), sids[order])
    some = torch.randperm(3000)[:500]
    assert torch.equal(trie_rows(trie.tensors, some), sids[order][some])
    assert torch.equal(reference.trie_rows(trie.tensors, some), sids[order][some])
    widths = {3: torch.uint8, 40: torch.uint8, 300: torch.int16, 2**31: torch.int32}
    assert trie.tensors.codes.dtype == widths[codes]
    length = torch.randint(1, 6, (3000, 1))
    prefixes = sids.masked_fill(torch.arange(5) >= length, -1)
    prefixes[::7, 0] = codes - 1
    nodes = trie_walk(trie.tensors, prefixes)
    assert torch.equal(nodes, reference.trie_walk(trie.tensors, prefixes))
    _, begin, end = trie_nodes.unpack(trie.tensors, nodes)
    for row in range(0, 3000, 101):
        prefix = [c for c in prefixes[row].tolist() if c >= 0]
        below = [i for i, o in enumerate(order) if sids[o, : len(prefix)].tolist() == prefix]
        if nodes[row] < 0:
            assert not below
        else:
            assert below == list(range(int(begin[row]), int(end[row])))


def test_titles_over_a_whole_vocabulary():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 65, (500,), generator=generator).tolist()
    titles = [torch.randint(50_000, (n,), generator=generator).tolist() for n in lengths]
    trie = SidTrie.from_sids(titles, [f"t{i}" for i in range(500)])
    assert trie.num_levels == 64
    padded = [[*t, *[-1] * (64 - len(t))] for t in titles]
    assert trie.items(padded) == [[f"t{i}"] for i in range(500)]


def test_one_suppressed_token_leaves_the_others():
    trie = SidTrie.from_sids([[1, 0], [2, 0], [3, 1]])
    tokens = vocab_of(2, 6).tensors()
    nodes = torch.zeros(1, 1, dtype=torch.int64)
    for dtype in DTYPES:
        for column in range(70):
            logits = torch.randn(1, 70).to(dtype)
            logits[0, column] = float("-inf")
            args = (logits, torch.zeros(1, 1), nodes, trie.tensors, tokens, 3)
            got, plain = trie_step(*args), reference.trie_step(*args)
            torch.testing.assert_close(got[0], plain[0], atol=1e-5, rtol=0)
            assert torch.equal(got[3], plain[3])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_no_distribution_gives_no_beam(value):
    trie = SidTrie.from_sids([[1, 0], [2, 0], [3, 1]])
    tokens = vocab_of(2, 6).tensors()
    logits = torch.randn(2, 70)
    logits[0, 40] = value
    nodes = torch.zeros(2, 1, dtype=torch.int64)
    for run in (trie_step, reference.trie_step):
        scores, following, _, codes = run(logits, torch.zeros(2, 1), nodes, trie.tensors, tokens, 3)
        assert (following[0].tolist(), codes[0].tolist()) == ([-1] * 3, [-1] * 3)
        assert torch.isfinite(scores[1]).all()


def test_progress_is_reported(monkeypatch):
    monkeypatch.setattr("crs_fast.ops.trie.native._POLL_SECONDS", 0.001)
    seen = []
    trie, _ = trie_build(random_sids(0, 200_000, 6, 50), progress=seen.append)
    assert seen[-1] == 1.0
    assert any(0 < part < 1 for part in seen)
    assert seen == sorted(seen)
    assert torch.equal(trie.codes, trie_build(random_sids(0, 200_000, 6, 50))[0].codes)


@pytest.mark.parametrize("in_place", [False, True])
def test_native_masks_of_wide_rows(in_place):
    # Rows at addresses that no vector store likes, longer than its blocks.
    trie = SidTrie.from_sids(random_sids(2, 5000, 3, 200))
    tokens = vocab_of(3, 200, end=3).tensors()
    nodes = trie_walk(trie.tensors, torch.tensor([[-1] * 3, [5, -1, -1], [9, 9, -1]]))
    nodes = torch.cat([nodes, torch.tensor([-1, trie.leaf])])
    for dtype in DTYPES:
        logits = torch.randn(5, 32_011).to(dtype)[:, 3:]
        expected = reference.trie_mask(logits, nodes, trie.tensors, tokens)
        before = logits.clone()
        run = trie_mask_ if in_place else trie_mask
        assert torch.equal(run(logits, nodes, trie.tensors, tokens), expected)
        assert in_place or torch.equal(logits, before)


def test_ops_refuse_bad_arguments():
    trie = SidTrie.from_sids(CASES[2][1])
    tokens = vocab_of(3, 6, end=3).tensors()
    nodes = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"trie_mask_: logits must be float32.*got int64"):
        trie_mask_(torch.zeros(2, 40, dtype=torch.int64), nodes, trie.tensors, tokens)
    with pytest.raises(ValueError, match="at least 25 columns"):
        trie_mask_(torch.zeros(2, 24), nodes, trie.tensors, tokens)
    with pytest.raises(ValueError, match="nodes must have one entry a row"):
        trie_mask_(torch.zeros(3, 40), nodes, trie.tensors, tokens)
    with pytest.raises(ValueError, match="normalize must be one of"):
        trie_step(torch.zeros(2, 40), torch.zeros(1, 2), nodes[None], trie.tensors, tokens, 3, "x")
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        trie_step(torch.zeros(2, 40), torch.zeros(1, 2), nodes[None], trie.tensors, tokens, 0)


def test_ops_refuse_tensors_that_no_kernel_can_read():
    trie = SidTrie.from_sids(CASES[2][1])
    tokens, nodes = vocab_of(3, 6, end=3).tensors(), torch.zeros(2, dtype=torch.int64)
    for wrong, message in (
        (tokens._replace(column=tokens.column.int()), "column must be int64"),
        (tokens._replace(column=tokens.column.T.contiguous().T), "column must be int64"),
        (tokens._replace(denied=tokens.denied.int()), "denied must be contiguous int64"),
    ):
        with pytest.raises(ValueError, match=f"trie_mask_: the vocabulary's {message}"):
            trie_mask_(torch.zeros(2, 40), nodes, trie.tensors, wrong)
    words, rank = trie.filter(allow=[0]).tensors
    for wrong in ((words, rank.long()), (words[:, :0], rank), (words.double(), rank)):
        with pytest.raises(ValueError, match="trie_mask_: filters must be"):
            trie_mask_(torch.zeros(2, 40), nodes, trie.tensors, tokens, FilterTensors(*wrong))
    with pytest.raises(ValueError, match="rows of logits must not overlap"):
        trie_mask_(torch.zeros(1, 40).expand(2, -1), nodes, trie.tensors, tokens)
    with pytest.raises(ValueError, match="trie_rows: items must lie in 0"):
        trie_rows(trie.tensors, torch.tensor([10**12]))
    with pytest.raises(ValueError, match="trie_rows: out must be contiguous int64"):
        trie_rows(trie.tensors, out=torch.empty(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="num_sorted must lie in 0"):
        trie_build(torch.zeros(3, 1, dtype=torch.int64), num_sorted=-1)
    with pytest.raises(ValueError, match="rows must be in order"):
        trie_build(torch.tensor([[2], [0], [1]]), num_sorted=3)


@pytest.mark.parametrize("native", [True, False])
def test_rows_are_refused_in_the_same_words_without_a_kernel(native, monkeypatch):
    trie = SidTrie.from_sids(CASES[2][1]).tensors
    if not native:
        monkeypatch.setattr(_native, "load", lambda: None)
    for items in ([4], [0, -1], [10**12]):
        with pytest.raises(ValueError, match=r"trie_rows: items must lie in 0 \.\. 3 \(got "):
            trie_rows(trie, torch.tensor(items))
    with pytest.raises(ValueError, match=r"trie_rows: out must be contiguous int64 \[2, 3\]"):
        trie_rows(trie, torch.tensor([1, 2]), torch.empty(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"trie_rows: out must be contiguous int64"):
        trie_rows(trie, out=torch.empty(3, 4, dtype=torch.int64).T)
    out = torch.empty(2, 3, dtype=torch.int64)
    assert trie_rows(trie, torch.tensor([3, 0]), out) is out
    assert out.tolist() == [[4, 1, 2], [0, 1, 2]]
