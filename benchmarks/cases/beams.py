"""Whole beam searches over a language model."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast.decode import SidLogitsProcessor, recommend

from .case import Case, Ways, catalogue, check_equal


def beams(size: str, device: str) -> tuple[str, Ways]:
    """A whole constrained beam search: Hugging Face's two ways, and beams as a token tree."""
    from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

    full = size == "full"
    layers, width, words = (8, 576, 49_152) if full else (2, 64, 200)
    prompt, num_beams = (128, 20) if full else (8, 4)
    items, codes, batch = (20_000, 256, 2) if full else (200, 8, 2)
    trie, vocab = catalogue(items, 4, codes, words)
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

    check_equal("beams", codes_of(default()), tree("vocab"))
    check_equal("beams", codes_of(once()), tree("vocab"))
    shape = f"{layers} layers x {width}, vocab {words}, prompt {prompt}"
    return f"{shape}, batch {batch}, {num_beams} beams, {items} items 4x{codes}", {
        "HF generate": default,
        "HF generate, prefilled once": once,
        "recommend, normalize=vocab": lambda: tree("vocab"),
        "recommend, normalize=level": lambda: tree("level"),
    }


CASES = [Case("beams", beams, ("cpu", "cuda"))]
