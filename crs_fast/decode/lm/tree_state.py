"""What the tokens of one tree step see."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from crs_fast.ops.tree_attention import tree_attention


@dataclass(frozen=True)
class TreeState:
    """Travels through the model as the argument `crs_fast_tree`.

    The cache holds the prompt first and the tokens of the tree behind it. A tree position is a
    position in the cache, counted from the end of the prompt.

    ancestors int64 [B, M, T]: tree positions that each beam sees, the one of its new token among
        them
    prompt_length: P, cache positions of the prompt
    prompt_mask bool [B, P]: which of them hold a token; None means that all do
    """

    ancestors: torch.Tensor
    prompt_length: int
    prompt_mask: torch.Tensor | None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention over the keys and values of a layer's whole cache."""
        return tree_attention(
            query, key, value, self.ancestors, self.prompt_length, self.prompt_mask, scale, softcap
        )
