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

`locate_items` answers another question: where are the items that this text is known to name? It
may be lenient, and falls back to articles left out, parts of the title, and near spellings.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise

from crs_fast.crs.dialogue import Item, Mention

# Very common words of English and of talk about films; a title of these alone needs a mark.
_EVERYDAY_WORDS = """
a about above absolutely across action actor actors after again ago agree agreed ah all almost
alone along already also always am amazing american an and angel angels animated animation another
any anyone anything anyway are around as ask at away awesome baby bachelor back bad be beautiful
beauty because been before behind being believe best better between big birthday bit black bless
blue body book both box boy boys bride bring brother brothers but by bye call came can cannot cant
car care cars cat cats cell certainly chance change check checking cheers child children christmas
cinema circle city classic club coach code college come comedies comedy coming company contact
control conversation cool cop cops could country couple court crash crazy crime criminal criminals
cut cute dad daddy dance dancer dancing danger dark date daughter day days dead dear death
definitely detective did didnt die different dinner do doctor documentary does doesnt dog dogs
done dont door down drama dream dreams drive duel each early earth easy edge eight else end enemy
enjoy enough entertaining epic escape even ever every everybody everyone everything evil exactly
excellent except eye eyes faces fact fair faith fall family famous fan fantastic fantasy far fast
faster father favorite favourite fear feel fever few fight fighting film films find fine fire
first five flick flicks flight fly focus food football for forever found four free fresh friend
friends from full fun funny future game games gangster gave genre get ghost ghosts giant gift
gifts girl girls give glass glory go god going gold gone good goodbye got great greetings gross
guess gun guns guy guys had haha half hand happen happy hard has hate have haven havent he head
hear heard heart hello help her here hero heroes hey hi high hilarious him his hit hmm holiday
hollywood home honest honestly hoot hope horror hot house how huge human hunt hunter husband
husbands i ice idea if ill im in indeed inside intense interesting into is island isnt it its ive
jail job joke judge just justice keep kid kids kill killer killers killing kind king kings kiss
knew know known lady last late later laugh law least leave left legend legends less let lets lies
life light lights like liked line list listen little live living lol long look looking loser
losers lost lot lots love loved lovely luck lucky mad made magic make man many marriage mask
master match may maybe me mean men might mind mine miracle mom moms money monster month moon more
morning most mother mothers movie movies much mum murder music musical must my myself mystery name
need neighbor neighborhood neighbors neighbour never new news next nice night nine no nobody noise
none nope not nothing november now numbers nurse obsessed of off office oh ok okay old on once one
only open or original other others our out over own pain paradise parents paris part party pass
passion past peace people perfect perhaps person phone pieces pilot pirates place play player
please police popcorn power pretty pride prime prison private probably problem project promise
pure queen question quick quiet quite race rain rather read ready real reality really rebel rec
recommend red relax release remember rent revenge rich right ring rings road robot robots rock
roll romance romantic room rules run runner running sad safe said same saturday savage save saw
say scary school science scream second secret see seek seeker seen serial series serious seven
several sex shadow shadows shall shame she shock short should show shows side signs silly similar
since singer single sir sister sisters six sleep slow small smile smoke snow so soldier some
somebody someone something sometimes son song soon sorry sort soul sound sounds space speed spend
spirit sport sports spy stand star stars start stay still stop story strange stranger street
student stuff success such suggest summer sun sunday sunshine super superhero sure surprise
suspense swing take talk teacher teachers team teen tell ten than thank thanks that thats the
theater their them then there these they thief thing things think this those thought three
thriller through tiger time times title to today together told tomorrow tonight too top totally
touch touching town toys traffic trailer train trap trip trouble true trust truth try turn twins
two type uncle under until up upon us use used vacation vampire vampires very victory view village
voice wait walk want war was watch watched water way we wedding week weekend welcome well were
what whatever when where which while white who whole why wife wild will win wings winner winter
wish wishes witch with witness wolf woman women wonder wonderful word work world would wow writer
wrong yeah year years yep yes yet you young your yours zombie zombies
"""
EVERYDAY = frozenset(_EVERYDAY_WORDS.split())
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
_NUMERALS = frozenset(
    (*map(str, range(2, 11)), *("ii", "iii", "iv", "v", "vi", "vii", "viii", "x"))
)
_SAME = {"&": "and", "vs": "v", "versus": "v"}
_ARTICLES = frozenset(("a", "an", "the"))

_WORD = re.compile("&|(?:[^\\W_]|[\u0300-\u036f]|(?<=\\w)['’](?=\\w))+")
_YEAR = "((?:18|19|20)[0-9]{2})"
_YEAR_AFTER = re.compile(rf"[^\w(\[\n]{{0,6}}[(\[]{_YEAR}[)\]]|,?[ ]+{_YEAR}\b")
_SENTENCE_END = re.compile(r"(?:^|[.!?:;\n])\W*$")
_QUOTES = "\"'*“”‘’«»"
_MAX_GAP = 4
_PART_BREAK = re.compile(r":|\s[-–—]\s|\(|\)|[!?]\s|\bpart\b|\bchapter\b|\bvol\b", re.IGNORECASE)
_MIN_FUZZY = 4
_FUZZY = 0.85


@dataclass(frozen=True, slots=True)
class _Word:
    key: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Span:
    """Words `first:last` of a text that spell `key`; `end` is the character offset."""

    first: int
    last: int
    end: int
    key: str


def _fold(word: str) -> str:
    if word.lower() in _SAME:
        return _SAME[word.lower()]
    if not word.isascii():
        word = unicodedata.normalize("NFKD", word)
    return "".join(filter(str.isalnum, word.casefold()))


def _words(text: str) -> list[_Word]:
    found = ((_fold(m.group()), m.start(), m.end()) for m in _WORD.finditer(text))
    return [_Word(*word) for word in found if word[0]]


def _is_possessive(text: str, word: _Word) -> bool:
    return text[word.end - 2 : word.end].lower() in ("'s", "’s")


def _gaps(text: str, words: Sequence[_Word]) -> Iterator[str]:
    return (text[a.end : b.start] for a, b in pairwise(words))


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
            words = _words(item.title)
            if key := "".join(word.key for word in words):
                self._items[key].append(item)
                if len(words) == 1:
                    self._one_word.add(key)
        self._keys = sorted(self._items)

    def link(self, text: str) -> list[Mention]:
        """The items that `text` names, in order; see `link_items`."""
        words = _words(text)
        mentions: list[Mention] = []
        at = 0
        while at < len(words):
            span = self._longest(text, words, at)
            if span is None:
                at += 1
                continue
            item, end, by_year = _choose(self._items[span.key], text, span.end)
            if not by_year and self._needs_mark(text, words, span):
                at += 1
                continue
            at = span.last
            if item is not None:
                mentions.append(Mention(item.item_id, words[span.first].start, end))
                while at < len(words) and words[at].start < end:
                    at += 1
        return mentions

    def _longest(self, text: str, words: Sequence[_Word], first: int) -> _Span | None:
        best, key = None, ""
        for last in range(first + 1, len(words) + 1):
            word = words[last - 1]
            if last - 1 > first:
                gap = text[words[last - 2].end : word.start]
                if len(gap) > _MAX_GAP or "\n" in gap:
                    break
            key += word.key
            if _is_possessive(text, word) and self._spells(text, words[first:last], key[:-1]):
                best = _Span(first, last, word.end - 2, key[:-1])
            if self._spells(text, words[first:last], key):
                best = _Span(first, last, word.end, key)
            place = bisect_left(self._keys, key)
            if place == len(self._keys) or not self._keys[place].startswith(key):
                break
        return best

    def _spells(self, text: str, words: Sequence[_Word], key: str) -> bool:
        """Whether `words` may be the title `key`. A one-word title is not put together across
        spaces: "may be" is not Maybe, while "Wall-E" is WALL·E."""
        if key not in self._items:
            return False
        return key not in self._one_word or not any(map(_has_space, _gaps(text, words)))

    def _needs_mark(self, text: str, words: Sequence[_Word], span: _Span) -> bool:
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


def _has_space(gap: str) -> bool:
    return any(map(str.isspace, gap))


def _is_capitalised(text: str, run: Sequence[_Word], starts_sentence: bool) -> bool:
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


def _choose(candidates: Sequence[Item], text: str, end: int) -> tuple[Item | None, int, bool]:
    """The one item meant by a title that ends at `end`, the mention's end, and whether a year
    said so. None where it stays open."""
    alone = candidates[0] if len(candidates) == 1 else None
    found = _YEAR_AFTER.match(text, end)
    if not found:
        return alone, end, False
    year = int(found[1] or found[2])
    same = [item for item in candidates if item.year == year]
    if same:
        return (same[0] if len(same) == 1 else None), found.end(), True
    if found[1]:
        known = alone is not None and alone.year is None
        return (alone if known else None), found.end(), True
    return alone, end, False


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
    words = _words(text) if items else []
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
    text: str, words: Sequence[_Word], item: Item, spans: Sequence[_Span]
) -> tuple[Mention, range]:
    """The best of `spans` as a mention, and the words it covers."""

    def merit(span: _Span) -> tuple[bool, bool, int]:
        dated = _choose([item], text, span.end)[2]
        return dated, text[words[span.first].start].isupper(), -span.first

    best = max(spans, key=merit)
    chosen, end, _ = _choose([item], text, best.end)
    end = best.end if chosen is None else end
    last = best.last
    while last < len(words) and words[last].start < end:
        last += 1
    return Mention(item.item_id, words[best.first].start, end), range(best.first, last)


def _spans_of(words: Sequence[_Word], title: str) -> Iterator[_Span]:
    """Runs of words that spell `title`, or its possessive."""
    for first in range(len(words)):
        key = ""
        for last in range(first, len(words)):
            word = words[last]
            key += word.key
            if key == title:
                yield _Span(first, last + 1, word.end, title)
            elif key == title + "s" and word.key != "s":
                yield _Span(first, last + 1, word.end - 1, title)
            if not title.startswith(key):
                break


def _title_key(title: str) -> str:
    return "".join(word.key for word in _words(title))


def _is_telling(words: Sequence[str]) -> bool:
    """Whether the words can stand for a title whose rest is left out."""
    return not all(word in EVERYDAY or word.isdigit() for word in words)


def _forms(title: str) -> list[str]:
    """Keys of the title without its article, of its parts and of these without a sequel's number,
    longest first; what is too short or too common to stand for the title is left out."""
    keys = []
    for part in (title, *_PART_BREAK.split(title)):
        words = [word.key for word in _words(part)]
        if words and words[0] in _ARTICLES:
            words = words[1:]
        stems = [words, words[:-1]] if words and words[-1] in _NUMERALS else [words]
        whole = part == title
        keys += ["".join(stem) for n, stem in enumerate(stems) if whole > n or _is_telling(stem)]
    return sorted({key for key in keys if len(key) > 1}, key=lambda key: (-len(key), key))


def _whole_title(words: Sequence[_Word], item: Item) -> list[_Span]:
    key = _title_key(item.title)
    return list(_spans_of(words, key)) if key else []


def _title_parts(words: Sequence[_Word], item: Item) -> list[_Span]:
    for form in _forms(item.title):
        if spans := list(_spans_of(words, form)):
            return spans
    return []


def _near_spelling(words: Sequence[_Word], item: Item) -> list[_Span]:
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


def _runs_about(words: Sequence[_Word], length: int) -> Iterator[_Span]:
    """Runs of words whose letters number about `length`."""
    for first in range(len(words)):
        key = ""
        for last in range(first, len(words)):
            key += words[last].key
            if len(key) > length / _FUZZY + 1:
                break
            if len(key) >= length * _FUZZY - 1:
                yield _Span(first, last + 1, words[last].end, key)
