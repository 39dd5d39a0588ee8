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


def clear_places(scores: torch.Tensor, tolerance: float = 1e-4) -> torch.Tensor:
    """Places of sorted scores [B, M] that rounding can't exchange with a neighbour; the last place
    is never sure, since what was cut may be as good."""
    apart = scores.nan_to_num(neginf=-1e30).diff(dim=1).abs() > tolerance
    edge = torch.ones(scores.shape[0], 1, dtype=torch.bool)
    return torch.cat([edge, apart], 1) & torch.cat([apart, torch.isinf(scores[:, -1:])], 1)


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


@torch.no_grad()
def sharpen(model):
    """Default initialisation gives nearly uniform logits, whose ties say nothing."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6.0)


def tiny_model(kind: str, vocab_size: int, seed: int = 0, **extra):
    """A random float32 decoder of one architecture, in eval mode."""
    import transformers
    from transformers import AutoModelForCausalLM

    # Each family's own words for the same small shape.
    llama = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    neox = {name: value for name, value in llama.items() if name != "num_key_value_heads"}
    gpt = dict(n_embd=32, n_layer=2, n_head=4, n_positions=256)
    shapes = {
        "llama": ("LlamaConfig", llama),
        "mistral": ("MistralConfig", llama),
        "qwen2": ("Qwen2Config", llama),
        "qwen3": ("Qwen3Config", dict(llama, head_dim=8)),
        "gemma": ("GemmaConfig", dict(llama, head_dim=8)),
        "gemma2": ("Gemma2Config", dict(llama, head_dim=8)),
        "phi": ("PhiConfig", llama),
        "granite": ("GraniteConfig", llama),
        "cohere": ("CohereConfig", llama),
        "neox": ("GPTNeoXConfig", neox),
        "gpt2": ("GPT2Config", gpt),
        "gptj": ("GPTJConfig", dict(gpt, rotary_dim=4)),
        "opt": (
            "OPTConfig",
            dict(
                hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=256, word_embed_proj_dim=32,
            ),
        ),
        "falcon": ("FalconConfig", dict(neox, ffn_hidden_size=48, alibi=False)),
        "bloom": ("BloomConfig", dict(hidden_size=32, n_layer=2, n_head=4)),
        "mpt": ("MptConfig", dict(d_model=32, n_layers=2, n_heads=4, max_seq_len=256)),
        "mamba": ("MambaConfig", dict(hidden_size=32, num_hidden_layers=2, state_size=4)),
    }  # fmt: skip
    name, shape = shapes[kind]
    special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=0)
    config = getattr(transformers, name)(**{"vocab_size": vocab_size, **shape, **special, **extra})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    sharpen(model)
    return model


def left_padded(*lengths: int, tokens: int = FIRST_TOKEN, seed: int = 0):
    """Random prompts of these lengths: ids int64 [B, P] of 1 .. `tokens` - 1, and mask bool."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, tokens, (len(lengths), max(lengths)), generator=generator)
    return ids, torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
