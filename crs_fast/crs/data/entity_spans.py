"""Finding the items that a text is known to name.

Lenient where `entity_linking` is strict: falls back to articles left out, parts of the title, and
near spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from crs_fast.crs.data.dialogue import Item, Mention
from crs_fast.crs.data.title_words import EVERYDAY, Span, Word, choose, words_of

_NUMERALS = frozenset(
    (*map(str, range(2, 11)), *("ii", "iii", "iv", "v", "vi", "vii", "viii", "x"))
)
_ARTICLES = frozenset(("a", "an", "the"))
_PART_BREAK = re.compile(r":|\s[-–—]\s|\(|\)|[!?]\s|\bpart\b|\bchapter\b|\bvol\b", re.IGNORECASE)
_MIN_FUZZY = 4
_FUZZY = 0.85


def locate_items(text: str, items: Sequence[Item]) -> tuple[Mention, ...]:
    """Find where a text names items that it is known to name.

    Each entry of `items` takes one place of its own, longer titles first. Tried in turn: the whole
    title as in `link_items`, everyday or not; the title without its article or number, or one
    part of it ("Endgame"); a spelling near one of these (`difflib` ratio at least 0.85). Among
    equal places the one followed by the item's year wins, then a capitalised one, then the first.

    Args:
        text: the turn's text.
        items: what it names; an item that stands there twice is named twice.

    Returns:
        One mention an entry: located ones in text order, then those not found, without a place.
    """
    words = words_of(text) if items else []
    taken: set[int] = set()
    placed: list[Mention] = []
    missing = sorted(items, key=lambda item: -len(item.title))
    for find in (_whole_title, _title_parts, _near_spelling):
        open_items, missing = missing, []
        for item in open_items:
            free = [s for s in find(words, item) if taken.isdisjoint(range(s.first, s.last))]
            if not free:
                missing.append(item)
                continue
            mention, words_taken = _place(text, words, item, free)
            taken.update(words_taken)
            placed.append(mention)
    placed.sort(key=lambda mention: mention.start or 0)
    return (*placed, *(Mention(item.item_id) for item in missing))


def _place(
    text: str, words: Sequence[Word], item: Item, spans: Sequence[Span]
) -> tuple[Mention, range]:
    """The best of `spans` as a mention, and the words it covers."""

    def merit(span: Span) -> tuple[bool, bool, int]:
        dated = choose([item], text, span.end)[2]
        return dated, text[words[span.first].start].isupper(), -span.first

    best = max(spans, key=merit)
    chosen, end, _ = choose([item], text, best.end)
    end = best.end if chosen is None else end
    last = best.last
    while last < len(words) and words[last].start < end:
        last += 1
    return Mention(item.item_id, words[best.first].start, end), range(best.first, last)


def _spans_of(words: Sequence[Word], title: str) -> Iterator[Span]:
    """Runs of words that spell `title`, or its possessive."""
    for first in range(len(words)):
        key = ""
        for last in range(first, len(words)):
            word = words[last]
            for stem, end in word.stems:
                if key + stem == title:
                    yield Span(first, last + 1, end, title)
            key += word.key
            if key == title:
                yield Span(first, last + 1, word.end, title)
            elif key == title + "s" and word.key != "s":
                yield Span(first, last + 1, word.end - 1, title)
            if not title.startswith(key):
                break


def _title_key(title: str) -> str:
    return "".join(word.key for word in words_of(title))


def _is_telling(words: Sequence[str]) -> bool:
    """Whether the words can stand for a title whose rest is left out."""
    return not all(word in EVERYDAY or word.isdigit() for word in words)


def _forms(title: str) -> list[str]:
    """Keys of the title without its article, of its parts and of these without a sequel's number,
    longest first; what is too short or too common to stand for the title is left out."""
    keys = []
    for part in (title, *_PART_BREAK.split(title)):
        words = [word.key for word in words_of(part)]
        if words and words[0] in _ARTICLES:
            words = words[1:]
        stems = [words, words[:-1]] if words and words[-1] in _NUMERALS else [words]
        whole = part == title
        keys += ["".join(stem) for n, stem in enumerate(stems) if whole > n or _is_telling(stem)]
    return sorted({key for key in keys if len(key) > 1}, key=lambda key: (-len(key), key))


def _whole_title(words: Sequence[Word], item: Item) -> list[Span]:
    key = _title_key(item.title)
    return list(_spans_of(words, key)) if key else []


def _title_parts(words: Sequence[Word], item: Item) -> list[Span]:
    for form in _forms(item.title):
        if spans := list(_spans_of(words, form)):
            return spans
    return []


def _near_spelling(words: Sequence[Word], item: Item) -> list[Span]:
    """The run of words most like the title or a form of it, where it is like enough."""
    best, best_ratio = None, _FUZZY
    for form in (_title_key(item.title), *_forms(item.title)):
        if len(form) < _MIN_FUZZY:
            continue
        matcher = SequenceMatcher(None, "", form, autojunk=False)
        for span in _runs_about(words, len(form)):
            matcher.set_seq1(span.key)
            if matcher.real_quick_ratio() < best_ratio or matcher.quick_ratio() < best_ratio:
                continue
            ratio = matcher.ratio()
            if ratio > best_ratio or (best is None and ratio >= _FUZZY):
                best, best_ratio = span, ratio
    return [] if best is None else [best]


def _runs_about(words: Sequence[Word], length: int) -> Iterator[Span]:
    """Runs of words whose letters number about `length`."""
    for first in range(len(words)):
        key = ""
        for last in range(first, len(words)):
            key += words[last].key
            if len(key) > length / _FUZZY + 1:
                break
            if len(key) >= length * _FUZZY - 1:
                yield Span(first, last + 1, words[last].end, key)
