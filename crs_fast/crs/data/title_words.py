"""A text's words as titles are compared by, in any script, and the year that may follow one.

A title's key is its words' letters, digits and vowel signs, put together. Scripts that put no
spaces between words (Chinese, Japanese but for katakana, Thai, Lao, Khmer, Burmese) have a word for
each character, so that a title may begin and end anywhere. A French or Italian elision is a word of
its own ("d'Amélie"), and a word may end in a Turkish suffix after an apostrophe ("Titanic'i") or in
Korean particles ("기생충을"): its stems without them are tried, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from crs_fast.crs.data.dialogue import Item

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
_SAME = {"&": "and", "＆": "and", "vs": "v", "versus": "v"}

_MARKS = r"[\p{M}\u00ad\u200c\u200d]"  # vowel signs and accents, joiners, soft hyphens
_UNSPACED = r"[\p{L}&&[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
_KATAKANA = r"[\p{Katakana}ーｰﾞﾟ]"
_OTHER = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}--{_KATAKANA}--\p{{Hangul}}]"
_APOSTROPHE = "['’＇]"
_ELIDED = (
    "[cdjlmnst]|qu|jusqu|lorsqu|puisqu|quoiqu|presqu|quelqu|"
    "un|all|dall|dell|nell|sull|coll|quell|quest|sant|com|dov"
)
_WORD = regex.compile(
    rf"[&＆]|(?P<unspaced>{_UNSPACED}{_MARKS}*ー*)"
    rf"|{_KATAKANA}(?:{_KATAKANA}|{_MARKS})*"
    rf"|(?P<korean>\p{{Hangul}}(?:\p{{Hangul}}|{_MARKS})*)"
    rf"|(?<![\p{{L}}\p{{N}}\p{{M}}])(?i:{_ELIDED}){_APOSTROPHE}(?={_OTHER})"
    rf"|(?:{_OTHER}|{_MARKS}|(?<=\w){_APOSTROPHE}(?={_OTHER}))+",
    regex.VERSION1,
)
# How few characters may be any word where a character says less than a Chinese one.
_SHORT = ((regex.compile(r"[\p{Hiragana}\p{Thai}\p{Lao}]"), 3), (regex.compile(r"\p{Han}"), 1))
_SHORT_ELSEWHERE = 2

_LETTERS = str.maketrans(
    {"ı": "i", "ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ʼ": "", "ँ": "ं"}
    | {"ى": "ي", "ی": "ي", "ک": "ك", "ـ": ""}
)
# Marks that people leave out: accents of Latin, Greek and Cyrillic letters, vowel points of Hebrew
# and Arabic, Indic nuktas, variation selectors. Vowel signs of other scripts count as letters.
_LEFT_OUT = regex.compile(
    r"[\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed"
    r"\u08ca-\u08ff\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f"
    r"\u093c\u09bc\u0a3c\u0abc\u0b3c\u0cbc\U000e0100-\U000e01ef]"
)

_TURKISH = regex.compile(
    f"{_APOSTROPHE}(?:[yns]?[iıuü]|[ns]?[iıuü]n|[yn]?[ea]|n?[dt][ea]n?|y?l[ea]|l[ea]r\\p{{L}}{{0,5}}"
    "|n?c[ea]|[dt][iıuü]r|y[dt][iıuü]|ki)"
)
_PARTICLE = (
    "은|는|이|가|을|를|의|에|도|만|과|와|로|으로|랑|이랑|나|이나|든|이든|라도|이라도|께|께서|에서|에게|한테|"
    "까지|부터|처럼|보다|마다|조차|마저|밖에|대로|만큼|같은|같이|하고|하면|들|이고|고|이며|며|이다|다|입니다|"
    "이에요|예요|이야|야|이지|지|이죠|죠|요|인데|인|이란|란|라는|이라는|라고|이라고|라면|이라면|였다|이었다|"
    "였어|이었어|였는데|이었는데|아|여|이여"
)
_PARTICLES = regex.compile(f"(?:{_PARTICLE}){{1,3}}")
_LONGEST_PARTICLES = 6
_USUAL_LENGTH = 40  # of a word; longer ones are not remembered

_YEAR = "((?:18|19|20)[0-9]{2})"
_YEAR_AFTER = re.compile(
    rf"[^\w(\[\n]{{0,6}}[(\[]{_YEAR}[年년]?[)\]]|,?[ ]+{_YEAR}(?:\b|(?=[年년]))"
)
_YEAR_REACH = 40  # characters after a title in which its year may stand
_BRACKETS = str.maketrans("（）［］【】〔〕　，", "()[][][] ,")


@dataclass(frozen=True, slots=True)
class Word:
    """`key`: what counts of it; `start:end`: characters of the text. `unspaced`: of a script
    without spaces. `stems`: shorter keys and where each ends, the shortest first."""

    key: str
    start: int
    end: int
    unspaced: bool = False
    stems: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Words `first:last` of a text that spell `key`; `end` is the character offset."""

    first: int
    last: int
    end: int
    key: str


def _fold(word: str) -> str:
    if word.lower() in _SAME:
        return _SAME[word.lower()]
    if word.isascii():
        return "".join(filter(str.isalnum, word.casefold()))
    plain = unicodedata.normalize("NFKD", word).casefold().translate(_LETTERS)
    kept = (c for c in _LEFT_OUT.sub("", plain) if c.isalnum() or unicodedata.category(c)[0] == "M")
    return "".join(map(_plain_digit, kept))


def _plain_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def words_of(text: str) -> list[Word]:
    words = []
    for found in _WORD.finditer(text):
        surface, (start, end), kind = found.group(), found.span(), found.lastgroup
        read = _read if len(surface) <= _USUAL_LENGTH else _read.__wrapped__
        key, stems = read(surface, kind == "korean")
        if key:
            placed = tuple((stem, start + cut) for stem, cut in stems)
            words.append(Word(key, start, end, kind == "unspaced", placed))
    return words


@lru_cache(maxsize=1 << 16)  # people say the same words again and again
def _read(surface: str, korean: bool) -> tuple[str, tuple[tuple[str, int], ...]]:
    """A word's key, and the keys and lengths of its stems."""
    return _fold(surface), tuple((_fold(surface[:cut]), cut) for cut in _cuts(surface, korean))


def _cuts(surface: str, korean: bool) -> Iterator[int]:
    """Where suffixes of a word may begin."""
    if korean:
        # A syllable may be written as three letters.
        for cut in range(max(1, len(surface) - 3 * _LONGEST_PARTICLES), len(surface)):
            rest = unicodedata.normalize("NFC", surface[cut:])
            if len(rest) <= _LONGEST_PARTICLES and _PARTICLES.fullmatch(rest):
                yield cut
        return
    cut = max(map(surface.rfind, "'’＇"))
    if cut > 0 and _TURKISH.fullmatch(surface[cut:].casefold()):
        yield cut


def is_short(text: str, run: Sequence[Word], key: str) -> bool:
    """Whether words that spell `key`, in a script without spaces or case, are so few characters
    that they may be any word."""
    if not all(word.unspaced for word in run):
        return len(run) == 1 and len(unicodedata.normalize("NFC", key)) == 1
    for script, few in _SHORT:
        if all(script.match(text, word.start) for word in run):
            return len(run) <= few
    return len(run) <= _SHORT_ELSEWHERE


def choose(candidates: Sequence[Item], text: str, end: int) -> tuple[Item | None, int, bool]:
    """The one item meant by a title that ends at `end`, the mention's end, and whether a year
    said so. None where it stays open."""
    alone = candidates[0] if len(candidates) == 1 else None
    after = text[end : end + _YEAR_REACH]
    if not after.isascii():
        after = "".join(map(_plain_digit, after.translate(_BRACKETS)))
    found = _YEAR_AFTER.match(after)
    if not found:
        return alone, end, False
    year, year_end = int(found[1] or found[2]), end + found.end()
    same = [item for item in candidates if item.year == year]
    if same:
        return (same[0] if len(same) == 1 else None), year_end, True
    if found[1]:
        known = alone is not None and alone.year is None
        return (alone if known else None), year_end, True
    return alone, end, False
