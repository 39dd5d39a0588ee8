"""A text's words as titles are compared by, and the year that may follow one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

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
_SAME = {"&": "and", "vs": "v", "versus": "v"}

_WORD = re.compile("&|(?:[^\\W_]|[\u0300-\u036f]|(?<=\\w)['’](?=\\w))+")
_YEAR = "((?:18|19|20)[0-9]{2})"
_YEAR_AFTER = re.compile(rf"[^\w(\[\n]{{0,6}}[(\[]{_YEAR}[)\]]|,?[ ]+{_YEAR}\b")


@dataclass(frozen=True, slots=True)
class Word:
    key: str
    start: int
    end: int


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
    if not word.isascii():
        word = unicodedata.normalize("NFKD", word)
    return "".join(filter(str.isalnum, word.casefold()))


def words_of(text: str) -> list[Word]:
    found = ((_fold(m.group()), m.start(), m.end()) for m in _WORD.finditer(text))
    return [Word(*word) for word in found if word[0]]


def choose(candidates: Sequence[Item], text: str, end: int) -> tuple[Item | None, int, bool]:
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
