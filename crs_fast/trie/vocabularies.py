"""Vocabularies from their saved descriptions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from crs_fast._arguments import check_kind

from .sid_vocab import SidVocab
from .title_vocab import TitleVocab
from .token_ids import TokenIds
from .typed import TypedVocab
from .vocabulary import Vocabulary

_SIDS = "sids"  # their descriptions name no kind
_KINDS: dict[str, type[Vocabulary]] = {
    _SIDS: SidVocab,
    TitleVocab.KIND: TitleVocab,
    TokenIds.KIND: TokenIds,
    TypedVocab.KIND: TypedVocab,
}


def vocabulary_from_dict(description: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary that `Vocabulary.to_dict` described.

    Raises:
        ValueError: an unknown kind of vocabulary, or other keys than `to_dict` writes.
    """
    check_kind("vocabulary_from_dict: description", description, Mapping, "a mapping")
    arguments = dict(description)
    kind = arguments.pop("kind", _SIDS)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"vocabulary_from_dict: kind must be one of {sorted(_KINDS)} (got {kind!r})"
        )
    try:
        inspect.signature(_KINDS[kind]).bind(**arguments)
    except TypeError as error:
        raise ValueError(
            "vocabulary_from_dict: description must hold what Vocabulary.to_dict writes "
            f"(got {sorted(map(str, description))}: {error})"
        ) from None
    return _KINDS[kind](**arguments)
