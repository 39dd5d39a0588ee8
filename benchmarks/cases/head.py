"""What a beam step over the vocabulary asks of the language-model head."""

from __future__ import annotations

from typing import Any

import torch

from crs_fast.ops import vocab_logsumexp

from .case import Case, Methods

# rows (beams), width, tokens
SHAPES = {"toy": (5, 16, 70), "full": (400, 1024, 151_936 + 4 * 256)}  # Qwen3-0.6B's head


def inputs(shape: tuple[int, int, int], device: str) -> tuple[torch.Tensor, torch.Tensor, str]:
    """hidden [R, D] and weight [V, D] with logits that spread like a language model's."""
    rows, width, tokens = shape
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, device=device).to(dtype)
    weight = torch.randn(tokens, width, generator=generator, device=device) * 2 / width**0.5
    name = f"{rows} rows x {width}, {tokens} tokens, {str(dtype).removeprefix('torch.')}"
    return hidden, weight.to(dtype), name


def logsumexp(size: str, device: str) -> tuple[str, Methods]:
    """Each row's log-sum-exp over the vocabulary."""
    hidden, weight, name = inputs(SHAPES[size], device)

    def all_logits() -> torch.Tensor:
        return torch.nn.functional.linear(hidden, weight).float().logsumexp(1)

    methods: Methods = {
        "PyTorch, all logits": all_logits,
        "vocab_logsumexp": lambda: vocab_logsumexp(hidden, weight),
        "the logits alone (floor)": lambda: torch.nn.functional.linear(hidden, weight),
    }
    expected = (hidden[:8].double() @ weight.double().T).logsumexp(1).float()
    # In bfloat16 both round each logit.
    tolerance: dict[str, Any] = dict(atol=2e-2 if device == "cuda" else 1e-4, rtol=0)
    for run in list(methods.values())[:2]:
        torch.testing.assert_close(run()[:8], expected, **tolerance)
    return name, methods


CASES = [Case("vocab_logsumexp", logsumexp, ("vocab_logsumexp",), ("cuda",))]
