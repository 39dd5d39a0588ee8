"""How the tokens of codes are called, in files and in tokenizers."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from crs_fast.trie.sid_vocab import BEGIN, END, SidVocab, add_tokens, token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NUMBERED = re.compile(r"(.*?)(0|[1-9][0-9]*)([^0-9]*)", re.DOTALL)


class LevelNames(NamedTuple):
    """The names of one level's tokens: `prefix`, code, `suffix`, or, where `listed` is given, that
    list's entry for the code."""

    prefix: str = ""
    suffix: str = ""
    listed: tuple[str, ...] | None = None

    def of(self, code: int) -> str:
        return f"{self.prefix}{code}{self.suffix}" if self.listed is None else self.listed[code]


class Naming(NamedTuple):
    """A family's names: of level l's token of code c, and of the tokens that frame a SID."""

    prefix: str
    begin: str
    end: str

    def levels(self, count: int) -> list[LevelNames]:
        return [LevelNames(f"{self.prefix}{string.ascii_lowercase[l]}_", ">") for l in range(count)]


LC_REC = Naming("<", BEGIN, END)  # MiniOneRec's too, and this package's, which adds the frame
ONE_REC = Naming("<s_", "<|sid_begin|>", "<|sid_end|>")  # RecIF's and FlashRec's too
NAMINGS = (LC_REC, ONE_REC)


def names_of_tokens(tokens: Sequence[str]) -> tuple[LevelNames, dict[str, int]]:
    """How the distinct tokens of one level are called, and their codes: the number in each token
    where all are one text around a number (`<a_17>`), else the rank among the sorted tokens."""
    matches = [_NUMBERED.fullmatch(token) for token in tokens]
    found = [match.groups() for match in matches if match]
    if len(found) == len(tokens) and len({(a, b) for a, _, b in found}) == 1:
        prefix, _, suffix = found[0]
        codes = {token: int(n) for token, (_, n, _) in zip(tokens, found, strict=True)}
        return LevelNames(prefix, suffix), codes
    listed = tuple(sorted(tokens))
    return LevelNames(listed=listed), {token: code for code, token in enumerate(listed)}


def naming_in(
    tokenizer: PreTrainedTokenizerBase, codes: Sequence[int], default: Naming | None = None
) -> Naming:
    """The family of which the tokenizer has the token of any of these codes at level 0, else the
    default one.

    Raises:
        ValueError: there is neither.
    """
    for naming in NAMINGS:
        names = naming.levels(1)[0]
        if any(token_id(tokenizer, names.of(code)) is not None for code in codes):
            return naming
    if default is not None:
        return default
    known = " or ".join(repr(naming.levels(1)[0].of(codes[0])) for naming in NAMINGS)
    raise ValueError(
        f"load_index: tokenizer must have code tokens such as {known} (got neither); "
        "load_index(..., model=model) adds them, or leave tokenizer out and give names to "
        "SidVocab.from_tokens"
    )


def _family(names: Sequence[LevelNames]) -> Naming | None:
    """The family that names of levels belong to."""
    return next((naming for naming in NAMINGS if names[0] == naming.levels(1)[0]), None)


def _lacking(
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[LevelNames],
    level_codes: Sequence[torch.Tensor],
) -> tuple[list[str], list[str]]:
    """The tokens of a catalogue, and those of them that a tokenizer lacks."""
    pairs = zip(names, level_codes, strict=True)
    tokens = [named.of(code) for named, codes in pairs for code in codes.tolist()]
    return tokens, [token for token in tokens if token_id(tokenizer, token) is None]


def add_names(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    names: Sequence[LevelNames],
    level_codes: Sequence[torch.Tensor],
) -> None:
    """Where a tokenizer lacks tokens of a catalogue, add these and the two that frame a SID, and
    grow the model's embedding. One that has them all is left as it is: its model was trained with
    or without the frame."""
    tokens, lacking = _lacking(tokenizer, names, level_codes)
    if lacking:
        family = _family(names)
        frame = [] if family is None else [family.begin, family.end]
        add_tokens(tokenizer, model, [*frame, *tokens])


def vocabulary(
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[LevelNames],
    level_codes: Sequence[torch.Tensor],
) -> SidVocab:
    """The vocabulary of a catalogue. Codes that no item carries take part where the tokenizer has a
    token for them, so that free text can't hold it.

    Args:
        level_codes: the codes of each level of the catalogue, ascending, int64 [n].

    Raises:
        ValueError: a token of the catalogue that the tokenizer lacks.
    """
    tokens, lacking = _lacking(tokenizer, names, level_codes)
    if lacking:
        raise ValueError(
            f"load_index: tokenizer must have every token of the catalogue (got none for "
            f"{', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}: {len(lacking)} of "
            f"{len(tokens)}); load_index(..., model=model) adds them"
        )
    levels: list[list[str | None]] = []
    for named, codes in zip(names, level_codes, strict=True):
        used = set(codes.tolist())
        size = max(used) + 1 if named.listed is None else len(named.listed)
        level = [
            name if code in used or token_id(tokenizer, name) is not None else None
            for code, name in enumerate(map(named.of, range(size)))
        ]
        while named.listed is None and token_id(tokenizer, named.of(len(level))) is not None:
            level.append(named.of(len(level)))
        levels.append(level)
    family = _family(names)
    if family is None or any(token_id(tokenizer, t) is None for t in (family.begin, family.end)):
        return SidVocab.from_tokens(tokenizer, levels)
    return SidVocab.from_tokens(tokenizer, levels, family.begin, family.end)
