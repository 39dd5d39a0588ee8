"""Whether a language model can hold beams as a token tree: tried once, never listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .model_state import Capability, ModelState
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
    state = ModelState.of(model)
    # What a user can change and the answer depends on.
    key = (
        getattr(model.config, "_attn_implementation", None),
        type(model.get_output_embeddings()),
        model.dtype,
        model.device,
        model.training,
    )
    known = state.capabilities.get(key)
    if known is not None:
        return known
    with state.lock:  # two threads don't probe one model twice
        if key not in state.capabilities:
            state.capabilities[key] = _probe(model)
        probed = state.capabilities[key]
    if probed.attention is None:
        state.warn_once(
            f"{type(model).__name__} can't decode beams as a token tree "
            f"({probed.reason}); Hugging Face beam search is used instead"
        )
    return probed


def sliding_window(model: PreTrainedModel) -> int | None:
    """The shortest attention window (or chunk) of the model's layers, None without one."""
    config = model.config.get_text_config()
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


@torch.no_grad()
def _probe(model: PreTrainedModel) -> Capability:
    if model.config.is_encoder_decoder:
        return Capability(None, "it is an encoder-decoder")
    reason = ""
    for attention in ("tree", "mask"):
        try:
            error = _tree_error(model, attention)
        except Exception as problem:
            # Whatever a model's code raises, the answer is the same: not this attention.
            reason = f"{attention}: {type(problem).__name__}: {str(problem).splitlines()[:1]}"
            continue
        if error <= TOLERANCE.get(model.dtype, 1e-3):
            return Capability(attention)
        reason = (
            f"with attention by {attention}, logits differ from sequential ones by {error:.2g} "
            "of their spread"
        )
    return Capability(None, reason)


def _tree_error(model: PreTrainedModel, attention: str) -> float:
    """How far the logits of a two-level tree are from those of sequential passes."""
    from .cache import growing_cache

    generator = torch.Generator().manual_seed(0)
    vocab_size = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocab_size, (2, 5 + 6 + 6), generator=generator).to(model.device)
    prompts, first, second = tokens.split([5, 6, 6], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=model.device).bool()
    # Of the tokens of the second level: which beam of the first each goes on from.
    parents = torch.tensor([[5, 0, 0, 3, 1, 2], [1, 4, 4, 2, 0, 5]], device=model.device)
    some = tokens[0].unique()  # token ids whose logits are asked for alone

    lm, cache = TreeModel(model, attention), growing_cache()
    position_ids = torch.arange(5, device=model.device).expand(2, 5)
    lengths = mask.sum(1, keepdim=True)
    after_prompt = lm.append_sequence(prompts, None, position_ids, cache)
    last = after_prompt[torch.arange(2, device=model.device), lengths[:, 0] - 1]  # [2, H]
    # Logits of each depth, for all token ids and for some: [2, beams, V] and [2, beams, some].
    logits = [(lm.head(last)[:, None], lm.head(last, some)[:, None])]
    own = torch.arange(6, device=model.device).expand(2, 6)
    for depth, (ids, ancestors) in enumerate(
        ((first, own[..., None]), (second, torch.stack([parents, own + 6], 2)))
    ):
        tree = TreeState(ancestors, 5, mask)
        hidden = lm.append_tree(ids, (lengths + depth).expand(2, 6), tree, cache).flatten(0, 1)
        logits.append((lm.head(hidden).view(2, 6, -1), lm.head(hidden, some).view(2, 6, -1)))

    worst = 0.0
    for row in range(2):
        prompt = prompts[row][mask[row]].expand(6, -1)
        paths = torch.cat([prompt, first[row, parents[row], None], second[row, :, None]], 1)
        wanted = model(input_ids=paths, use_cache=False).logits[:, prompt.shape[1] - 1 :].float()
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
    `expected`."""
    error = (got - expected).square().mean(1).sqrt().max()
    return float(error / expected.std().clamp(min=1e-6))
