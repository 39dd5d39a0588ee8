"""Finding catalogue titles in what people type.

`link_items` reads free chat, so it is strict: a whole title, letters and digits equal, blind to
case, accents, punctuation and spacing inside the title ("spiderman" is Spider-Man, "&" is "and"),
with an optional year after it, in any script (see `title_words`). The longest title wins. A title
that several items carry is linked only when a year says which, and is text otherwise, as is a title
followed by another "(year)".

Everyday titles ("It", "Her", "Get Out", "1917") would be found in every second message. A title
made only of very common words, digits or single letters is linked only when the writer marked it
as a title: by its year, by quotation marks, or by capitals that neither the start of a sentence,
nor a word that often opens one, nor a shouted message explains. So "I loved Her" links and "I met
her" does not; "get out was fun" is missed, which costs less than seeing films nobody named. A title
of one character ("她"), or of a few where a character is less than a syllable, needs a mark, too.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from crs_fast.crs.data.dialogue import Item, Mention
from crs_fast.crs.data.title_words import EVERYDAY, Span, Word, choose, is_short, words_of

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
_SENTENCE_ENDS = frozenset(".!?:;\n。！？：；؟।")
_QUOTES = "\"'*“”‘’«»„‚‹›＂＇"
_OPENING, _CLOSING = (frozenset(_QUOTES + more) for more in ("《〈「『", "》〉」』"))
_MAX_GAP = 4
MAX_CHARACTERS = 1_000_000


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
        self._solid: set[str] = set()
        for item in items:
            key, is_solid = _title_key(item)
            if key:
                self._items[key].append(item)
                if is_solid:
                    self._solid.add(key)
        self._keys = sorted(self._items)

    def changed(self, add: Iterable[Item], remove: Iterable[Item]) -> TitleIndex:
        """The index of the catalogue without some items and then with others at its end."""
        other = copy.copy(self)
        other._items, other._solid = self._items.copy(), self._solid.copy()
        other._keys = self._keys.copy()
        gone = {item.item_id for item in remove}
        added: dict[str, list[Item]] = defaultdict(list)
        for item in add:
            added[_title_key(item)[0]].append(item)
        for key in {*added, *(_title_key(item)[0] for item in remove)} - {""}:
            left = [item for item in self._items.get(key, ()) if item.item_id not in gone]
            other._put(key, [*left, *added.get(key, ())])
        return other

    def _put(self, key: str, items: list[Item]) -> None:
        """Make these the items of a title."""
        self._solid.discard(key)
        place = bisect_left(self._keys, key)
        if not items:
            del self._items[key], self._keys[place]
            return
        if key not in self._items:
            self._keys.insert(place, key)
        self._items[key] = items
        if any(_title_key(item)[1] for item in items):
            self._solid.add(key)

    def link(self, text: str) -> list[Mention]:
        """The items that `text` names, in order; see `link_items`."""
        if len(text) > MAX_CHARACTERS:
            raise ValueError(
                f"link_items: text must have at most {MAX_CHARACTERS} characters (got {len(text)})"
            )
        words = words_of(text)
        shouted = text == text.upper()
        mentions: list[Mention] = []
        at = 0
        while at < len(words):
            span = self._longest(text, words, at)
            if span is None:
                at += 1
                continue
            item, end, by_year = choose(self._items[span.key], text, span.end)
            if not by_year and self._needs_mark(text, words, span, shouted):
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
                before = words[last - 2].end
                if word.start - before > _MAX_GAP or "\n" in text[before : word.start]:
                    break
            stems = word.stems
            if _is_possessive(text, word):
                stems = (*stems, (word.key[:-1], word.end - 2))
            for stem, end in stems:
                if self._spells(text, words, first, last, key + stem):
                    best = Span(first, last, end, key + stem)
            key += word.key
            if self._spells(text, words, first, last, key):
                best = Span(first, last, word.end, key)
            place = bisect_left(self._keys, key)
            if place == len(self._keys) or not self._keys[place].startswith(key):
                break
        return best

    def _spells(self, text: str, words: Sequence[Word], first: int, last: int, key: str) -> bool:
        """Whether `words[first:last]` may be the title `key`. A title written without a gap is not
        put together across spaces: "may be" is not Maybe, while "Wall-E" is WALL·E. Where words
        have no spaces between them, any gap says that another word begins."""
        if key not in self._items:
            return False
        if key not in self._solid:
            return True
        for a, b in pairwise(words[first:last]):
            gap = text[a.end : b.start]
            if gap and (a.unspaced or b.unspaced or any(map(str.isspace, gap))):
                return False
        return True

    def _needs_mark(self, text: str, words: Sequence[Word], span: Span, shouted: bool) -> bool:
        """Whether the span reads as everyday words that nothing marks as a title."""
        run = words[span.first : span.last]
        if not self.everyday:
            return False
        if not (is_short(text, run, span.key) or all(map(self._is_everyday, run))):
            return False
        start, end = run[0].start, span.end
        if text[max(start - 1, 0) : start] in _OPENING and text[end : end + 1] in _CLOSING:
            return False
        return shouted or not _is_capitalised(text, run, _starts_sentence(text, start))

    def _is_everyday(self, word: Word) -> bool:
        if word.unspaced:
            return False
        return word.key in self.everyday or word.key.isdigit() or len(word.key) == 1


def _title_key(item: Item) -> tuple[str, bool]:
    """What the item's title is found by, "" for a title without letters and digits, and whether it
    is written without a gap."""
    words = words_of(item.title)
    is_solid = "&" not in item.title and all(a.end == b.start for a, b in pairwise(words))
    return "".join(word.key for word in words), is_solid


def link_items(text: str, items: Iterable[Item] | TitleIndex) -> list[Mention]:
    """Find catalogue titles in free text (this module's docstring has the rules).

    Args:
        text: what someone typed, at most 1,000,000 characters; the time is proportional to them.
        items: the catalogue; give a `TitleIndex` where many texts are linked.

    Returns:
        Located mentions in text order that do not overlap; a year that belongs to a mention is
        part of it.

    Raises:
        ValueError: a longer text.
    """
    index = items if isinstance(items, TitleIndex) else TitleIndex(items)
    return index.link(text)


def _is_possessive(text: str, word: Word) -> bool:
    return text[word.end - 2 : word.end].lower() in ("'s", "’s")


def _starts_sentence(text: str, start: int) -> bool:
    """Whether nothing but white space and punctuation, with the end of a sentence or of the text in
    it, stands before."""
    while start > 0:
        start -= 1
        if text[start] in _SENTENCE_ENDS:
            return True
        if text[start].isalnum() or text[start] == "_":
            return False
    return True


def _is_capitalised(text: str, run: Sequence[Word], starts_sentence: bool) -> bool:
    """Whether capitals mark the words as a title: all but small words have one, and one of them
    is explained neither by a sentence's start nor by being a word that often opens one."""
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
