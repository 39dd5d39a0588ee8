"""The trie ops: build, walk, rows, mask and beam step."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch

from benchmarks import static_peer
from benchmarks.python_trie import PythonTrie
from crs_fast.decode import SidLogitsProcessor
from crs_fast.ops import (
    trie_build,
    trie_logprob,
    trie_mask,
    trie_mask_,
    trie_rows,
    trie_step,
    trie_walk,
)
from crs_fast.ops.trie import reference
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

from .case import Case, Methods, catalogue, check_equal


def build(millions: int, levels: int, codes: int, size: str, device: str) -> tuple[str, Methods]:
    """Sort random SIDs and build the index."""
    if size == "full":
        items, peer = millions * 1_000_000, static_peer.available() and millions <= 5
    else:
        items, levels, codes, peer = 2_000, 4, 16, static_peer.available()
    sids = torch.randint(codes, (items, levels), generator=torch.Generator().manual_seed(0))
    trie, array = SidTrie.from_sids(sids), sids.int().numpy()
    check_equal("build", trie.sids(), torch.from_numpy(static_peer.sort(array)).long())
    methods: Methods = {"numpy.lexsort alone": lambda: static_peer.sort(array)}
    if peer:
        methods = {"STATIC, lexsort and build": lambda: static_peer.build(array, codes)}
    methods["trie_build (without item ids)"] = lambda: trie_build(sids)
    methods["SidTrie.from_sids"] = lambda: SidTrie.from_sids(sids)
    for threads in (1, 2):
        methods[f"SidTrie.from_sids, threads: {threads}"] = partial(_with_threads, threads, sids)
    bytes_each = f"{trie.nbytes / items:.1f} B per item with ids and their look-up"
    if peer:
        static_bytes = sum(getattr(part, "nbytes", 0) for part in static_peer.build(array, codes))
        bytes_each += f" (STATIC {static_bytes / items:.1f}, no ids)"
    return f"{items} SIDs, L {levels}, {codes} codes per level; {bytes_each}", methods


def _with_threads(threads: int, sids: torch.Tensor) -> SidTrie:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return SidTrie.from_sids(sids)
    finally:
        torch.set_num_threads(before)


def change(millions: int, count: int, size: str, device: str) -> tuple[str, Methods]:
    """Add and remove some items, beside building the catalogue anew."""
    items, levels, codes = (millions * 1_000_000, 8, 2048) if size == "full" else (2_000, 4, 16)
    count = count if size == "full" else 20
    sids = torch.randint(codes, (items, levels), generator=torch.Generator().manual_seed(0))
    old = items - count
    trie, new_ids = SidTrie.from_sids(sids[:old]), torch.arange(old, items)
    whole = SidTrie.from_sids(sids)
    for changed, built in ((trie.add(sids[old:], new_ids), whole), (whole.remove(new_ids), trie)):
        for a, b in zip(changed.tensors, built.tensors, strict=True):
            check_equal("change", a, b)
        assert changed.item_ids.numbers is not None
        assert built.item_ids.numbers is not None
        check_equal("change", changed.item_ids.numbers, built.item_ids.numbers)
    return f"{items} SIDs, L {levels}, {codes} codes per level, {count} changed", {
        "SidTrie.from_sids": lambda: SidTrie.from_sids(sids),
        "SidTrie.add": lambda: trie.add(sids[old:], new_ids),
        "SidTrie.remove": lambda: whole.remove(new_ids),
        "copy of the arrays (floor)": lambda: [t.clone() for t in whole.tensors],
    }


def walk(size: str, device: str) -> tuple[str, Methods]:
    """Find the nodes of many prefixes, some of which the trie does not have."""
    items, levels, codes, prefixes = (
        (1_000_000, 8, 2048, 100_000) if size == "full" else (2_000, 4, 16, 50)
    )
    sids, trie = _random_catalogue(items, levels, codes, device)
    generator = torch.Generator().manual_seed(1)
    wanted = sids[torch.randint(items, (prefixes,), generator=generator)][:, :3].contiguous()
    wanted[::2, 2] = torch.randint(codes, (len(wanted[::2]),), generator=generator)
    wanted = wanted.to(device)
    expected = reference.trie_walk(trie.tensors, wanted)
    places = codes ** torch.arange(3)
    exists = torch.isin((wanted.cpu() * places).sum(1), (sids[:, :3] * places).sum(1))
    check_equal("walk", expected >= 0, exists)
    check_equal("walk", expected, trie_walk(trie.tensors, wanted))
    return f"{prefixes} prefixes of 3 codes, {items} items, L {levels}, {codes} codes per level", {
        "plain PyTorch (reference)": lambda: reference.trie_walk(trie.tensors, wanted),
        "trie_walk": lambda: trie_walk(trie.tensors, wanted),
    }


def rows(size: str, device: str) -> tuple[str, Methods]:
    """Read the SIDs of a tenth of the items out of the trie, beside a stored array of them."""
    items, levels, codes = (1_000_000, 8, 2048) if size == "full" else (2_000, 4, 16)
    sids, trie = _random_catalogue(items, levels, codes, device)
    stored = sids[static_peer.order(sids.numpy())].to(device)
    check_equal("rows", stored, trie_rows(trie.tensors))
    some = torch.randint(items, (items // 10,), generator=torch.Generator().manual_seed(1))
    some = some.to(device)
    check_equal("rows", stored[some], reference.trie_rows(trie.tensors, some))
    check_equal("rows", stored[some], trie_rows(trie.tensors, some))
    return f"{len(some)} of {items} items in random order, L {levels}, {codes} codes per level", {
        "plain PyTorch (reference)": lambda: reference.trie_rows(trie.tensors, some),
        "trie_rows": lambda: trie_rows(trie.tensors, some),
        "gather from stored SIDs (floor)": lambda: stored[some],
    }


def mask(size: str, device: str) -> tuple[str, Methods]:
    """Constrain one step of 400 beams over a vocabulary of 50 k."""
    from transformers import PrefixConstrainedLogitsProcessor

    items, rows, words = (1_000_000, 400, 49_152) if size == "full" else (2_000, 8, 500)
    trie, vocab = catalogue(items, 4, 256, words)
    prompt = 8
    tokens = vocab.encode(trie.sids()).tolist()
    picked = torch.randint(items, (rows,), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0] * prompt + tokens[i][:2] for i in picked.tolist()]).to(device)
    scores = torch.randn(rows, words + 4 * 256, device=device)
    processor = SidLogitsProcessor(trie.to(device), vocab, prompt_length=prompt)
    python = PrefixConstrainedLogitsProcessor(PythonTrie(tokens, prompt), num_beams=rows)
    expected = python(ids, scores)
    check_equal("mask", expected, processor(ids, scores))
    in_place, own = scores.clone(), scores.clone()
    reusing = SidLogitsProcessor(processor.trie, vocab, prompt_length=prompt, inplace=True)
    check_equal("mask", expected, reusing(ids, own))
    legal, minus_inf = expected > -torch.inf, torch.tensor(-torch.inf, device=device)
    codes = vocab.decode(ids[:, prompt:].cpu()).to(device)
    nodes = trie_walk(processor.trie.tensors, codes)
    args = (nodes, processor.trie.tensors, processor.tokens)
    methods: Methods = {
        "Python trie (HF processor)": lambda: python(ids, scores),
        "torch.where, legal tokens given": lambda: torch.where(legal, scores, minus_inf),
        "SidLogitsProcessor": lambda: processor(ids, scores),
        "SidLogitsProcessor, in place": lambda: reusing(ids, own),
        "trie_mask (new tensor)": lambda: trie_mask(scores, *args),
        "trie_mask_ (in place)": lambda: trie_mask_(in_place, *args),
        "fill_ alone (floor)": lambda: in_place.fill_(float("-inf")),
    }
    bitmask = _xgrammar_bitmask(expected)
    if bitmask is not None:
        other = scores.clone()
        bitmask(other)
        check_equal("mask", expected, other)
        methods["xgrammar, bitmask given, in place"] = lambda: bitmask(other)
    return f"{rows} rows, V {scores.shape[1]}, {items} items, depth 2", methods


def _xgrammar_bitmask(expected: torch.Tensor) -> Callable[[torch.Tensor], Any] | None:
    """xgrammar's mask kernel with the legal tokens as its bitmask; it has no trie to fill one."""
    try:
        import xgrammar
    except ImportError:
        return None
    legal = expected > float("-inf")
    words = -(-legal.shape[1] // 32)
    bits = torch.nn.functional.pad(legal, (0, words * 32 - legal.shape[1])).view(-1, words, 32)
    packed = (bits.long() << torch.arange(32, device=legal.device)).sum(2).to(torch.int32)
    return lambda logits: xgrammar.apply_token_bitmask_inplace(logits, packed)


@lru_cache(maxsize=1)
def _random_catalogue(
    items: int, levels: int, codes: int, device: str
) -> tuple[torch.Tensor, SidTrie]:
    """Shared by the cases: five million items take a while to sort."""
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(codes, (items, levels), generator=generator)
    return sids, SidTrie.from_sids(sids).to(device)


class _StepInputs:
    """Beams at random prefixes of one depth, with random logits."""

    def __init__(self, size: str, device: str, depth: int, batch: int, beams: int) -> None:
        gpu = device == "cuda"
        self.items = (5_000_000 if gpu else 1_000_000) if size == "full" else 2_000
        levels, self.codes = (8, 2048) if size == "full" else (4, 16)
        if size != "full":
            batch, beams = min(batch, 2), 5
        self.sids, self.trie = _random_catalogue(self.items, levels, self.codes, device)
        generator = torch.Generator().manual_seed(1)
        tokens = SidVocab(torch.arange(self.codes).expand(levels, self.codes)).tensors()
        self.tokens = tokens._replace(
            column=tokens.column.to(device), denied=tokens.denied.to(device)
        )
        picked = torch.randint(self.items, (batch * beams,), generator=generator)
        self.prefixes = self.sids[picked][:, :depth]
        self.nodes = trie_walk(self.trie.tensors, self.prefixes.to(device)).view(batch, beams)
        self.logits = torch.randn(batch * beams, self.codes, generator=generator).to(device)
        self.scores = torch.randn(batch, beams, generator=generator).to(device)
        self.beams = beams
        self.name = f"(B, M) = ({batch}, {beams}), V {self.codes}, {self.items} items"

    def args(self, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
        logits = self.logits.to(dtype)
        return logits, self.scores, self.nodes, self.trie.tensors, self.tokens, self.beams


def step(depth: int, batch: int, beams: int, size: str, device: str) -> tuple[str, Methods]:
    """One constrained beam step, normalisation over the vocabulary included."""
    depth = depth if size == "full" else min(depth, 3)
    inputs = _StepInputs(size, device, depth, batch, beams)
    args = inputs.args()
    expected = reference.trie_step(*args)
    _check_step(trie_step(*args), expected)
    methods: Methods = {"plain PyTorch (reference)": lambda: reference.trie_step(*args)}
    if static_peer.available():
        peer = static_peer.Step(
            static_peer.build(inputs.sids.int().numpy(), inputs.codes), inputs.codes, device
        )
        peer_args = (inputs.logits, inputs.scores, peer.states(inputs.prefixes), depth)
        # Its top-k promises no order among equal scores, so scores are compared.
        torch.testing.assert_close(peer(*peer_args)[0], expected[0], atol=1e-4, rtol=0)
        methods = {"STATIC, eager": lambda: peer(*peer_args)}
        if device == "cuda":
            methods["STATIC, compiled, CUDA graph"] = _compiled(peer, peer_args)
    methods["trie_step"] = lambda: trie_step(*args)
    if device == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            typed = inputs.args(dtype)
            name = str(dtype).removeprefix("torch.")
            expected = reference.trie_step(*typed)
            methods[f"trie_step, {name}, CUDA graph"] = _graphed(
                partial(trie_step, *typed), expected
            )
    return f"{inputs.name}, depth {depth}", methods


def _compiled(run: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[], Any]:
    compiled = torch.compile(run.__call__, mode="reduce-overhead")
    for _ in range(3):
        compiled(*args)
    return lambda: compiled(*args)


def _check_step(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    """Scores up to rounding; beams where no neighbour scores alike."""
    torch.testing.assert_close(got[0], expected[0], atol=1e-4, rtol=0)
    apart = expected[0].diff(dim=1).abs() > 1e-4
    clear = torch.nn.functional.pad(apart, (1, 0), value=True)
    clear &= torch.nn.functional.pad(apart, (0, 1), value=False)
    for a, b in zip(got[1:], expected[1:], strict=True):
        check_equal("step", a[clear], b[clear])


def _graphed(run: Callable[[], Any], expected: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    graph.replay()
    _check_step(out, expected)
    return graph.replay


def step_filter(size: str, device: str) -> tuple[str, Methods]:
    """The step at depth 1 with one filter per request."""
    inputs = _StepInputs(size, device, 1, 2, 70)
    args = inputs.args()
    half = inputs.trie.filter(deny=torch.arange(0, inputs.items, 2))
    few = inputs.trie.filter(allow=torch.arange(0, inputs.items, max(1, inputs.items // 1000)))
    methods: Methods = {"no filter": lambda: trie_step(*args)}
    for name, one in (("half the items denied", half), ("1,000 items allowed", few)):
        tensors = ItemFilter.stack([one] * inputs.scores.shape[0]).tensors
        expected = reference.trie_step(*args, filters=tensors)
        _check_step(trie_step(*args, filters=tensors), expected)
        methods[name] = partial(trie_step, *args, filters=tensors)
    return f"{inputs.name}, depth 1", methods


def make_filter(size: str, device: str) -> tuple[str, Methods]:
    """Build a filter over the catalogue."""
    items = 1_000_000 if size == "full" else 2_000
    trie, _ = catalogue(items, 4, 256, 0)
    mask = torch.rand(items, generator=torch.Generator().manual_seed(0)) < 0.5
    ids = mask.nonzero().squeeze(1)  # ids in no order: the catalogue's is that of its SIDs
    by_position = trie.filter(allow=trie.item_ids.numbers[ids])
    check_equal("make_filter", by_position.tensors.words, trie.filter(allow=mask).tensors.words)
    return f"{items} items, half of them allowed", {
        "from ids": lambda: trie.filter(allow=ids),
        "from a mask": lambda: trie.filter(allow=mask),
    }


def logprob(size: str, device: str) -> tuple[str, Methods]:
    """Log-probs of sampled SIDs under the constraint, with their gradient."""
    items, levels, codes, rows = (1_000_000, 4, 256, 256) if size == "full" else (2_000, 4, 16, 8)
    sids, trie = _random_catalogue(items, levels, codes, device)
    vocab = SidVocab(torch.arange(levels * codes).view(levels, codes))
    tokens = vocab.tensors(device)
    chosen = sids[torch.randperm(items, generator=torch.Generator().manual_seed(2))[:rows]]
    chosen = chosen.to(device)
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, levels, levels * codes, generator=generator).to(device)
    free = logits.requires_grad_()

    def over_the_vocabulary() -> torch.Tensor:
        places = tokens.column[torch.arange(levels, device=device), chosen]
        values = free.log_softmax(2).gather(2, places[..., None])[..., 0]
        (gradient,) = torch.autograd.grad(values.sum(), free)
        return gradient

    def under_the_constraint() -> torch.Tensor:
        values = trie_logprob(free, chosen, trie.tensors, tokens)
        (gradient,) = torch.autograd.grad(values.sum(), free)
        return gradient

    values = trie_logprob(free, chosen, trie.tensors, tokens).detach()
    expected = reference.trie_logprob(logits.detach(), chosen, trie.tensors, tokens)
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-5)
    return f"{rows} SIDs of {levels} levels, {items} items, {levels * codes} tokens", {
        "log_softmax over the vocabulary (no constraint)": over_the_vocabulary,
        "trie_logprob": under_the_constraint,
    }


_BOTH = ("cpu", "cuda")
_STEP = ("trie_step",)
_CHANGE = ("trie_build", "trie_insert", "trie_remove", "splice", "number_find", "trie")
CASES = [
    Case("build-1m", partial(build, 1, 8, 2048), ("trie_build", "trie")),
    Case("build-5m", partial(build, 5, 8, 2048), ("trie_build", "trie")),
    Case("build-20m", partial(build, 20, 4, 256), ("trie_build", "trie")),
    Case("change", partial(change, 1, 10_000), _CHANGE),
    Case("change-10-of-5m", partial(change, 5, 10), _CHANGE),
    Case("rows", rows, ("trie_rows",)),
    Case("walk", walk, ("trie_walk",), _BOTH),
    Case("mask", mask, ("trie_mask", "trie_walk"), _BOTH),
    Case("step-dense", partial(step, 1, 2, 70), _STEP, _BOTH),
    Case("step-sparse", partial(step, 2, 2, 70), _STEP, _BOTH),
    Case("step-deep", partial(step, 4, 2, 70), _STEP, _BOTH),
    Case("step-dense-busy", partial(step, 1, 2, 70), _STEP, spinning=2),
    Case("step-sparse-busy", partial(step, 2, 2, 70), _STEP, spinning=2),
    Case("step-dense-32x70", partial(step, 1, 32, 70), _STEP, ("cuda",)),
    Case("step-sparse-32x70", partial(step, 2, 32, 70), _STEP, ("cuda",)),
    Case("step-dense-256x64", partial(step, 1, 256, 64), _STEP, ("cuda",)),
    Case("step-sparse-256x64", partial(step, 2, 256, 64), _STEP, ("cuda",)),
    Case("step-filter", step_filter, (*_STEP, "filter"), _BOTH),
    Case("make-filter", make_filter, ("filter",)),
    Case("logprob", logprob, ("trie_logprob", "trie_mask", "trie_walk"), _BOTH),
]
