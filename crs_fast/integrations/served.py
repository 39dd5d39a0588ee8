"""What the engines' processors share: the catalogue of a served model, and a request's options."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from os import PathLike
from typing import Any, NamedTuple

from crs_fast.crs.checkpoint import is_bundle, load_catalogue
from crs_fast.crs.hub import local_folder
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary, load_index

_NAMES = ("sid", "sid_allow", "sid_deny", "sid_prefix")
_ON, _OFF = "on", "off"
ItemId = int | str


def served_catalogue(
    model: str | PathLike[str],
    index: str | PathLike[str] | None = None,
    tokenizer: str | PathLike[str] | None = None,
) -> tuple[SidTrie, Vocabulary]:
    """The catalogue of a model directory: the one that training saved in it, or, in any other
    directory, an index file (see `crs_fast.load_index`).

    Args:
        model: a directory, or the name of a model on the hub.
        index: the index file; None takes the model directory's own catalogue, or the file
            `sid_index.*` in it.
        tokenizer: where the tokenizer is, which an index file needs; None means `model`.

    Raises:
        ValueError: the directory holds no catalogue, or several.
    """
    folder = local_folder(model)
    if index is None and is_bundle(folder):
        return load_catalogue(folder)
    if index is None:
        files = sorted(folder.glob("sid_index.*"))
        if len(files) != 1:
            raise ValueError(
                f"served_catalogue: {folder} must hold a catalogue: crs_fast.json, or one file "
                f"sid_index.* (got {[file.name for file in files] or 'neither'}); or set sid_index "
                "to an index file"
            )
        index = files[0]
    from transformers import AutoTokenizer

    loaded = load_index(
        index, AutoTokenizer.from_pretrained(tokenizer or folder, trust_remote_code=False)
    )
    assert loaded.vocab is not None  # a tokenizer was given
    return loaded.trie, loaded.vocab


class RequestOptions(NamedTuple):
    """What one request asks for.

    is_on: whether its answers are constrained at all
    allow, deny: ids of the items that it may name alone, or may not; None is no condition
    prefix: the prompt's last tokens that belong to a SID which has begun, 0 where it begins right
        after the prompt; None where the vocabulary's begin token says so
    """

    is_on: bool = True
    allow: tuple[ItemId, ...] | None = None
    deny: tuple[ItemId, ...] | None = None
    prefix: int | None = None

    @classmethod
    def read(cls, arguments: Mapping[str, Any] | None) -> RequestOptions:
        """From a request's flat arguments: `sid` "on" or "off", `sid_allow` and `sid_deny`, lists
        of item ids, and `sid_prefix`, a number. Others are not looked at.

        Raises:
            ValueError: an argument of another kind, or an unknown one that begins with `sid_`.
        """
        given = {k: v for k, v in (arguments or {}).items() if k == "sid" or k.startswith("sid_")}
        if unknown := sorted(given.keys() - set(_NAMES)):
            raise ValueError(
                f"sid: arguments must be among {', '.join(_NAMES)} (got {unknown[0]!r})"
            )
        state = given.get("sid", _ON)
        if state not in (_ON, _OFF):
            raise ValueError(f"sid: sid must be 'on' or 'off' (got {state!r})")
        prefix = given.get("sid_prefix")
        if prefix is not None and (type(prefix) is not int or prefix < 0):
            raise ValueError(f"sid: sid_prefix must be a number from 0 on (got {prefix!r})")
        allow, deny = (_ids(name, given.get(name)) for name in ("sid_allow", "sid_deny"))
        return cls(state == _ON, allow, deny, prefix)

    def opened(self, begins_by_token: bool) -> RequestOptions:
        """These options, where a SID begins right after the prompt if no begin token says so."""
        return self._replace(prefix=0) if self.prefix is None and not begins_by_token else self

    def written(self, num_output: int) -> int:
        """How many tokens of the announced SID stand at the end of a row that has so many tokens
        behind its prompt; -1 where none was announced."""
        return -1 if self.prefix is None else self.prefix + num_output


class RequestFilters:
    """The items that requests may name, as filters over one trie. Requests that ask for the same
    share one, as the beams of a search do."""

    def __init__(self, trie: SidTrie) -> None:
        self.trie = trie
        self._made = lru_cache(maxsize=256)(self._make)

    def of(self, options: RequestOptions) -> ItemFilter | None:
        """The filter of a request; None if it may name every item. Ids that the catalogue lacks
        allow and deny nothing, which a warning says: raising would stop the engine for
        everybody."""
        if options.allow is None and options.deny is None:
            return None
        return self._made(options.allow, options.deny)

    def _make(
        self, allow: tuple[ItemId, ...] | None, deny: tuple[ItemId, ...] | None
    ) -> ItemFilter:
        known = [None if ids is None else _known(self.trie, ids) for ids in (allow, deny)]
        return self.trie.filter(allow=known[0], deny=known[1])


def _ids(name: str, value: Any) -> tuple[ItemId, ...] | None:
    if value is None:
        return None
    listed = [value] if isinstance(value, (int, str)) else value
    if not isinstance(listed, Sequence) or any(type(one) not in (int, str) for one in listed):
        raise ValueError(f"sid: {name} must be a list of item ids (got {json.dumps(value)[:80]})")
    return tuple(listed)


def _known(trie: SidTrie, ids: Sequence[ItemId]) -> list[ItemId]:
    """Those of the ids that the catalogue has, as numbers or text, whichever its ids are."""
    kind: type[int] | type[str] = str if trie.item_ids.numbers is None else int
    if not len(trie.item_ids):
        return []
    converted = [_converted(one, kind) for one in ids]
    try:
        trie.item_ids.positions(converted)
        return converted
    except (KeyError, ValueError):
        is_known = [_is_item(trie, one) for one in converted]
    unknown = converted[is_known.index(False)]
    warnings.warn(
        f"sid_allow and sid_deny should hold items of the catalogue (got {unknown!r}): unknown ids "
        "are left out",
        stacklevel=2,
    )
    return [one for one, known in zip(converted, is_known, strict=True) if known]


def _converted(one: ItemId, kind: type[int] | type[str]) -> ItemId:
    """The id as a number or text; text that is no number stays text."""
    try:
        return kind(one)
    except ValueError:
        return one


def _is_item(trie: SidTrie, one: ItemId) -> bool:
    try:
        trie.item_ids.positions([one])
    except (KeyError, ValueError):
        return False
    return True
