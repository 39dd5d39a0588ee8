"""Whole beam searches over a language model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import crs_fast
from crs_fast.decode import SidLogitsProcessor, recommend
from crs_fast.decode.lm.capability import capability
from crs_fast.trie import SidTrie, SidVocab

from .case import Case, Methods, catalogue, check_equal

LEVELS, CODES = 4, 256
# Qwen3's shapes: width, MLP width, heads, key heads.
QWEN3 = {"0.6B": (1024, 3072, 16, 8), "1.7B": (2048, 6144, 16, 8)}


class System:
    """A random model, a catalogue, prompts, and Hugging Face's methods of searching them.

    A SmolLM-like model and 20,000 items on the CPU; `qwen3`'s shape in bfloat16 and `items` on the
    GPU.
    """

    mask: torch.Tensor | None = None  # None: prompts of equal lengths

    def __init__(
        self,
        size: str,
        device: str,
        *,
        batch: int,
        prompt: int,
        beams: int,
        levels: int = LEVELS,
        codes: int = CODES,
        items: int = 1_000_000,
        qwen3: str = "0.6B",
    ) -> None:
        full, cuda = size == "full", device == "cuda"
        self.full = full
        self.beams, self.prompt = (beams, prompt) if full else (4, 8)
        self.batch, self.levels = batch if full else 2, levels
        items, codes = (items if cuda else 20_000, codes) if full else (200, 8)
        self.words = (151_936 if cuda else 49_152) if full else 200
        trie, self.vocab = catalogue(items, levels, codes, self.words)
        vocab = self.words + levels * codes
        config = qwen3_config(vocab, *QWEN3[qwen3]) if full and cuda else small_config(vocab, full)
        self.model = random_model(config, torch.bfloat16 if cuda else torch.float32, device)
        self.trie = trie.to(device)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(self.words, (self.batch, self.prompt), generator=generator)
        self.ids = ids.to(device)
        self.workload = (
            f"{config.num_hidden_layers} layers x {config.hidden_size}, vocab {vocab}, "
            f"batch {self.batch}, prompt {self.prompt}, {self.beams} beams, "
            f"{items} items {levels}x{codes}"
        )

    def vectorised(self, start: int) -> dict[str, Any]:
        return {"logits_processor": [SidLogitsProcessor(self.trie, self.vocab, None, start)]}

    def in_python(self, start: int) -> dict[str, Any]:
        return {"prefix_allowed_tokens_fn": _python_trie(self.trie, self.vocab, start)}

    def search(self, ids: torch.Tensor, cache: Any = None, **how: Any) -> torch.Tensor:
        """SIDs [B, M, L] by `generate`."""
        out = self.generate(
            ids, self.levels, past_key_values=cache, num_beams=self.beams,
            num_return_sequences=self.beams, **how,
        )  # fmt: skip
        return self.vocab.decode(out[:, ids.shape[1] :]).view(-1, self.beams, self.levels)

    def generate(self, ids: torch.Tensor, tokens: int, **how: Any) -> torch.Tensor:
        return self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            pad_token_id=0, eos_token_id=None, **how,
        )  # fmt: skip

    def prefilled(self, ids: torch.Tensor) -> Any:
        return prefilled(self.model, ids, self.beams)


def prefilled(model: Any, ids: torch.Tensor, beams: int) -> Any:
    """A cache of all but the last token, repeated for the beams."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(beams)
    return cache


def qwen3_config(vocab: int, width: int, inner: int, heads: int, key_heads: int) -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=vocab, hidden_size=width, intermediate_size=inner, num_hidden_layers=28,
        num_attention_heads=heads, num_key_value_heads=key_heads, head_dim=128,
        tie_word_embeddings=True,
    )  # fmt: skip


def small_config(vocab: int, full: bool) -> Any:
    """SmolLM-like."""
    from transformers import LlamaConfig

    layers, width = (8, 576) if full else (2, 64)
    return LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width * 8 // 3,
        num_hidden_layers=layers, num_attention_heads=width // 64,
        num_key_value_heads=max(width // 192, 1), tie_word_embeddings=True,
    )  # fmt: skip


def random_model(config: Any, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):  # billions of random weights take the CPU a while
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _python_trie(
    trie: SidTrie, vocab: SidVocab, start: int
) -> Callable[[int, torch.Tensor], list[int]]:
    """The usual constraint: a trie of dicts, looked up for one row at a time."""
    root: dict[int, Any] = {}
    for row in vocab.encode(trie.sids()).tolist():
        node = root
        for token in row:
            node = node.setdefault(token, {})

    def allowed(_: int, tokens: torch.Tensor) -> list[int]:
        node = root
        for token in tokens[start:].tolist():
            node = node.get(token, {})
        return list(node) or [0]

    return allowed


def beams(num_beams: int, size: str, device: str) -> tuple[str, Methods]:
    """A whole constrained beam search: Hugging Face's three methods, and beams as a token tree."""
    cuda = device == "cuda"
    batch, prompt = (8, 512) if cuda else (2, 128)
    of = System(size, device, batch=batch, prompt=prompt, beams=num_beams)
    ids, start = of.ids, of.prompt

    @torch.no_grad()
    def once() -> torch.Tensor:
        return of.search(ids, of.prefilled(ids), **of.vectorised(start))

    methods: Methods = {
        "HF, prefix_allowed_tokens_fn": partial(of.search, ids, **of.in_python(start)),
        "HF, vectorised mask": partial(of.search, ids, **of.vectorised(start)),
        "HF, prefilled once, vectorised": once,
        "generate, beam_search, vocab": partial(
            of.search, ids, custom_generate=crs_fast.beam_search, trie=of.trie, vocab=of.vocab
        ),
        **trees(of, "vocab", device),
        **trees(of, "level", device),
        **trees(of, "legal", device),
    }
    if device == "cpu":  # in bfloat16 two orders of summing give two orders of beams
        wanted = methods["recommend, vocab"]()
        for name in list(methods)[:4]:
            check_equal(f"beams, {name}", methods[name](), wanted)
    return of.workload, methods


def trees(of: System, normalize: str, device: str) -> Methods:
    """`recommend`; at full size with compiled layers too, and on a GPU in a CUDA graph, and both.
    A method that falls back to another, or returns other scores, fails the case."""

    def answer(**faster: bool) -> Any:
        return recommend(
            of.model, of.ids, of.mask, trie=of.trie, vocab=of.vocab, num_beams=of.beams,
            normalize=normalize, **faster,
        )  # fmt: skip

    def run(**faster: bool) -> torch.Tensor:
        return answer(**faster).sids

    methods: Methods = {f"recommend, {normalize}": run}
    if device == "cuda":
        methods[f"recommend, {normalize}, graph"] = partial(run, cuda_graph=True)
        methods[f"recommend, {normalize}, graph, compiled"] = partial(
            run, cuda_graph=True, compile_layers=True
        )
    elif of.full:  # compiling takes longer than everything at toy size
        methods[f"recommend, {normalize}, compiled"] = partial(run, compile_layers=True)
    if capability(of.model).attention is None:  # Hugging Face's search would be timed
        raise AssertionError("the model must hold a token tree")
    wanted = answer().scores
    for method in list(methods.values())[1:]:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*given up.*")
            scores = answer(**method.keywords).scores
        # bfloat16 has three digits, and a score is a sum of a few.
        atol = 0.1 if device == "cuda" else 1e-3
        torch.testing.assert_close(scores, wanted, atol=atol, rtol=0.02)
    return methods


def wide(batch: int, prompt: int, size: str, device: str) -> tuple[str, Methods]:
    """What NVIDIA's sid-gr-inference publishes: 256 beams over 3 x 8,192."""
    of = System(
        size, device, batch=batch, prompt=prompt, beams=256, levels=3, codes=8192, qwen3="1.7B"
    )
    return of.workload, trees(of, "level", device)


def host(size: str, device: str) -> tuple[str, Methods]:
    """What a search without a recording adds to the model's own calls: a model of so narrow layers
    that they take no time of their own."""
    from transformers import DynamicCache, LlamaConfig

    layers, beams = (28, 8) if size == "full" else (2, 4)
    trie, vocab = catalogue(1000, LEVELS, 64, 200)
    config = LlamaConfig(
        vocab_size=200 + LEVELS * 64, hidden_size=64, intermediate_size=64,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model, trie = random_model(config, torch.float32, device), trie.to(device)
    ids = torch.randint(200, (1, 8), generator=torch.Generator().manual_seed(1)).to(device)

    @torch.no_grad()
    def forward_passes() -> None:
        cache = DynamicCache(config=config)
        for _ in range(LEVELS):
            model(ids[:, :beams], past_key_values=cache, use_cache=True)

    return f"{layers} layers x 64, {LEVELS} forward passes of {beams} tokens", {
        "the model's own forward passes (floor)": forward_passes,
        "recommend, vocab": lambda: recommend(model, ids, trie=trie, vocab=vocab, num_beams=beams),
    }


# The parts of a whole search; the language model itself is Hugging Face's.
SEARCH = (
    "search", "tree_attention", "vocab_logsumexp", "trie_step", "trie_mask", "trie_walk",
)  # fmt: skip
CASES = [
    Case("beams50", partial(beams, 50), SEARCH, ("cpu", "cuda")),
    Case("wide_1_1000", partial(wide, 1, 1000), SEARCH, ("cuda",)),
    Case("wide_8_1000", partial(wide, 8, 1000), SEARCH, ("cuda",)),
    Case("wide_8_5000", partial(wide, 8, 5000), SEARCH, ("cuda",)),
    Case("host", host, SEARCH, ("cpu", "cuda")),
    Case("beams20", partial(beams, 20), SEARCH),
]
