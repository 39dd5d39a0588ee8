"""Whether a language model can hold beams as a token tree: tried once, never listed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from .model_state import Capability, ModelState
from .stand_in import acts_outside, input_device, stand_in, unwrapped
from .tree_model import TreeModel
from .tree_state import TreeState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the difference between tree and sequential logits, in units of the logits' spread. A wrong mask
# (ALiBi) is off by half a spread, SmolLM2-135M by 4e-6, 0.01 and 0.06.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}


def capability(model: PreTrainedModel) -> Capability:
    """What `model` can do. On its first use a tree of two levels with random tokens is compared
    with plain forward passes over each path; the logits of a few tokens are compared too.

    Warns once per model where only Hugging Face beam search is left.
    """
    model = unwrapped(model)
    state, key = ModelState.of(model), state_key(model)
    probed = state.capabilities.get(key)
    if probed is None:
        with state.lock:  # two threads don't probe one model twice
            probed = state.capabilities.get(key) or _probe(model)
            if probed.is_lasting:
                state.capabilities[key] = probed
    if probed.attention is None:
        state.warn_once(
            f"{type(model).__name__} can't decode beams as a token tree "
            f"({probed.reason}); Hugging Face beam search is used instead"
        )
    return probed


def state_key(model: Any) -> Hashable:
    """What a caller can change of a model and what it can do depends on. Training mode and gradient
    checkpointing are not among it: stand-ins are in eval mode."""
    return (
        getattr(model.config, "_attn_implementation", None),
        type(model.get_output_embeddings()),
        model.dtype,
        model.device,
        "_hf_hook" in vars(model),
        acts_outside(model),
        tuple(sorted(map(str, getattr(model, "peft_config", ())))),
    )


def sliding_window(model: PreTrainedModel) -> int | None:
    """The shortest attention window (or chunk) of the model's layers, None without one."""
    config = unwrapped(model).config.get_text_config()
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None and getattr(config, "use_sliding_window", True) is False:
        return None
    sizes = []
    for name, layer_type in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
    ):
        size = getattr(config, name, None)
        if isinstance(size, int) and (layer_types is None or layer_type in layer_types):
            sizes.append(size)
    return min(sizes, default=None)


def rope_limit(model: PreTrainedModel) -> tuple[str, int] | None:
    """The kind of RoPE whose frequencies depend on how long a sequence is ("dynamic": beyond the
    limit, on every token; "longrope": on which side of it), and that limit; None for others. Keys
    that were cached on one side of the limit are wrong on the other."""
    config = unwrapped(model).config.get_text_config()
    # transformers 5 and before.
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (rope, *rope.values()):
        kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
        if kind in ("dynamic", "longrope"):
            limit = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            return kind, limit or config.max_position_embeddings
    return None


@torch.no_grad()
def _probe(model: PreTrainedModel) -> Capability:
    if model.config.is_encoder_decoder:
        return Capability(None, "it is an encoder-decoder")
    outside = acts_outside(model)
    if outside is not None:
        return Capability(None, f"its {outside} adapter acts outside of its layers")
    reason = ""
    # Whether the context is autocast, the answer is the same.
    with torch.autocast(input_device(model).type, enabled=False):
        for attention in ("tree", "mask"):
            try:
                error = _tree_error(model, attention)
            except NotNumbersError:
                # Nothing can be compared. Not remembered, since weights may still be loaded.
                return Capability(None, "its logits are NaN or infinite", is_lasting=False)
            except Exception as problem:
                # Whatever a model's code raises, the answer is the same: not this attention.
                reason = f"{attention}: {type(problem).__name__}: {str(problem).splitlines()[:1]}"
                continue
            if error <= TOLERANCE.get(model.dtype, 1e-3):
                return Capability(attention)
            reason = (
                f"with attention by {attention}, logits differ from sequential ones by "
                f"{error:.2g} of their spread"
            )
    return Capability(None, reason)


class NotNumbersError(ValueError):
    """Logits of plain forward passes are NaN or infinite."""


def _tree_error(model: PreTrainedModel, attention: str) -> float:
    """How far the logits of a two-level tree are from those of sequential passes."""
    from .cache import growing_cache

    device = input_device(model)
    generator = torch.Generator("cpu").manual_seed(0)
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocab_size, (2, 5 + 6 + 6), generator=generator, device="cpu").to(device)
    prompts, first, second = tokens.split([5, 6, 6], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=device).bool()
    # Of the tokens of the second level: which beam of the first each goes on from.
    parents = torch.tensor([[5, 0, 0, 3, 1, 2], [1, 4, 4, 2, 0, 5]], device=device)
    some = tokens[0].unique()  # token ids whose logits are asked for alone

    lm, cache = TreeModel(model, attention), growing_cache()
    position_ids = torch.arange(5, device=device).expand(2, 5)
    lengths = mask.sum(1, keepdim=True)
    after_prompt = lm.append_sequence(prompts, None, position_ids, cache)
    last = after_prompt[torch.arange(2, device=device), lengths[:, 0] - 1]  # [2, H]
    # Logits of each depth, for all token ids and for some: [2, beams, V] and [2, beams, some].
    logits = [(lm.head(last)[:, None], lm.head(last, some)[:, None])]
    own = torch.arange(6, device=device).expand(2, 6)
    for depth, (ids, ancestors) in enumerate(
        ((first, own[..., None]), (second, torch.stack([parents, own + 6], 2)))
    ):
        tree = TreeState(ancestors, 5, mask)
        hidden = lm.append_tree(ids, (lengths + depth).expand(2, 6), tree, cache).flatten(0, 1)
        logits.append((lm.head(hidden).view(2, 6, -1), lm.head(hidden, some).view(2, 6, -1)))

    plain, worst = stand_in(model), 0.0
    for row in range(2):
        prompt = prompts[row][mask[row]].expand(6, -1)
        paths = torch.cat([prompt, first[row, parents[row], None], second[row, :, None]], 1)
        wanted = plain(input_ids=paths, use_cache=False).logits[:, prompt.shape[1] - 1 :].float()
        for depth, (of_all, of_some) in enumerate(logits):
            expected = wanted[:, depth]  # [paths, V]
            for got, reference in (
                (of_all[row], expected),
                (of_some[row], expected[:, some]),
            ):
                # At depth 1 a path goes through its parent; at 0 all paths share one position.
                on_path = got[parents[row]] if depth == 1 else got
                worst = max(worst, _error(on_path.float(), reference))
    return worst


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square over the token ids, of the worst position, in units of the spread of
    `expected`. Tokens that a model forbids by -inf must agree exactly.

    Raises:
        NotNumbersError: `expected` is NaN or infinite elsewhere.
    """
    forbidden = expected == float("-inf")
    if not bool((expected.isfinite() | forbidden).all()):
        raise NotNumbersError
    difference = torch.where(got == expected, 0.0, got - expected)
    error = difference.square().mean(1).sqrt().max().nan_to_num(nan=float("inf"))
    return float(error / expected[~forbidden].std().clamp(min=1e-6))
