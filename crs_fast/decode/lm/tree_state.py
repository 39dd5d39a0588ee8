"""What the tokens of one step see, of a tree or of rows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from crs_fast.ops.tree_attention import tree_attention

# Measured with 1 to 256 beams, 8 to 512 prompt positions, 4 and 9 heads, float32 and bfloat16
# (2.8 GHz Xeon).
_FEW_SLOTS = 192


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
    _biases: dict[tuple[int, torch.dtype], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Attention over the keys and values of a layer's whole cache."""
        if softcap is None and self._is_dense(query, key, value):
            bias = self._dense_bias(key.shape[2], query.dtype)
            groups = key.shape[1]
            out = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias, scale=scale, enable_gqa=groups != query.shape[1]
            )
            return out.transpose(1, 2).contiguous()
        return tree_attention(
            query, key, value, self.ancestors, self.prompt_length, self.prompt_mask, scale, softcap
        )

    def _is_dense(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """Whether one call of PyTorch's attention, which scores all positions of the tree for each
        beam, is faster than `tree_attention`, which scores a beam's ancestors only: on the CPU,
        where the tree is not much longer than the prompt."""
        return (
            query.device.type == "cpu"
            and key.shape[2] - self.prompt_length <= _FEW_SLOTS + 2 * self.prompt_length
            and value.dtype == query.dtype
            and value.shape[3] == query.shape[3]
        )

    def _dense_bias(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """`dense_mask`, made once for all layers of a step."""
        known = self._biases.get((length, dtype))
        if known is None:
            known = self._biases[length, dtype] = self.dense_mask(length, dtype)
        return known

    def dense_mask(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """0 where a beam's token sees one of `length` cache positions and the lowest number
        elsewhere, [B, 1, M, S]."""
        batch, beams, _ = self.ancestors.shape
        visible = torch.zeros(batch, beams, length, dtype=torch.bool, device=self.ancestors.device)
        prompt = visible[..., : self.prompt_length]
        if self.prompt_mask is None:
            prompt.fill_(True)
        else:
            prompt.copy_(self.prompt_mask[:, None])
        visible.scatter_(2, self.ancestors + self.prompt_length, True)
        return _bias(visible, dtype)[:, None]


@dataclass(frozen=True)
class RowState:
    """What the new tokens of rows see: travels through the model in place of a `TreeState`.

    visible bool [R, S]: which cache positions of each row hold a token, the new one included; None
        means that all do
    """

    visible: torch.Tensor | None

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """query [R, H, 1, D], key and value [R, G, S, D] -> [R, 1, H, D]."""
        mask = None if self.visible is None else self.visible[:, None, None]
        groups = key.shape[1]
        if softcap is None:
            out = F.scaled_dot_product_attention(
                query, key, value, mask, scale=scale, enable_gqa=groups != query.shape[1]
            )
            return out.transpose(1, 2).contiguous()
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        lone = (query * scale).unflatten(1, (groups, -1)).squeeze(3)  # [R, G, H / G, D]
        scores = softcap * torch.tanh((lone @ key.transpose(2, 3)).float() / softcap)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        out = scores.softmax(3).to(value.dtype) @ value
        return out.flatten(1, 2)[:, None].to(query.dtype)

    def dense_mask(self, length: int, dtype: torch.dtype) -> torch.Tensor | None:
        """0 where a row's token sees a cache position and the lowest number elsewhere,
        [R, 1, 1, S]; None where every position is seen."""
        if self.visible is None:
            return None
        return _bias(self.visible, dtype)[:, None, None]


def _bias(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, torch.finfo(dtype).min)
