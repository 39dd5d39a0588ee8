"""The one registry of benchmark cases.

A case builds its inputs for a size and returns the ways to do the same work, the baseline first.
`check` must pass before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from crs_fast.cli.bench import PythonTrie
from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.ops import reference, trie_mask_, trie_step, trie_walk
from crs_fast.ops.codebook import residual_lookup
from crs_fast.trie import SidTrie, SidVocab

Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """`make(size, device)` returns the ways; sizes are "toy" (CI) and "full" (the README's)."""

    name: str
    make: Callable[[str, str], tuple[str, Ways]]
    devices: tuple[str, ...] = ("cpu",)


def _catalogue(items: int, levels: int, codes: int, words: int) -> tuple[SidTrie, SidVocab]:
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(codes, (items, levels), generator=generator)
    vocab = SidVocab(words + torch.arange(levels * codes).view(levels, codes))
    return SidTrie.from_sids(sids), vocab


def _equal(case: str, a: torch.Tensor, b: torch.Tensor) -> None:
    if not torch.equal(a.cpu(), b.cpu()):
        raise AssertionError(f"{case}: the ways disagree, nothing was timed")


def mask(size: str, device: str) -> tuple[str, Ways]:
    """Constrain one step of 400 beams over a vocabulary of 50 k."""
    items, rows, words = (1_000_000, 400, 49_152) if size == "full" else (2_000, 8, 500)
    trie, vocab = _catalogue(items, 4, 256, words)
    prompt = 8
    tokens = vocab.encode(trie.sids()).tolist()
    picked = torch.randint(items, (rows,), generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([[0] * prompt + tokens[i][:2] for i in picked.tolist()])
    scores = torch.randn(rows, words + 4 * 256)
    python_trie = PythonTrie(tokens, prompt)
    processor = SidLogitsProcessor(trie.to(device), vocab, prompt_length=prompt)
    from transformers import PrefixConstrainedLogitsProcessor

    python = PrefixConstrainedLogitsProcessor(python_trie, num_beams=rows)
    ids, scores = ids.to(device), scores.to(device)
    _equal("mask", python(ids, scores), processor(ids, scores))
    in_place = scores.clone()
    codes = vocab.decode(ids[:, prompt:].cpu()).to(device)
    nodes = trie_walk(processor.trie.tensors, codes)
    return f"{rows} rows, V {scores.shape[1]}, {items} items, depth 2", {
        "Python trie (HF processor)": lambda: python(ids, scores),
        "SidLogitsProcessor": lambda: processor(ids, scores),
        "trie_mask_ in place": lambda: trie_mask_(
            in_place, nodes, processor.trie.tensors, processor.tokens
        ),
    }


def step(size: str, device: str) -> tuple[str, Ways]:
    """One constrained beam step, normalisation over the vocabulary included."""
    items, batch, beams, words = (1_000_000, 2, 70, 0) if size == "full" else (2_000, 2, 5, 0)
    levels, codes = (8, 2048) if size == "full" else (4, 16)
    trie, _ = _catalogue(items, levels, codes, words)
    trie = trie.to(device)
    vocab = SidVocab(torch.arange(codes).expand(levels, codes))
    tokens = vocab.tensors()
    tokens = tokens._replace(column=tokens.column.to(device), denied=tokens.denied.to(device))
    generator = torch.Generator().manual_seed(1)
    first, last = trie.tensors.level_begin[2:4].tolist()
    nodes = torch.randint(first, last, (batch, beams), generator=generator).to(device)
    logits = torch.randn(batch * beams, codes, generator=generator).to(device)
    scores = torch.randn(batch, beams, generator=generator).to(device)
    args = (logits, scores, nodes, trie.tensors, tokens, beams)
    _equal("step", trie_step(*args)[1], reference.trie_step(*args)[1])
    return f"(B, M) = ({batch}, {beams}), V {codes}, {items} items, depth 2", {
        "plain PyTorch (reference)": lambda: reference.trie_step(*args),
        "trie_step": lambda: trie_step(*args),
    }


def build(size: str, device: str) -> tuple[str, Ways]:
    """Sort SIDs and build the index."""
    items, levels, codes = (1_000_000, 8, 2048) if size == "full" else (2_000, 4, 16)
    sids = torch.randint(codes, (items, levels), generator=torch.Generator().manual_seed(0))

    def python() -> Any:
        return PythonTrie(sids.tolist(), 0)

    return f"{items} SIDs, L {levels}, {codes} codes a level", {
        "Python trie of dicts": python,
        "SidTrie.from_sids": lambda: SidTrie.from_sids(sids),
    }


def beams(size: str, device: str) -> tuple[str, Ways]:
    """A whole constrained beam search: Hugging Face's two ways, and beams as a token tree."""
    from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

    full = size == "full"
    layers, width, words = (8, 576, 49_152) if full else (2, 64, 200)
    prompt, num_beams = (128, 20) if full else (8, 4)
    items, codes, batch = (20_000, 256, 2) if full else (200, 8, 2)
    trie, vocab = _catalogue(items, 4, codes, words)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words + 4 * codes,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 192, 1),
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).eval().to(device)
    trie = trie.to(device)
    ids = torch.randint(words, (batch, prompt), device=device)
    processor = SidLogitsProcessor(trie, vocab, prompt_length=prompt)
    options: dict[str, Any] = dict(
        attention_mask=torch.ones_like(ids),
        max_new_tokens=4,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        logits_processor=[processor],
    )

    def default() -> torch.Tensor:
        return model.generate(ids, **options)

    @torch.no_grad()
    def once() -> torch.Tensor:
        cache = DynamicCache(config=config)
        model.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(num_beams)
        return model.generate(ids, past_key_values=cache, **options)

    def tree(normalize: str) -> torch.Tensor:
        return recommend(
            model, ids, trie=trie, vocab=vocab, num_beams=num_beams, normalize=normalize
        ).sids

    def codes_of(out: torch.Tensor) -> torch.Tensor:
        return vocab.decode(out[:, prompt:]).view(batch, num_beams, 4)

    _equal("beams", codes_of(default()), tree("vocab"))
    _equal("beams", codes_of(once()), tree("vocab"))
    shape = f"{layers} layers x {width}, vocab {words}, prompt {prompt}"
    return f"{shape}, batch {batch}, {num_beams} beams, {items} items 4x{codes}", {
        "HF generate": default,
        "HF generate, prefilled once": once,
        "recommend, normalize=vocab": lambda: tree("vocab"),
        "recommend, normalize=level": lambda: tree("level"),
    }


def lookup(size: str, device: str) -> tuple[str, Ways]:
    """Residual codebook lookup, all levels."""
    n, d, k = (200_000, 32, 256) if size == "full" else (500, 8, 16)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator).to(device)
    books = torch.randn(4, k, d, generator=generator).to(device)

    def cdist() -> torch.Tensor:
        residual, codes = x, []
        for book in books:
            codes.append(torch.cdist(residual, book).argmin(1))
            residual = residual - book[codes[-1]]
        return torch.stack(codes, 1)

    agree = (cdist() == residual_lookup(x, books)[0]).float().mean()
    if agree < 0.99:  # cdist rounds in float32; residual_lookup is exact
        raise AssertionError(f"lookup: the ways agree on {agree:.4f} of the codes only")
    return f"{n} x {d}, 4 levels x {k}", {
        "torch.cdist loop": cdist,
        "residual_lookup (exact)": lambda: residual_lookup(x, books),
    }


CASES = [
    Case("build", build),
    Case("mask", mask, ("cpu", "cuda")),
    Case("step", step, ("cpu", "cuda")),
    Case("beams", beams, ("cpu", "cuda")),
    Case("lookup", lookup, ("cpu", "cuda")),
]
