"""The vocabulary of codes that have tokens of their own."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from crs_fast.ops.host import as_integers, check_integer

from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEGIN = "<BOI>"
END = "<EOI>"


class SidVocab(Vocabulary):
    """A language-model token of its own for each code of each level, frozen.

    Args:
        token_ids: one sequence of token ids for each level; `token_ids[l][c]` is the token of code
            c at level l, -1 where no token stands for the code, which no item may carry then. A
            token may serve several levels, but only one code within a level.
        begin: token that opens a SID in text (`<BOI>`), or None: then the caller says by
            `prompt_length` where the SID begins.
        end: token that closes a SID (`<EOI>`), or None.
        eos: end-of-sequence token, forced after a whole SID where `end` is None.

    Raises:
        ValueError: a level has no token or names one token twice.
    """

    def __init__(
        self,
        token_ids: Sequence[Sequence[int] | torch.Tensor] | torch.Tensor,
        begin: int | None = None,
        end: int | None = None,
        eos: int | None = None,
    ) -> None:
        if not hasattr(token_ids, "__iter__"):
            raise ValueError(
                f"SidVocab: token_ids must be a list of levels (got {type(token_ids).__name__})"
            )
        levels = [
            as_integers(f"SidVocab: token_ids[{level}]", ids).to("cpu", torch.int64).reshape(-1)
            for level, ids in enumerate(token_ids)
        ]
        if not levels:
            raise ValueError("SidVocab: token_ids must hold at least one level (got none)")
        for level, ids in enumerate(levels):
            tokens = ids[ids >= 0]
            if tokens.numel() == 0 or int(ids.min()) < -1:
                raise ValueError(
                    f"SidVocab: token_ids[{level}] must hold tokens >= 0, or -1 for a code that "
                    f"has none (got {ids.tolist()})"
                )
            if tokens.unique().numel() != tokens.numel():
                raise ValueError(
                    f"SidVocab: token_ids[{level}] must be distinct tokens (got repeated ones)"
                )
        super().__init__(levels, begin, end, eos)
        self._sorted: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    def code_tokens(self) -> torch.Tensor:
        tokens = torch.cat(self.token_ids)
        return tokens[tokens >= 0].unique()

    def table(self, device: torch.device | str = "cpu") -> torch.Tensor:
        return pad_sequence(self.token_ids, batch_first=True, padding_value=-1).to(device)

    def decode(self, token_ids: Any) -> torch.Tensor:
        tokens = self._with_levels("decode", "token_ids", token_ids)
        known, codes = (t[: tokens.shape[-1]] for t in self._sorted_on(tokens.device))  # [L', C]
        wanted = tokens.movedim(-1, 0).flatten(1) if tokens.ndim > 1 else tokens[:, None]  # [L', R]
        at = torch.searchsorted(known, wanted.contiguous()).clamp(max=known.shape[1] - 1)
        found = torch.where(known.gather(1, at) == wanted, codes.gather(1, at), -1)
        return found.t().reshape(tokens.shape)

    def _sorted_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The sorted tokens of each level and their codes, int64 [L, C]. Made once for each
        device."""
        if device not in self._sorted:
            with torch.inference_mode(False):
                table = self.table(device)
                # What pads the shorter levels stands behind every token.
                made = table.masked_fill(table < 0, torch.iinfo(torch.int64).max).sort()
            self._sorted.setdefault(device, (made.values, made.indices))
        return self._sorted[device]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description; `SidVocab(**vocab.to_dict())` gives the same vocabulary."""
        return {
            "token_ids": [ids.tolist() for ids in self.token_ids],
            "begin": self.begin,
            "end": self.end,
            "eos": self.eos,
        }

    @classmethod
    def extend(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None,
        levels: int = 4,
        codes: int = 64,
        special: bool = False,
    ) -> SidVocab:
        """Add `<BOI>`, `<EOI>` and `levels` x `codes` code tokens (`<a_0>` … `<d_63>`) to a
        tokenizer, and rows for them to a model. Tokens already there are found, not doubled.

        Args:
            tokenizer: changed in place.
            model: changed in place; its embedding grows if it must and never shrinks. None
                leaves that to the caller.
            levels: levels of a SID, at most 26.
            codes: codes a level.
            special: whether they are special tokens. False, the default, keeps items in text that
                is decoded with `skip_special_tokens=True`, as pipelines, trainers and servers do;
                special tokens would leave a hole there. True lets
                `tokenizer(text, split_special_tokens=True)` keep what people type as text, so that
                nobody can type an item into a prompt: `crs_fast.crs` demands it.

        Raises:
            ValueError: `levels` outside [1, 26], `codes` < 1, no tokenizer or no model.
        """
        check_tokenizer("SidVocab.extend", tokenizer, model)
        for name, value in (("levels", levels), ("codes", codes)):
            check_integer(f"SidVocab.extend: {name}", value, -(1 << 31))
        if not 1 <= levels <= len(string.ascii_lowercase) or codes < 1:
            raise ValueError(
                f"SidVocab.extend: levels must lie in [1, 26] and codes be at least 1 "
                f"(got levels={levels}, codes={codes})"
            )
        names = [
            [f"<{string.ascii_lowercase[l]}_{c}>" for c in range(codes)] for l in range(levels)
        ]
        flat = [BEGIN, END, *(name for level in names for name in level)]
        add_tokens(tokenizer, model, flat, special)
        return cls.from_tokens(tokenizer, names, BEGIN, END)

    @classmethod
    def from_tokens(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        levels: Sequence[Sequence[str | None]],
        begin: str | None = None,
        end: str | None = None,
        add: bool = False,
    ) -> SidVocab:
        """The vocabulary of tokens that a tokenizer has already.

        Args:
            tokenizer: changed in place only with `add`.
            levels: `levels[l][c]` is the token of code c at level l, None where none stands for it.
            begin, end: the tokens that open and close a SID in text, or None.
            add: add the tokens that the tokenizer lacks, as `extend` does; growing the model's
                embedding is left to the caller. Else such a token is an error: looked up, it would
                be the unknown token.

        Raises:
            ValueError: tokens that the tokenizer lacks, with the first of their names; a level
                without tokens or with one token twice.
        """
        check_tokenizer("SidVocab.from_tokens", tokenizer)
        for name, value in (("begin", begin), ("end", end)):
            if value is not None and not isinstance(value, str):
                raise ValueError(
                    f"SidVocab.from_tokens: {name} must be a token's name or None (got {value!r})"
                )
        if isinstance(levels, str) or not hasattr(levels, "__iter__"):
            raise ValueError(
                f"SidVocab.from_tokens: levels must be a list of levels (got {levels!r})"
            )
        levels = list(levels)
        for level in levels:
            if isinstance(level, str) or not hasattr(level, "__iter__"):
                raise ValueError(
                    f"SidVocab.from_tokens: levels must be lists of tokens' names (got {level!r})"
                )
            if odd := [t for t in level if t is not None and not isinstance(t, str)]:
                raise ValueError(
                    f"SidVocab.from_tokens: levels must hold tokens' names or None (got {odd[0]!r})"
                )
        frame = [token for token in (begin, end) if token is not None]
        names = dict.fromkeys([*frame, *(token for level in levels for token in level if token)])
        if add:
            add_tokens(tokenizer, None, list(names))
        ids = {t: number for t in names if (number := token_id(tokenizer, t)) is not None}
        lacking = [token for token in names if token not in ids]
        if lacking:
            raise ValueError(
                f"SidVocab.from_tokens: tokenizer must have every token (got none for "
                f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}: {len(lacking)} of "
                f"{len(names)}); SidVocab.from_tokens(..., add=True) adds them"
            )
        return cls(
            [[-1 if token is None else ids[token] for token in level] for level in levels],
            begin=None if begin is None else ids[begin],
            end=None if end is None else ids[end],
            eos=tokenizer.eos_token_id,
        )


def check_tokenizer(op: str, tokenizer: Any, model: Any = None) -> None:
    """
    Raises:
        ValueError: `tokenizer` is no tokenizer of transformers, or `model` is neither a model nor
            None.
    """
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise ValueError(
            f"{op}: tokenizer must be a tokenizer of transformers (got {type(tokenizer).__name__})"
        )
    if model is not None and not hasattr(model, "get_input_embeddings"):
        raise ValueError(
            f"{op}: model must be a model of transformers or None (got {type(model).__name__})"
        )


def add_tokens(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel | None,
    tokens: Sequence[str],
    special: bool = False,
) -> None:
    """Make every string of `tokens` one token, and make rows for them in a model's embedding, which
    never shrinks.

    Args:
        special: make special tokens of them, also of those that are there already. Else those
            stay what they are.
    """
    from transformers import AddedToken

    # To add a special token once more as a plain one would leave it half special.
    wanted = tokens if special else [t for t in tokens if token_id(tokenizer, t) is None]
    added = [AddedToken(token, special=special, normalized=False) for token in wanted]
    tokenizer.add_tokens(added, special_tokens=special)
    if model is not None:
        highest = max(token_id(tokenizer, token) or 0 for token in tokens)
        if highest >= len(model.get_input_embeddings().weight):  # type: ignore[arg-type]
            model.resize_token_embeddings(highest + 1, mean_resizing=False)


def add_special_tokens(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None, tokens: Sequence[str]
) -> list[int]:
    """Make every string of `tokens` one special token and return their ids, in order.

    They are special tokens so that `tokenizer(text, split_special_tokens=True)` keeps what people
    type as text. Ids are looked up by token, because a padded vocabulary (Qwen) makes
    `len(tokenizer)` and the embedding's rows differ.
    """
    add_tokens(tokenizer, model, tokens, special=True)
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]  # type: ignore[arg-type]


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    """The id of a token, None where the tokenizer has no such token: looked up, it would be the
    unknown token, or whatever the tokenizer takes for it."""
    found: Any = tokenizer.convert_tokens_to_ids(token)
    if found is None or found < 0 or tokenizer.convert_ids_to_tokens(found) != token:
        return None
    return int(found)
