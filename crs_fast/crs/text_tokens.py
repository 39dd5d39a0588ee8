"""Plain text as token ids and back, by a tokenizer that nobody else can change."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

from crs_fast._text import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_TOKEN = "<0x[0-9A-F]{2}>"


class TextTokens:
    """Tokenizes pieces of text, and puts pieces of a reply together again.

    It has a copy of the tokenizer: padding, truncation and `split_special_tokens` are state that
    other threads may set on the original. A piece is taken from the middle of a text: the copy puts
    no space before it and strips none, so what a piece becomes reads as the piece again. Tokens
    that mean something to the recommender or the model never come out of typed text: their names
    are cut in two before the tokenizer sees them.

    Args:
        tokenizer: what is copied.
        reserved: tokens beside the tokenizer's special ones that typed text must not become. Only
            added tokens count: a code that is an ordinary word may be typed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reserved: Iterable[int] = ()) -> None:
        added = tokenizer.added_tokens_decoder
        special = {token for token, about in added.items() if about.special}
        special |= set(tokenizer.all_special_ids)
        kept = special | {token for token in reserved if token in added}
        names = dict(zip(kept, tokenizer.convert_ids_to_tokens(list(kept)), strict=True))
        self._special = special
        self._fast, self._slow = _pieces(tokenizer), None
        if self._fast is None:
            self._slow = copy.deepcopy(tokenizer)
        # An unknown character may well become <unk>.
        self._reserved = kept - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
        vocab = tokenizer.get_vocab()
        patterns = sorted(map(re.escape, names.values()), key=len, reverse=True)
        patterns += [_BYTE_TOKEN] if "<0x0A>" in vocab else []
        self._names = re.compile("|".join(patterns)) if patterns else None
        self._marks = [(t, name) for t, name in sorted(names.items()) if name.isascii() and name]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text. All go to the tokenizer in one call: a call costs more than
        a line."""
        cut = [self._cut(well_formed(text)) for text in texts]
        encoded = iter(self._encode(list(chain.from_iterable(cut))))
        return [
            list(chain.from_iterable(self._without_reserved(part, next(encoded)) for part in parts))
            for parts in cut
        ]

    def _cut(self, text: str) -> list[str]:
        """The text in parts, none of which holds the name of a reserved token."""
        if self._names is None:
            return [text] if text else []
        places = [0, *(found.start() + 1 for found in self._names.finditer(text)), len(text)]
        return [text[a:b] for a, b in pairwise(places) if a < b]

    def _encode(self, parts: list[str]) -> list[list[int]]:
        if not parts:
            return []
        if self._fast is not None:
            encodings = self._fast.encode_batch_fast(parts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        assert self._slow is not None
        encoded = self._slow(parts, add_special_tokens=False, split_special_tokens=True)
        return [list(ids) for ids in encoded["input_ids"]]

    def _without_reserved(self, part: str, ids: list[int]) -> list[int]:
        """A normalizer can write a reserved name out of other characters (full-width ones, say):
        one by one they can't."""
        if self._reserved.isdisjoint(ids):
            return ids
        one_by_one = chain.from_iterable(self._encode(list(part)))
        return [token for token in one_by_one if token not in self._reserved]

    def decode(self, parts: Sequence[list[int] | str]) -> str:
        """Token ids and ready text, in order, as one text. Ids are decoded together, since many
        tokenizers drop the space at the beginning of what they decode; special tokens are left
        out."""
        ready = [part for part in parts if isinstance(part, str)]
        for mark, name in self._marks if ready else [(0, "")]:
            # The mark stands for ready text. One whose name was written out too won't do.
            ids = [t for p in parts for t in ([mark] if isinstance(p, str) else self._plain(p))]
            whole = self._decode(ids)
            between = whole.split(name) if ready else [whole]
            if len(between) == len(ready) + 1:
                return "".join(chain.from_iterable(zip(between, [*ready, ""], strict=True)))
        decoded = (p if isinstance(p, str) else self._decode(self._plain(p)) for p in parts)
        return "".join(decoded)

    def _plain(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token not in self._special]

    def _decode(self, ids: list[int]) -> str:
        if self._fast is not None:
            return str(self._fast.decode(ids, skip_special_tokens=False))
        assert self._slow is not None
        text = self._slow.decode(
            ids,
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
            spaces_between_special_tokens=False,
        )
        return str(text)


def _pieces(tokenizer: PreTrainedTokenizerBase) -> Any:
    """A copy of a fast tokenizer for pieces of text; None for a tokenizer in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    described = json.loads(backend.to_str())
    described |= {"truncation": None, "padding": None, "post_processor": None}
    described["normalizer"] = _kept(described["normalizer"])
    described["pre_tokenizer"] = _kept(described["pre_tokenizer"])
    made = type(backend).from_str(json.dumps(described))
    made.encode_special_tokens = True  # what is typed is text
    return made


def _kept(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer or pre-tokenizer that neither adds nor strips white space at the edges."""
    if step is None or step["type"] in ("Prepend", "Strip"):
        return None
    for inner in ("normalizers", "pretokenizers"):
        if inner in step:
            kinds = [part["type"] for part in step[inner]]
            # Words without their spaces: the prefix is all that tells where one begins.
            if "WhitespaceSplit" in kinds or "Whitespace" in kinds:
                return step
            parts = [part for part in map(_kept, step[inner]) if part is not None]
            return {**step, inner: parts} if parts else None
    changed = dict(step)
    if step["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
        changed["add_prefix_space"] = False
    return changed
