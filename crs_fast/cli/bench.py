"""The native constraint against a Python trie in `prefix_allowed_tokens_fn`, on the same call."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.trie import SidTrie, SidVocab, Vocabulary


class PythonTrie:
    """A trie of dicts over token ids, as GENRE and most semantic-ID code bases keep one."""

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
    vocab: Vocabulary,
    num_beams: int,
    repeats: int = 5,
) -> dict[str, Any]:
    """Median seconds of one constrained beam search, three ways, in one interleaved run.

    python: `generate` with a trie of dicts; native: `generate` with `SidLogitsProcessor`;
    tree: `recommend`. The beams of all three are compared first: `same_beams` is the share of
    rows of `python` that the others return at the same place.
    """
    length = input_ids.shape[1]
    python_trie = PythonTrie(vocab.encode(trie.sids()).tolist(), length)
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

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "python": lambda: generate(prefix_allowed_tokens_fn=python_trie),
        "native": lambda: generate(logits_processor=[processor]),
        "tree": lambda: (
            recommend(
                model, input_ids, attention_mask, trie=trie, vocab=vocab, num_beams=num_beams
            ).sids
        ),
    }
    beams = {name: run() for name, run in ways.items()}
    same = {
        name: float((found == beams["python"]).all(2).float().mean())
        for name, found in beams.items()
        if name != "python"
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    return {
        "seconds": seconds,
        "speedup": {name: seconds["python"] / seconds[name] for name in ("native", "tree")},
        "same_beams": same,
        "batch": shape[0],
        "num_beams": num_beams,
        "prompt": length,
        "items": trie.num_items,
    }


def add(commands: Any) -> None:
    parser = commands.add_parser("bench", help="time the native constraint against a Python trie")
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.set_defaults(run=lambda args: run(args.items, args.beams, args.repeats))


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
    names = {
        "python": "generate + Python trie (prefix_allowed_tokens_fn)",
        "native": "generate + SidLogitsProcessor",
        "tree": "crs_fast.recommend (prompt prefilled once)",
    }
    print(
        f"batch {result['batch']}, prompt {result['prompt']}, beams {result['num_beams']}, "
        f"{result['items']} items"
    )
    for name, label in names.items():
        speedup = result["speedup"].get(name, 1.0)
        same = result["same_beams"].get(name, 1.0)
        print(
            f"  {label:<52} {1000 * result['seconds'][name]:8.1f} ms  {speedup:5.1f}x  "
            f"same beams {100 * same:.0f} %"
        )
