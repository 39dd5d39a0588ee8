"""What a native constraint saves: one constrained beam search by Hugging Face's own constraint and
by this package's, on the same call."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch

from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import SidTrie, Vocabulary


def prefix_allowed_tokens(
    sequences: list[list[int]], prompt_length: int
) -> Callable[[int, torch.Tensor], list[int]]:
    """The `prefix_allowed_tokens_fn` of `model.generate` that lets these token sequences follow the
    prompt: the constraint that Hugging Face's documentation shows, with a dict from each prefix to
    the tokens after it."""
    following: dict[tuple[int, ...], dict[int, None]] = defaultdict(dict)
    for sequence in sequences:
        for length, token in enumerate(sequence):
            following[tuple(sequence[:length])][token] = None
    tokens_after = {prefix: list(tokens) for prefix, tokens in following.items()}

    def allowed(batch_id: int, input_ids: torch.Tensor) -> list[int]:
        return tokens_after[tuple(input_ids[prompt_length:].tolist())]

    return allowed


def compare(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SidTrie,
    vocab: Vocabulary,
    num_beams: int,
    repeats: int = 5,
    max_seconds: float = math.inf,
) -> dict[str, Any]:
    """Time one constrained beam search, three ways, and one step's mask alone, in one interleaved
    run.

    python: `generate` with `prefix_allowed_tokens`; native: `generate` with `SidLogitsProcessor`;
    tree: `recommend`. The beams of all three are compared first: `same_beams` is the share of
    rows of `python` that the others return at the same place.

    Args:
        model: a causal language model with the vocabulary's tokens.
        input_ids, attention_mask: int64 [B, T], padded on the left; the SID begins after them.
        trie, vocab: the catalogue.
        num_beams: beams per request.
        repeats: timed runs of each method, of which the median counts.
        max_seconds: no further run begins after so many seconds.

    Returns:
        `seconds` and `speedup` of a search by method, `mask_seconds` and `mask_speedup` of a step's
        mask, `same_beams`, and the sizes.
    """
    start = time.perf_counter()
    length = input_ids.shape[1]
    sequences = vocab.encode(trie.sids())  # [N, L]
    allowed = prefix_allowed_tokens(sequences.tolist(), length)
    common = dict(
        input_ids=input_ids,
        attention_mask=attention_mask,
        max_new_tokens=trie.num_levels,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    processor = SidLogitsProcessor(trie, vocab, prompt_length=length)
    shape = (input_ids.shape[0], num_beams, trie.num_levels)

    def generate(**kwargs: Any) -> torch.Tensor:
        return vocab.decode(model.generate(**common, **kwargs)[:, length:]).view(shape)

    searches: dict[str, Callable[[], torch.Tensor]] = {
        "python": lambda: generate(prefix_allowed_tokens_fn=allowed),
        "native": lambda: generate(logits_processor=[processor]),
        "tree": lambda: (
            recommend(
                model, input_ids, attention_mask, trie=trie, vocab=vocab, num_beams=num_beams
            ).sids
        ),
    }
    beams = {name: run() for name, run in searches.items()}
    same = {
        name: float((sids == beams["python"]).all(2).float().mean())
        for name, sids in beams.items()
        if name != "python"
    }
    masks = _masks(allowed, processor, input_ids, sequences, num_beams, _vocab_size(model))
    mask_seconds = _medians(masks, 20, start + max_seconds)
    seconds = _medians(searches, repeats, start + max_seconds)
    return {
        "seconds": seconds,
        "speedup": {name: seconds["python"] / seconds[name] for name in ("native", "tree")},
        "mask_seconds": mask_seconds,
        "mask_speedup": mask_seconds["python"] / mask_seconds["native"],
        "same_beams": same,
        "batch": shape[0],
        "num_beams": num_beams,
        "prompt": length,
        "items": trie.num_items,
    }


def _vocab_size(model: Any) -> int:
    """How many logits the model has."""
    return model.get_output_embeddings().weight.shape[0]


def _masks(
    allowed: Callable[[int, torch.Tensor], list[int]],
    processor: SidLogitsProcessor,
    input_ids: torch.Tensor,
    sequences: torch.Tensor,
    num_beams: int,
    words: int,
) -> dict[str, Callable[[], torch.Tensor]]:
    """The constraint of a search's last step by itself, on random logits."""
    from transformers import PrefixConstrainedLogitsProcessor

    rows = input_ids.shape[0] * num_beams
    picked = sequences[torch.arange(rows) % len(sequences), :-1]  # [B * M, L - 1]
    ids = torch.cat([input_ids.repeat_interleave(num_beams, 0), picked.to(input_ids)], 1)
    logits = torch.randn(rows, words)
    python = PrefixConstrainedLogitsProcessor(allowed, num_beams)
    return {"python": lambda: python(ids, logits), "native": lambda: processor(ids, logits)}


def _medians(
    methods: Mapping[str, Callable[[], Any]], repeats: int, deadline: float
) -> dict[str, float]:
    """Median seconds of each method; the first round runs whatever the deadline."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for done in range(repeats):
        if done and time.perf_counter() > deadline:
            break
        for name, run in methods.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def show(result: dict[str, Any]) -> None:
    """Print the comparison as a table."""
    print(
        f"  batch {result['batch']}, prompt {result['prompt']}, beams {result['num_beams']}, "
        f"{result['items']} items"
    )
    mask = result["mask_seconds"]
    print(f"  {'constraint of one step: in Python':<50} {1000 * mask['python']:8.2f} ms")
    print(
        f"  {'constraint of one step: native trie_mask':<50} {1000 * mask['native']:8.2f} ms"
        f"  {result['mask_speedup']:5.1f}x"
    )
    names = {
        "python": "whole search: generate, constraint in Python",
        "native": "whole search: generate + SidLogitsProcessor",
        "tree": "whole search: crs_fast.recommend, prompt read once",
    }
    for name, label in names.items():
        line = f"  {label:<50} {1000 * result['seconds'][name]:8.1f} ms"
        if name in result["speedup"]:
            same = 100 * result["same_beams"][name]
            line += f"  {result['speedup'][name]:5.1f}x  same beams {same:.0f} %"
        print(line)
