"""The trie ops: build, mask, beam step."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast.cli.bench import PythonTrie
from crs_fast.decode import SidLogitsProcessor
from crs_fast.ops import reference, trie_mask_, trie_step, trie_walk
from crs_fast.trie import SidTrie, SidVocab

from .case import Case, Ways, catalogue, check_equal


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


def mask(size: str, device: str) -> tuple[str, Ways]:
    """Constrain one step of 400 beams over a vocabulary of 50 k."""
    items, rows, words = (1_000_000, 400, 49_152) if size == "full" else (2_000, 8, 500)
    trie, vocab = catalogue(items, 4, 256, words)
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
    check_equal("mask", python(ids, scores), processor(ids, scores))
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
    trie, _ = catalogue(items, levels, codes, words)
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
    check_equal("step", trie_step(*args)[1], reference.trie_step(*args)[1])
    return f"(B, M) = ({batch}, {beams}), V {codes}, {items} items, depth 2", {
        "plain PyTorch (reference)": lambda: reference.trie_step(*args),
        "trie_step": lambda: trie_step(*args),
    }


CASES = [
    Case("build", build),
    Case("mask", mask, ("cpu", "cuda")),
    Case("step", step, ("cpu", "cuda")),
]
