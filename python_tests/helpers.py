"""Oracles and small models shared by the tests."""

from __future__ import annotations

import itertools

import torch

from crs_fast.trie import SidVocab

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FIRST_TOKEN = 7

CASES = [
    # name, sids (ragged rows are padded by SidTrie)
    ("one item", [[3]]),
    ("one level", [[5], [0], [2]]),
    ("shared prefixes", [[0, 1, 2], [0, 1, 3], [0, 2, 2], [4, 1, 2]]),
    ("several items on one SID", [[1, 1], [0, 1], [1, 1], [1, 1]]),
    ("ragged", [[1], [2, 0], [2, 0, 1], [2, 1], [0, 0, 0]]),
    ("prefix of a longer one", [[1, 2, 3], [1, 2], [1], [1, 2, 3]]),
    ("many items a node", [[1, 2]] * 70 + [[4]] * 40 + [[4, 0]] * 64 + [[5, 1]]),
]


def random_sids(seed: int, items: int, levels: int, codes: int, ragged: bool = False):
    generator = torch.Generator().manual_seed(seed)
    sids = torch.randint(codes, (items, levels), generator=generator)
    if ragged:
        lengths = torch.randint(1, levels + 1, (items, 1), generator=generator)
        sids = sids.masked_fill(torch.arange(levels) >= lengths, -1)
    return sids


def vocab_of(levels: int, codes: int, **kwargs) -> SidVocab:
    """Codes shuffled among the tokens from FIRST_TOKEN on."""
    generator = torch.Generator().manual_seed(levels * 1000 + codes)
    ids = FIRST_TOKEN + torch.randperm(levels * codes, generator=generator).view(levels, codes)
    return SidVocab(ids, **kwargs)


def whole(row) -> tuple[int, ...]:
    """A SID without its padding."""
    return tuple(int(c) for c in itertools.takewhile(lambda c: c >= 0, row))


class BruteForce:
    """The catalogue as a list of tuples: every question is answered by looking at all items."""

    def __init__(self, sids, allowed=None):
        self.sids = [whole(row) for row in sids]
        keep = range(len(self.sids)) if allowed is None else allowed
        self.allowed = [self.sids[i] for i in keep]

    def next_codes(self, prefix) -> set[int]:
        """Codes that may follow; -1 where the SID may end here."""
        n = len(prefix)
        below = [sid for sid in self.allowed if sid[:n] == tuple(prefix)]
        return {sid[n] if len(sid) > n else -1 for sid in below}

    def is_prefix(self, prefix) -> bool:
        return any(sid[: len(prefix)] == tuple(prefix) for sid in self.sids)

    def prefixes(self) -> set[tuple[int, ...]]:
        return {sid[:n] for sid in self.sids for n in range(len(sid) + 1)}


def tiny_model(kind: str, vocab_size: int, seed: int = 0, **extra):
    """A random float32 decoder of one architecture, in eval mode."""
    from transformers import (
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    shape = dict(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    if kind == "gpt2":
        config = GPT2Config(
            vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=256,
            bos_token_id=None, eos_token_id=None, pad_token_id=0, **extra,
        )  # fmt: skip
    else:
        classes = {
            "llama": LlamaConfig,
            "mistral": MistralConfig,
            "qwen2": Qwen2Config,
            "qwen3": Qwen3Config,
        }
        if kind == "qwen3":
            shape["head_dim"] = 8
        config = classes[kind](**shape, **extra)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        # Default initialisation gives nearly uniform logits, whose ties say nothing.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return model
