"""Which language-model token stands for which semantic-ID code."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import TokenTensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEGIN = "<BOI>"
END = "<EOI>"


class SidVocab:
    """The map between codes (level l, code c) and language-model token ids, frozen.

    Args:
        token_ids: one sequence of token ids a level; `token_ids[l][c]` is the token of code c at
            level l. A token may serve several levels, but only one code within a level.
        begin: token that opens a SID in text (`<BOI>`), or None: then the caller says by
            `prompt_length` where the SID begins.
        end: token that closes a SID (`<EOI>`), or None.
        eos: end-of-sequence token, forced after a whole SID where `end` is None.

    Raises:
        ValueError: a level is empty or names one token twice.
    """

    def __init__(
        self,
        token_ids: Sequence[Sequence[int] | torch.Tensor] | torch.Tensor,
        begin: int | None = None,
        end: int | None = None,
        eos: int | None = None,
    ) -> None:
        levels = [torch.as_tensor(ids, dtype=torch.int64).reshape(-1).cpu() for ids in token_ids]
        if not levels:
            raise ValueError("SidVocab: token_ids must hold at least one level (got none)")
        for level, ids in enumerate(levels):
            if ids.numel() == 0 or int(ids.min()) < 0:
                raise ValueError(
                    f"SidVocab: token_ids[{level}] must be non-empty and >= 0 (got {ids.tolist()})"
                )
            if ids.unique().numel() != ids.numel():
                raise ValueError(f"SidVocab: token_ids[{level}] must be distinct tokens")
        self.token_ids = levels
        self.begin, self.end, self.eos = begin, end, eos

    @property
    def num_levels(self) -> int:
        return len(self.token_ids)

    @property
    def sizes(self) -> list[int]:
        """Codes a level."""
        return [ids.numel() for ids in self.token_ids]

    def code_tokens(self) -> torch.Tensor:
        """Every token that stands for a code, sorted, without repeats; int64 [n]."""
        return torch.cat(self.token_ids).unique()

    def table(self) -> torch.Tensor:
        """`table[l, c]` is the token of code c at level l, -1 past a level's end; int64 [L, C]."""
        table = torch.full((self.num_levels, max(self.sizes)), -1, dtype=torch.int64)
        for level, ids in enumerate(self.token_ids):
            table[level, : ids.numel()] = ids
        return table

    def encode(self, sids: Any) -> torch.Tensor:
        """Codes int [..., L'] to token ids int64 [..., L']; -1 stays -1.

        Raises:
            ValueError: more levels than the vocabulary has, or a code outside its level.
        """
        sids = torch.as_tensor(sids, dtype=torch.int64)
        if sids.ndim == 0 or sids.shape[-1] > self.num_levels:
            raise ValueError(
                f"SidVocab.encode: sids must have at most {self.num_levels} levels in the last "
                f"dimension (got shape {tuple(sids.shape)})"
            )
        out = torch.full_like(sids, -1)
        for level in range(sids.shape[-1]):
            codes, ids = sids[..., level], self.token_ids[level].to(sids.device)
            if codes.numel() and not -1 <= int(codes.min()) <= int(codes.max()) < ids.numel():
                raise ValueError(
                    f"SidVocab.encode: codes of level {level} must lie in [-1, {ids.numel()}) "
                    f"(got [{int(codes.min())}, {int(codes.max())}])"
                )
            out[..., level] = torch.where(codes >= 0, ids[codes.clamp(min=0)], -1)
        return out

    def decode(self, token_ids: Any) -> torch.Tensor:
        """Token ids int [..., L'] to codes int64 [..., L']; -1 where a token is no code of its
        level."""
        token_ids = torch.as_tensor(token_ids, dtype=torch.int64)
        if token_ids.ndim == 0 or token_ids.shape[-1] > self.num_levels:
            raise ValueError(
                f"SidVocab.decode: token_ids must have at most {self.num_levels} levels in the "
                f"last dimension (got shape {tuple(token_ids.shape)})"
            )
        out = torch.full_like(token_ids, -1)
        for level in range(token_ids.shape[-1]):
            ids, order = self.token_ids[level].to(token_ids.device).sort()
            column = token_ids[..., level].contiguous()
            at = torch.searchsorted(ids, column).clamp(max=ids.numel() - 1)
            out[..., level] = torch.where(ids[at] == column, order[at], -1)
        return out

    def tensors(self, terminator: int | None = None) -> TokenTensors:
        """What the trie ops take, on the CPU. `terminator`: the token forced after a whole SID;
        None means `end`, else `eos`, else none."""
        column = self.table()
        denied = self.code_tokens()
        if self.end is not None:
            denied = torch.cat([denied, denied.new_tensor([self.end])])
        for choice in (terminator, self.end, self.eos):
            if choice is not None:
                break
        highest = max(int(denied.max()), -1 if choice is None else choice)
        return TokenTensors(column, denied, -1 if choice is None else choice, highest + 1)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `SidVocab(**vocab.to_dict())` gives the same vocabulary."""
        return {
            "token_ids": [ids.tolist() for ids in self.token_ids],
            "begin": self.begin,
            "end": self.end,
            "eos": self.eos,
        }

    def __repr__(self) -> str:
        return f"SidVocab(sizes={self.sizes}, begin={self.begin}, end={self.end}, eos={self.eos})"

    @classmethod
    def extend(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None,
        levels: int = 4,
        codes: int = 64,
    ) -> SidVocab:
        """Add `<BOI>`, `<EOI>` and `levels` x `codes` code tokens (`<a_0>` … `<d_63>`) to a
        tokenizer, and rows for them to a model. Tokens already there are found, not doubled.

        Args:
            tokenizer: changed in place.
            model: changed in place; its embedding grows if it must and never shrinks. None
                leaves that to the caller.
            levels: levels of a SID, at most 26.
            codes: codes a level.

        Raises:
            ValueError: `levels` outside [1, 26] or `codes` < 1.
        """
        if not 1 <= levels <= len(string.ascii_lowercase) or codes < 1:
            raise ValueError(
                f"SidVocab.extend: levels must lie in [1, 26] and codes be at least 1 "
                f"(got levels={levels}, codes={codes})"
            )
        names = [
            [f"<{string.ascii_lowercase[l]}_{c}>" for c in range(codes)] for l in range(levels)
        ]
        flat = [BEGIN, END, *(name for level in names for name in level)]
        ids = dict(zip(flat, add_special_tokens(tokenizer, model, flat), strict=True))
        return cls(
            [[ids[name] for name in level] for level in names],
            begin=ids[BEGIN],
            end=ids[END],
            eos=tokenizer.eos_token_id,
        )


def add_special_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None, tokens: Sequence[str]
) -> list[int]:
    """Make every string of `tokens` one special token and return their ids, in order.

    They are special tokens so that `tokenizer(text, split_special_tokens=True)` keeps what people
    type as text. Ids are looked up by token, because a padded vocabulary (Qwen) makes
    `len(tokenizer)` and the embedding's rows differ; the embedding never shrinks.
    """
    from transformers import AddedToken

    added = [AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(added, special_tokens=True)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]  # type: ignore[arg-type]
    if model is not None and max(ids) >= len(model.get_input_embeddings().weight):  # type: ignore[arg-type]
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    return ids
