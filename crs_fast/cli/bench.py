"""The native constraint against a Python trie in `prefix_allowed_tokens_fn`, on the same call."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import SidTrie, SidVocab


class PythonTrie:
    """A trie of dicts over token ids, as GENRE and most semantic-ID code bases keep one.

    The one baseline that is installed with the package: `crs-fast bench` and `crs-fast quickstart`
    show the gain on the machine at hand, which a figure measured elsewhere can't. All of the
    constraint but these lines is Hugging Face's own."""

    def __init__(self, sequences: list[list[int]], prompt_length: int) -> None:
        self.root: dict[int, Any] = {}
        self.prompt_length = prompt_length
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int]:
        """`prefix_allowed_tokens_fn` of `model.generate`."""
        node = self.root
        for token in input_ids[self.prompt_length :].tolist():
            node = node[token]
        return list(node)


def compare(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    trie: SidTrie,
    vocab: SidVocab,
    num_beams: int,
    repeats: int = 5,
    max_seconds: float = math.inf,
) -> dict[str, Any]:
    """Time one constrained beam search, three ways, and one step's mask alone, in one interleaved
    run.

    python: `generate` with a trie of dicts; native: `generate` with `SidLogitsProcessor`;
    tree: `recommend`. The beams of all three are compared first: `same_beams` is the share of
    rows of `python` that the others return at the same place.

    Args:
        model: a causal language model with the vocabulary's tokens.
        input_ids, attention_mask: int64 [B, T], padded on the left; the SID begins after them.
        trie, vocab: the catalogue.
        num_beams: beams per request.
        repeats: timed runs of each way, of which the median counts.
        max_seconds: no further run begins after so many seconds.

    Returns:
        `seconds` and `speedup` of a search by way, `mask_seconds` and `mask_speedup` of a step's
        mask, `same_beams`, and the sizes.
    """
    start = time.perf_counter()
    length = input_ids.shape[1]
    sequences = vocab.encode(trie.sids())  # [N, L]
    python_trie = PythonTrie(sequences.tolist(), length)
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
        "python": lambda: generate(prefix_allowed_tokens_fn=python_trie),
        "native": lambda: generate(logits_processor=[processor]),
        "tree": lambda: (
            recommend(
                model, input_ids, attention_mask, trie=trie, vocab=vocab, num_beams=num_beams
            ).sids
        ),
    }
    beams = {name: run() for name, run in searches.items()}
    same = {
        name: float((found == beams["python"]).all(2).float().mean())
        for name, found in beams.items()
        if name != "python"
    }
    masks = _masks(python_trie, processor, input_ids, sequences, num_beams, vocab_size(model))
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


def vocab_size(model: Any) -> int:
    """How many logits the model has."""
    return model.get_output_embeddings().weight.shape[0]


def _masks(
    python_trie: PythonTrie,
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
    python = PrefixConstrainedLogitsProcessor(python_trie, num_beams)
    return {"python": lambda: python(ids, logits), "native": lambda: processor(ids, logits)}


def _medians(
    ways: Mapping[str, Callable[[], Any]], repeats: int, deadline: float
) -> dict[str, float]:
    """Median seconds of each way; the first round is run whatever the deadline."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for done in range(repeats):
        if done and time.perf_counter() > deadline:
            break
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def run(items: int, beams: int, repeats: int) -> int:
    """Compare on random items and a small random model; prints a table, JSON last."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(0)
    levels, codes, words = 4, 256, 49_152
    config = Qwen3Config(
        vocab_size=words + levels * codes,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    sids = torch.randint(codes, (items, levels)).unique(dim=0)
    vocab = SidVocab(words + torch.arange(levels * codes).view(levels, codes))
    ids = torch.randint(words, (2, 64))
    trie = SidTrie.from_sids(sids)
    result = compare(model, ids, torch.ones_like(ids), trie, vocab, beams, repeats)
    show(result)
    print(json.dumps(result))
    return 0


def show(result: dict[str, Any]) -> None:
    """Print the comparison as a table."""
    print(
        f"  batch {result['batch']}, prompt {result['prompt']}, beams {result['num_beams']}, "
        f"{result['items']} items"
    )
    mask = result["mask_seconds"]
    print(f"  {'constraint of one step: Python trie of dicts':<50} {1000 * mask['python']:8.2f} ms")
    print(
        f"  {'constraint of one step: native trie_mask':<50} {1000 * mask['native']:8.2f} ms"
        f"  {result['mask_speedup']:5.1f}x"
    )
    names = {
        "python": "whole search: generate + Python trie",
        "native": "whole search: generate + SidLogitsProcessor",
        "tree": "whole search: crs_fast.recommend, prompt read once",
    }
    for name, label in names.items():
        line = f"  {label:<50} {1000 * result['seconds'][name]:8.1f} ms"
        if name in result["speedup"]:
            same = 100 * result["same_beams"][name]
            line += f"  {result['speedup'][name]:5.1f}x  same beams {same:.0f} %"
        print(line)
