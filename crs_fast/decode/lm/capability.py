"""Whether a language model can hold beams as a token tree: tried once, never listed."""

from __future__ import annotations

import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .prompt import Prompt
from .tree_model import TreeModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the difference between tree and sequential logits, in units of the logits' spread. A wrong mask
# (ALiBi) is off by half a spread, SmolLM2-135M by 4e-6, 0.01 and 0.06.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.2}


class Capability(NamedTuple):
    """attention: "tree" (tree attention), "mask" (the model's own attention with a 4-D mask) or
    None, and then `reason` says why not."""

    attention: str | None
    reason: str = ""


# Verdicts live as long as their model. The key within a model is what a user can change and the
# verdict depends on; the lock keeps two threads from probing one model twice.
_verdicts: weakref.WeakKeyDictionary[Any, dict[Any, Capability]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def capability(model: PreTrainedModel) -> Capability:
    """What `model` can do, tried on its first use: a tree of two levels on random tokens against
    plain forward passes over each path, which compares the head's rows too.

    Warns once a model where only ordinary beam search is left.
    """
    key = (
        getattr(model.config, "_attn_implementation", None),
        type(model.get_output_embeddings()),
        model.dtype,
        model.device,
        model.training,
    )
    with _lock:
        known = _verdicts.setdefault(model, {})
        if key not in known:
            known[key] = _probe(model)
            if known[key].attention is None:
                warnings.warn(
                    f"{type(model).__name__} can't decode beams as a token tree "
                    f"({known[key].reason}); Hugging Face beam search is used instead",
                    stacklevel=3,
                )
        return known[key]


def sliding_window(model: PreTrainedModel) -> int | None:
    """The shortest attention window (or chunk) of the model's layers, None without one."""
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    sizes = []
    for name, kind in (
        ("sliding_window", "sliding_attention"),
        ("attention_chunk_size", "chunked_attention"),
    ):
        size = getattr(config, name, None)
        if isinstance(size, int) and (types is None or kind in types):
            sizes.append(size)
    if types is None and getattr(config, "use_sliding_window", True) is False:
        return None
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
            # Whatever a model's code raises, the answer is the same: not this way.
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
    from .tree_view import TreeState

    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size
    draw = torch.randint(size, (2, 5 + 6 + 6), generator=generator).to(model.device)
    ids, first, second = draw.split([5, 6, 6], 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], device=model.device).bool()
    parents = torch.tensor([[5, 0, 0, 3, 1, 2], [1, 4, 4, 2, 0, 5]], device=model.device)

    lm = TreeModel(model, attention)
    prompt = Prompt.of(lm, ids, mask, padded=True)
    own = torch.arange(6, device=model.device).expand(2, 6)
    lengths = mask.sum(1, keepdim=True)
    some = draw[0].unique()  # tokens whose rows of the head are asked for alone
    got = [(prompt.logits()[:, None], prompt.logits(some)[:, None])]
    for depth, (tokens, ancestors) in enumerate(
        ((first, own[..., None]), (second, torch.stack([parents, own + 6], 2)))
    ):
        state = TreeState(ancestors, prompt.length, prompt.visible)
        hidden = prompt.grow(tokens, (lengths + depth).expand(2, 6), state).flatten(0, 1)
        got.append((lm.head(hidden).view(2, 6, -1), lm.head(hidden, some).view(2, 6, -1)))

    worst = 0.0
    for row in range(2):
        start = ids[row][mask[row]].expand(6, -1)
        paths = torch.cat([start, first[row, parents[row], None], second[row, :, None]], 1)
        wanted = model(input_ids=paths, use_cache=False).logits[:, start.shape[1] - 1 :].float()
        for depth, (whole, few) in enumerate(got):
            expected = wanted[:, depth]
            for mine, theirs in ((whole[row], expected), (few[row], expected[:, some])):
                passed = mine[parents[row]] if depth == 1 else mine  # what each path goes through
                worst = max(worst, _error(passed.float(), theirs))
    return worst


def _error(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Root mean square over the tokens, of the worst position, in units of `theirs`' spread."""
    error = (mine - theirs).square().mean(1).sqrt().max()
    return float(error / theirs.std().clamp(min=1e-6))
