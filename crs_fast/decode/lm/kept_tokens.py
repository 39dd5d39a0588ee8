"""Keys and values of a token sequence, kept outside of any batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .cache import growing_cache
from .prompt import Prompt, right_pad
from .tree_model import TreeModel

States = tuple[torch.Tensor, torch.Tensor]  # keys and values [H, n, D]


@dataclass(frozen=True)
class KeptTokens:
    """What a model has read of one sequence.

    ids: its tokens
    layers: their keys and values in each layer; None for a layer that keeps none
    """

    ids: list[int]
    layers: list[States | None]

    @classmethod
    def of(cls, prompt: Prompt, row: int, *, is_copied: bool = True) -> KeptTokens:
        """One row of a prompt, without what holds no token.

        Args:
            is_copied: False gives the prompt's own keys and values, which change when it does. The
                row must have no padding.
        """
        at = prompt.mask[row].nonzero().flatten() if is_copied else slice(None)
        layers: list[States | None] = []
        batch_layers: list[Any] = prompt.cache.layers
        for layer in batch_layers:
            states = None
            if layer.is_initialized:
                states = (layer.keys[row][:, at], layer.values[row][:, at])
            layers.append(states)
        return cls(prompt.ids[row, at].tolist(), layers)

    @property
    def nbytes(self) -> int:
        return sum(s.nbytes for states in self.layers if states is not None for s in states)


def resumed(lm: TreeModel, kept: Sequence[tuple[KeptTokens, int] | None], room: int) -> Prompt:
    """A prompt whose rows hold the first tokens of kept sequences: so many of each, none for None.
    A token must be fed to every row before logits are asked for.

    Args:
        room: cache positions that are expected to be needed behind them.
    """
    ids, mask = right_pad([[] if one is None else one[0].ids[: one[1]] for one in kept], 0)
    device = lm.model.device
    cache = growing_cache(room)
    (first, _), *_ = [one for one in kept if one is not None]
    for index, example in enumerate(first.layers):
        if example is None:
            continue
        keys, values = (
            like.new_zeros(len(kept), like.shape[0], ids.shape[1], like.shape[2])
            for like in example
        )
        for row, one in enumerate(kept):
            if one is None:
                continue
            own = one[0].layers[index]
            assert own is not None
            keys[row, :, : one[1]] = own[0][:, : one[1]]
            values[row, :, : one[1]] = own[1][:, : one[1]]
        cache.update(keys, values, index)
    return Prompt.holding(lm, ids.to(device), mask.to(device), cache)
