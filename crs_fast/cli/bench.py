"""`crs-fast bench`: the native constraint against Hugging Face's own, in Python."""

from __future__ import annotations

import json
from typing import Any


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "bench", help="time the native constraint against Hugging Face's own, in Python"
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--beams", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.set_defaults(run=lambda args: run(args.items, args.beams, args.repeats))


def run(items: int, beams: int, repeats: int) -> int:
    """Compare on random items and a small random model; prints a table, JSON last."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    from crs_fast.trie import SidTrie, SidVocab

    from .constraint_timing import compare, show

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
