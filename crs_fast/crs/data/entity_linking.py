"""Finding catalogue titles in what people type.

`link_items` reads free chat, so it is strict: a whole title, letters and digits equal, blind to
case, accents, punctuation and spacing inside the title ("spiderman" is Spider-Man, "&" is "and"),
with an optional year after it. The longest title wins. A title that several items carry is linked
only when a year says which, and is text otherwise, as is a title followed by another "(year)".

Everyday titles ("It", "Her", "Get Out", "1917") would be found in every second message. A title
made only of very common words, digits or single letters is linked only when the writer marked it
as a title: by its year, by quotation marks, or by capitals that neither the start of a sentence,
nor a word that often opens one, nor a shouted message explains. So "I loved Her" links and "I met
her" does not; "get out was fun" is missed, which costs less than seeing films nobody named.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from crs_fast.crs.data.dialogue import Item, Mention
from crs_fast.crs.data.title_words import EVERYDAY, Span, Word, choose, words_of

# Words that a capitalised title leaves in lower case.
_SMALL = frozenset(
    ("a", "an", "and", "as", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to")
)
# Words whose capital says nothing: the pronoun, and words that open sentences, which chat seldom
# ends with a full stop.
_OPENER_WORDS = """
awesome haha hello hey hi i id ill im it ive lol love loved no oh ok okay remember so take thank
thanks that they this we well what wow yeah yes you
"""
_OPENERS = frozenset(_OPENER_WORDS.split())
_SENTENCE_END = re.compile(r"(?:^|[.!?:;\n])\W*$")
_QUOTES = "\"'*“”‘’«»"
_MAX_GAP = 4


class TitleIndex:
    """A catalogue's titles, prepared once for many texts.

    Args:
        items: the catalogue, or the part of it that may be found.
        everyday: titles made only of these words (lower case, no punctuation) need a mark; an
            empty set turns that off.
    """

    def __init__(self, items: Iterable[Item], everyday: frozenset[str] = EVERYDAY) -> None:
        self.everyday = everyday
        self._items: dict[str, list[Item]] = defaultdict(list)
        self._one_word: set[str] = set()
        for item in items:
            words = words_of(item.title)
            if key := "".join(word.key for word in words):
                self._items[key].append(item)
                if len(words) == 1:
                    self._one_word.add(key)
        self._keys = sorted(self._items)

    def link(self, text: str) -> list[Mention]:
        """The items that `text` names, in order; see `link_items`."""
        words = words_of(text)
        mentions: list[Mention] = []
        at = 0
        while at < len(words):
            span = self._longest(text, words, at)
            if span is None:
                at += 1
                continue
            item, end, by_year = choose(self._items[span.key], text, span.end)
            if not by_year and self._needs_mark(text, words, span):
                at += 1
                continue
            at = span.last
            if item is not None:
                mentions.append(Mention(item.item_id, words[span.first].start, end))
                while at < len(words) and words[at].start < end:
                    at += 1
        return mentions

    def _longest(self, text: str, words: Sequence[Word], first: int) -> Span | None:
        best, key = None, ""
        for last in range(first + 1, len(words) + 1):
            word = words[last - 1]
            if last - 1 > first:
                gap = text[words[last - 2].end : word.start]
                if len(gap) > _MAX_GAP or "\n" in gap:
                    break
            key += word.key
            if _is_possessive(text, word) and self._spells(text, words[first:last], key[:-1]):
                best = Span(first, last, word.end - 2, key[:-1])
            if self._spells(text, words[first:last], key):
                best = Span(first, last, word.end, key)
            place = bisect_left(self._keys, key)
            if place == len(self._keys) or not self._keys[place].startswith(key):
                break
        return best

    def _spells(self, text: str, words: Sequence[Word], key: str) -> bool:
        """Whether `words` may be the title `key`. A one-word title is not put together across
        spaces: "may be" is not Maybe, while "Wall-E" is WALL·E."""
        if key not in self._items:
            return False
        return key not in self._one_word or not any(map(_has_space, _gaps(text, words)))

    def _needs_mark(self, text: str, words: Sequence[Word], span: Span) -> bool:
        """Whether the span reads as everyday words that nothing marks as a title."""
        run = words[span.first : span.last]
        if not self.everyday:
            return False
        if not all(w.key in self.everyday or w.key.isdigit() or len(w.key) == 1 for w in run):
            return False
        before, after = text[: run[0].start], text[span.end : span.end + 1]
        if before and after and before[-1] in _QUOTES and after in _QUOTES:
            return False
        return not _is_capitalised(text, run, bool(_SENTENCE_END.search(before)))


def link_items(text: str, items: Iterable[Item] | TitleIndex) -> list[Mention]:
    """Find catalogue titles in free text (this module's docstring has the rules).

    Args:
        text: what someone typed.
        items: the catalogue; give a `TitleIndex` where many texts are linked.

    Returns:
        Located mentions in text order that do not overlap; a year that belongs to a mention is
        part of it.
    """
    index = items if isinstance(items, TitleIndex) else TitleIndex(items)
    return index.link(text)


def _is_possessive(text: str, word: Word) -> bool:
    return text[word.end - 2 : word.end].lower() in ("'s", "’s")


def _gaps(text: str, words: Sequence[Word]) -> Iterator[str]:
    return (text[a.end : b.start] for a, b in pairwise(words))


def _has_space(gap: str) -> bool:
    return any(map(str.isspace, gap))


def _is_capitalised(text: str, run: Sequence[Word], starts_sentence: bool) -> bool:
    """Whether capitals mark the words as a title: all but small words have one, and one of them
    is explained neither by a sentence's start, nor by being a word that often opens one, nor by
    standing in a message without lower case."""
    if text == text.upper():
        return False
    evidence = False
    for place, word in enumerate(run):
        capital = text[word.start].isupper()
        may_be_lower = text[word.start].isdigit() or (place > 0 and word.key in _SMALL)
        if not capital and not may_be_lower:
            return False
        opens = (place == 0 and starts_sentence) or word.key in _OPENERS
        explained = opens or len(word.key) == 1
        evidence |= capital and not explained
    return evidence
