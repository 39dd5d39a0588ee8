"""Several catalogues in one text (films, books, songs), each chosen by its begin token.

    I read <BOOK><a_3><b_1><EOI> and would like <FILM><a_3><b_7><EOI>

They are one trie whose first code is the type, and the begin tokens are the tokens of these codes.
So the model chooses a type as it chooses a code, and filters, item ids and SIDs are those of any
trie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from crs_fast.ops.host import check_integer

from .sid_trie import SidTrie
from .sid_vocab import SidVocab
from .vocabulary import Vocabulary


class TypedVocab(SidVocab):
    """The vocabulary of a typed catalogue: the tokens of level 0 open a SID in text, and are its
    first code."""

    KIND = "typed"

    @property
    def begins(self) -> tuple[int, ...]:
        return tuple(self.token_ids[0].tolist())

    @property
    def opens_with_code(self) -> bool:
        return True

    def code_tokens(self) -> torch.Tensor:
        """Text may hold a begin token, which opens a SID there."""
        return super().code_tokens()[~torch.isin(super().code_tokens(), self.token_ids[0])]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.KIND, **super().to_dict()}


class TypedCatalogue(NamedTuple):
    """What takes the places of `trie` and `vocab` everywhere."""

    trie: SidTrie
    vocab: TypedVocab


def typed_catalogue(
    tries: Mapping[int, SidTrie], vocab: Vocabulary | Mapping[int, Vocabulary]
) -> TypedCatalogue:
    """Join catalogues of several types.

    Args:
        tries: the catalogue of each begin token; the first one is type 0. No item may be in two of
            them.
        vocab: the tokens of their codes, one `SidVocab` for all or one for each begin token, with
            one `end`. Their own `begin` does not count. Types may share code tokens.

    Returns:
        trie: its SIDs are [type, codes...]. Where types have code tokens of their own, those of the
            later types have other codes than before.
        vocab: `SidLogitsProcessor` constrains after each begin token, and `recommend` ranks all
            types together, or the type whose begin token the prompt ends with.

    Raises:
        ValueError: no type, a begin token that is no token id or stands for a code, a vocabulary of
            another kind or without codes of its trie, vocabularies with several `end`s or none, or
            an item in two catalogues.
    """
    if not isinstance(tries, Mapping):
        raise ValueError(
            "typed_catalogue: tries must map begin tokens to catalogues "
            f"(got {type(tries).__name__})"
        )
    if not tries:
        raise ValueError("typed_catalogue: tries must hold at least one catalogue (got none)")
    for begin, trie in tries.items():
        check_integer("typed_catalogue: the begin tokens of tries", begin, 0)
        if not isinstance(trie, SidTrie):
            raise ValueError(
                "typed_catalogue: tries must hold a SidTrie for each begin token "
                f"(got {type(trie).__name__})"
            )
    begins = [int(begin) for begin in tries]
    vocabs = [
        _checked(trie, vocab.get(begin) if isinstance(vocab, Mapping) else vocab)
        for begin, trie in tries.items()
    ]
    end = _common_end(vocabs)
    levels = max(trie.num_levels for trie in tries.values())
    tokens = [_joined_level(vocabs, level) for level in range(levels)]
    taken = {token for of_level in tokens for token in of_level} | {end}
    if clash := [begin for begin in begins if begin in taken]:
        raise ValueError(
            f"typed_catalogue: a begin token must stand for no code or end (got {clash[0]})"
        )
    rows = [
        _rows(kind, trie, of_type, tokens)
        for kind, (trie, of_type) in enumerate(zip(tries.values(), vocabs, strict=True))
    ]
    ids = [item_id for trie in tries.values() for item_id in trie.item_ids.tolist()]
    joined = TypedVocab([begins, *tokens], end=end, eos=vocabs[0].eos)
    return TypedCatalogue(SidTrie.from_sids(torch.cat(rows), ids), joined)


def as_catalogue(trie: Any, vocab: Any) -> tuple[SidTrie, Vocabulary | None]:
    """`trie` and `vocab` as a caller gives them, a mapping of begin tokens joined. To join takes
    time: give the `typed_catalogue` itself where many calls share it."""
    return typed_catalogue(trie, vocab) if isinstance(trie, Mapping) else (trie, vocab)


def _checked(trie: SidTrie, vocab: Vocabulary | None) -> SidVocab:
    if not isinstance(vocab, SidVocab):
        raise ValueError(
            "typed_catalogue: vocab must be a SidVocab, or have one for each begin token "
            f"(got {type(vocab).__name__})"
        )
    trie.vocabulary(vocab, "typed_catalogue")
    return vocab


def _common_end(vocabs: Sequence[SidVocab]) -> int:
    ends = {vocab.end for vocab in vocabs}
    end = ends.pop()
    if end is None or ends:
        raise ValueError(
            "typed_catalogue: vocab must have one end token for all types "
            f"(got {sorted({str(vocab.end) for vocab in vocabs})})"
        )
    return end


def _joined_level(vocabs: Sequence[SidVocab], level: int) -> list[int]:
    """The distinct tokens of a level of all types; the first type's keep their codes."""
    of_types = [v.token_ids[level].tolist() for v in vocabs if level < v.num_levels]
    first, *rest = of_types
    known = set(first)
    return [*first, *dict.fromkeys(t for ids in rest for t in ids if t >= 0 and t not in known)]


def _rows(
    kind: int, trie: SidTrie, vocab: SidVocab, tokens: Sequence[Sequence[int]]
) -> torch.Tensor:
    """A type's SIDs with their type before them, int64 [n, 1 + L], in the joint codes."""
    own = trie.sids()
    rows = own.new_full((len(own), 1 + len(tokens)), -1)
    rows[:, 0] = kind
    for level, codes in enumerate(own.t()):
        code_of = {token: code for code, token in enumerate(tokens[level]) if token >= 0}
        joint = [code_of.get(token, -1) for token in vocab.token_ids[level].tolist()]
        table = torch.tensor([*joint, -1], dtype=torch.int64, device="cpu")  # -1 reads the last
        rows[:, 1 + level] = table[codes]
    return rows
