"""The language-model head: logits of the whole vocabulary, or of a few tokens only."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import vocab_logsumexp
from crs_fast.ops.designs import Choice
from crs_fast.ops.dtypes import NATIVE_FLOATS

from .linear import is_plain, linear
from .stand_in import stand_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How scores over the whole vocabulary are normalised on a GPU: by all logits, or without them.
NORMALIZERS = Choice({"all logits": False, "streamed": True})

# How many logits are computed at once in training: those of as many labels as fit, or of all.
LOGITS_AT_ONCE: Choice[int | None] = Choice(
    {"2^26 logits": 1 << 26, "2^24 logits": 1 << 24, "2^28 logits": 1 << 28, "all logits": None}
)


class LmHead:
    """Logits of hidden states, for the whole vocabulary or for a few tokens only.

        logits = cap(scale * (hidden @ W[tokens].T + b[tokens] + LoRA[tokens]))

    What a model does after its head is read from its config: `final_logit_softcapping` (Gemma),
    `logits_scaling` (Granite, a divisor), `logit_scale` (Cohere, a factor). A model that does
    something else is caught by the capability probe, which compares with the model's own logits.

    Args:
        model: of a plain linear `get_output_embeddings()`, or one with LoRA on it, only the rows
            that are asked for are computed. Any other module computes all logits, from which
            those are taken.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.module: Any = stand_in(model.get_output_embeddings())
        config = model.config.get_text_config()
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        divisor, factor = (
            getattr(config, name, None) for name in ("logits_scaling", "logit_scale")
        )
        self.scale = (factor if isinstance(factor, float) else 1.0) / (divisor or 1.0)

    @property
    def num_tokens(self) -> int | None:
        """Rows of the head; None where its module doesn't say."""
        weight = getattr(self.module, "weight", None)
        return None if weight is None else weight.shape[0]

    def __call__(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """hidden [R, H] -> logits [R, V], or [R, C] for tokens int64 [C]."""
        return self.scaled(_logits(self.module, hidden, tokens))

    @property
    def streams(self) -> bool:
        """Whether `logsumexp` is to be used: on a GPU, for a plain linear head."""
        module = self.module
        return (
            NORMALIZERS.now
            and is_plain(module)
            and module.weight.is_cuda
            and module.weight.dtype in NATIVE_FLOATS
            and not torch.is_autocast_enabled("cuda")
            and importlib.util.find_spec("triton") is not None
        )

    def logsumexp(self, hidden: torch.Tensor, temperature: float) -> torch.Tensor:
        """logsumexp(logits / temperature) over the whole vocabulary, without the logits: hidden
        [R, H] -> float32 [R]. Only of a plain linear head."""
        weight, bias = self.module.weight, self.module.bias
        return vocab_logsumexp(
            hidden.to(weight.dtype), weight, bias, self.scale, self.softcap, temperature
        )

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """What the model makes of its head's outputs."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def _logits(module: Any, hidden: torch.Tensor, tokens: torch.Tensor | None) -> torch.Tensor:
    if is_plain(module):
        if tokens is None:
            return linear(hidden, module.weight, module.bias)
        bias = None if module.bias is None else module.bias[tokens]
        return linear(hidden, module.weight[tokens], bias)
    if tokens is None:
        return module(hidden)
    if _is_plain_lora(module):
        return _lora_logits(module, hidden, tokens)
    return module(hidden)[:, tokens]


def _is_plain_lora(module: Any) -> bool:
    return (
        hasattr(module, "lora_A")
        and is_plain(getattr(module, "base_layer", module))
        and not getattr(module, "lora_variant", None)
    )


def _lora_logits(module: Any, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    out = _logits(module.base_layer, hidden, tokens)
    if module.disable_adapters or module.merged:
        return out
    for name in module.active_adapters:
        if name in module.lora_A:
            down, up = module.lora_A[name], module.lora_B[name]
            low = down(module.lora_dropout[name](hidden.to(down.weight.dtype)))
            bias = None if up.bias is None else up.bias[tokens]
            delta = linear(low, up.weight[tokens], bias)
            out = out + (delta * module.scaling[name]).to(out.dtype)
    return out
