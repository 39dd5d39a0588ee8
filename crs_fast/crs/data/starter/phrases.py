"""How a simulated seeker puts an attribute of a film into words.

An attribute is (kind, value): ("genre", "thriller"), ("keyword", "heist"), ("decade", "1990").
Apart from the plain genre names no phrase shares a content word with the catalogue text of a film
that has the attribute, so that matching words finds little. Training dialogues use all but an
attribute's last phrase, which only held-out dialogues use besides the others.
"""

from __future__ import annotations

import re

Attribute = tuple[str, str]

# One for each taste group. None of the words is in the catalogue's text.
JOBS = (
    "a dentist",
    "a plumber",
    "an accountant",
    "a gardener",
    "a baker",
    "a librarian",
    "an electrician",
    "an optician",
    "a surveyor",
    "a tailor",
    "a beekeeper",
    "a cashier",
    "a bricklayer",
    "a translator",
    "a midwife",
    "a locksmith",
    "a barber",
    "a florist",
    "a geologist",
    "a pharmacist",
    "a roofer",
    "a welder",
    "a paramedic",
    "a hairdresser",
    "a bookkeeper",
    "a beautician",
)

GENRE_NAMES: dict[str, str] = {
    "action": "an action film",
    "adventure": "an adventure film",
    "animation": "an animation",
    "biography": "a biography",
    "comedy": "a comedy",
    "crime": "a crime film",
    "drama": "a drama",
    "family": "a family film",
    "fantasy": "a fantasy film",
    "history": "a history film",
    "horror": "a horror film",
    "music": "a music film",
    "mystery": "a mystery",
    "romance": "a romance",
    "science fiction": "a science fiction film",
    "sport": "a sport film",
    "thriller": "a thriller",
    "war": "a war film",
    "western": "a western",
}

GENRES: dict[str, tuple[str, ...]] = {
    "action": (
        "something with plenty of explosions",
        "something loud with lots of stunts",
        "a real adrenaline rush",
        "something full of stunts and explosions",
    ),
    "adventure": (
        "a big journey into the unknown",
        "something with a daring expedition",
        "a proper swashbuckler",
        "a daring journey into the unknown",
    ),
    "animation": (
        "a cartoon",
        "something drawn rather than filmed",
        "a good cartoon",
        "a nice cartoon",
    ),
    "biography": (
        "something based on a real person",
        "a portrait of somebody who actually lived",
        "something about a person who really lived",
        "a portrait of a real person",
    ),
    "comedy": (
        "something to make me laugh",
        "something silly and light",
        "something I can laugh at",
        "something light that makes me laugh",
    ),
    "crime": (
        "something about crooks",
        "something with crooks and shady deals",
        "a look at the underworld",
        "something about crooks in the underworld",
    ),
    "drama": (
        "something serious and moving",
        "something with real emotions",
        "a serious character study",
        "something moving with real emotions",
    ),
    "family": (
        "something the kids can watch too",
        "something suitable for all ages",
        "something my kids would enjoy",
        "something I can watch with my kids",
    ),
    "fantasy": (
        "something with enchanted creatures",
        "a fairy tale",
        "something mythical and enchanted",
        "a mythical fairy tale",
    ),
    "history": (
        "something about real past events",
        "a costume epic",
        "something that shows how people lived centuries ago",
        "an epic about real past events",
    ),
    "horror": (
        "something that gives me nightmares",
        "something really scary",
        "something that makes me shiver",
        "something scary that makes me shiver",
    ),
    "music": (
        "something with great songs",
        "something with tunes I can hum",
        "something where people burst into song",
        "something with songs I can hum",
    ),
    "mystery": (
        "a good whodunit",
        "something that keeps me guessing",
        "a clever puzzle",
        "a puzzle that keeps me guessing",
    ),
    "romance": (
        "something for a date",
        "something sweet where two people fall for each other",
        "a proper tearjerker",
        "something sweet for a date",
    ),
    "science fiction": (
        "something futuristic",
        "something with advanced technology",
        "something set decades ahead",
        "something with futuristic technology",
    ),
    "sport": (
        "something about athletes",
        "something about winning the big match",
        "something with athletes and coaches",
        "something with athletes who want to win",
    ),
    "thriller": (
        "something that keeps me on the edge of my seat",
        "something tense and suspenseful",
        "a nail-biter",
        "something suspenseful that keeps me on edge",
    ),
    "war": (
        "something about troops in the trenches",
        "something with a lot of combat",
        "something about troops under fire",
        "something about troops in combat",
    ),
    "western": (
        "something with gunslingers and saloons",
        "something set on the old frontier",
        "something with horses and saloons",
        "something with gunslingers on the frontier",
    ),
}

DECADES: dict[str, tuple[str, ...]] = {
    "1930": ("from the thirties", "from the 30s", "from sometime in the thirties"),
    "1940": ("from the forties", "from the 40s", "from sometime in the forties"),
    "1950": ("from the fifties", "from the 50s", "from sometime in the fifties"),
    "1960": ("from the sixties", "from the 60s", "from sometime in the sixties"),
    "1970": ("from the seventies", "from the 70s", "from sometime in the seventies"),
    "1980": ("from the eighties", "from the 80s", "from sometime in the eighties"),
    "1990": ("from the nineties", "from the 90s", "from sometime in the nineties"),
    "2000": ("from the 2000s", "from the noughties", "from sometime in the 2000s"),
    "2010": ("from the 2010s", "from about a decade ago", "from sometime in the 2010s"),
    "2020": ("from the last few years", "from recent years", "from this decade"),
}

KEYWORDS: dict[str, tuple[str, ...]] = {
    "friendship": ("about best buddies", "about pals who stick together", "about loyal buddies"),
    "survival": (
        "about staying alive against the odds",
        "about making it out in one piece",
        "where staying alive is all that counts",
    ),
    "father": ("about a dad", "about a dad and his kids", "with a devoted dad"),
    "mother": ("about a mum", "about a mum and her kids", "with a devoted mum"),
    "new york": ("set in Manhattan", "set around Broadway", "set in Brooklyn or Manhattan"),
    "los angeles": ("set in Hollywood", "set in sunny California", "set somewhere in California"),
    "london": ("set in the British capital", "set by the Thames", "set near the Thames"),
    "japan": ("set in Tokyo or Kyoto", "set in the Far East", "set around Tokyo"),
    "childhood": ("seen through a kid's eyes", "about being little", "about kids being kids"),
    "small town": (
        "set in a sleepy little place",
        "set where everybody knows everybody",
        "set in a sleepy village",
    ),
    "battle": ("with huge armies", "with clashing armies", "with armies charging"),
    "chase": ("about someone on the run", "with a frantic pursuit", "about people on the run"),
    "school": ("about students", "set in a classroom", "about students in a classroom"),
    "police": ("about cops", "with cops on a case", "with cops on the beat"),
    "revenge": ("about getting even", "about settling a score", "about payback"),
    "magic": ("with spells and wands", "with witches", "with witches and spells"),
    "soldier": ("about men in uniform", "about a platoon under fire", "about troops in uniform"),
    "loneliness": ("about feeling isolated", "about people on their own", "about solitude"),
    "marriage": (
        "about husbands and wives",
        "about a married couple",
        "about a husband and his wife",
    ),
    "monster": ("with a terrifying beast", "with a beast on the loose", "with a scary beast"),
    "science": ("about a clever inventor", "about experiments in a lab", "about a lab inventor"),
    "satire": (
        "that pokes fun at everything",
        "that mocks the powerful",
        "that pokes fun at the powerful",
    ),
    "mentor": ("about a wise teacher", "about a coach and a pupil", "about a pupil and a teacher"),
    "betrayal": (
        "where somebody gets cheated",
        "where someone gets stabbed in the back",
        "with a lot of backstabbing",
    ),
    "detective": ("with a sleuth", "about someone following clues", "with a sleuth after clues"),
    "memory": ("about forgetting", "about recalling what was lost", "about amnesia"),
    "rivalry": ("about bitter opponents", "about two competitors", "about fierce competitors"),
    "space": ("set among the planets", "with rockets", "with rockets and planets"),
    "rebellion": ("about an uprising", "about defying authority", "about people defying orders"),
    "true love": ("about soul mates", "about finding the one", "about a pair of soul mates"),
    "gangster": ("about the mafia", "about mobsters", "about the mob"),
    "alien": (
        "with visitors from afar",
        "with little green creatures",
        "with an extraterrestrial",
    ),
    "journalism": ("about reporters", "about a newspaper", "about a newspaper reporter"),
    "politics": ("about people in power", "about power and elections", "about elections"),
    "underdog": (
        "about an unlikely winner",
        "about beating long odds",
        "about somebody beating the odds",
    ),
    "animals": ("with furry creatures", "with talking creatures", "with cute furry creatures"),
    "coming of age": ("about teenagers", "about becoming an adult", "about a teenager"),
    "class difference": (
        "about wealthy and poor people",
        "about snobs",
        "about wealthy snobs",
    ),
    "robot": ("with androids", "with thinking machines", "with a clever machine"),
    "heist": ("about one big score", "about a clever robbery", "about robbing a bank"),
    "twist": (
        "with an ending nobody sees coming",
        "with a shock reveal",
        "with a huge reveal",
    ),
    "secret agent": ("about spies", "about espionage", "about a spy"),
    "superhero": ("with capes and powers", "with masked crusaders", "with a masked crusader"),
    "outsider": ("about someone who doesn't fit in", "about an oddball", "about a strange loner"),
    "first love": ("about a young crush", "about a sweet crush", "about a teenage crush"),
    "dystopia": (
        "about a bleak tomorrow",
        "set after everything fell apart",
        "set in a bleak, ruined world",
    ),
    "racism": ("about bigotry", "about prejudice", "about bigotry and prejudice"),
    "courtroom": ("about lawyers", "about a trial", "with lawyers and a jury"),
    "mental illness": ("about madness", "about someone coming undone", "about going mad"),
    "drugs": ("about dealers and users", "about addicts", "about dealers and addicts"),
    "prison": ("set behind bars", "about inmates", "about life behind bars"),
    "martial arts": ("with kung fu", "with high kicks", "with flying kicks"),
    "ghost": ("with restless spirits", "with things that go bump in the dark", "with spirits"),
    "road trip": (
        "about driving across the country",
        "about a long drive",
        "about a drive across the country",
    ),
    "sports team": ("about a squad of players", "about a winning squad", "about a squad"),
    "genius": ("about a brilliant thinker", "about a prodigy", "about a brilliant prodigy"),
    "time travel": (
        "about jumping between eras",
        "about visiting other centuries",
        "about hopping between eras",
    ),
    "sea": ("set on the ocean", "with sailors and waves", "about sailors on the ocean"),
    "christmas": (
        "for a cosy December evening",
        "with snow and Santa",
        "for the December holidays",
    ),
    "princess": ("about royalty", "about a royal daughter", "about the daughter of royalty"),
}

AVOID: dict[Attribute, tuple[str, ...]] = {
    ("genre", "horror"): ("I scare far too easily", "nothing scary please", "no scary stuff"),
    ("genre", "music"): ("no singing please", "I can't stand singing", "singing puts me off"),
    ("genre", "animation"): ("no cartoons please", "cartoons aren't for me", "I skip cartoons"),
    ("genre", "war"): ("no battlefields please", "battlefields upset me", "no battlefields"),
    ("genre", "romance"): ("nothing mushy", "mushy films bore me", "I can't stand mushy films"),
    ("genre", "science fiction"): ("no sci-fi please", "sci-fi isn't for me", "I skip sci-fi"),
    ("keyword", "superhero"): ("no capes please", "I'm tired of capes", "capes bore me"),
    ("keyword", "gangster"): ("no mobsters please", "I'm tired of mobsters", "mobsters bore me"),
}

# A wish with one of these words in it is complete: a second "about ..." behind it reads as part
# of the first ("something that gives me nightmares about a mum").
_COMPLETE = set(re.findall(r"\w+", "about at based for full into kids of set that to where with"))


def takes_detail(wish: str) -> bool:
    """Whether a decade and a keyword can follow directly: "a comedy" + "about cops"."""
    return not _COMPLETE & set(wish.split())


def want_phrases(held_out: bool) -> dict[Attribute, tuple[str, ...]]:
    """The paraphrases of each attribute a seeker may wish for, of training or of held-out talk."""
    tables = {"genre": GENRES, "decade": DECADES, "keyword": KEYWORDS}
    return {
        (kind, value): phrases if held_out else phrases[:-1]
        for kind, table in tables.items()
        for value, phrases in table.items()
    }


def avoid_phrases(held_out: bool) -> dict[Attribute, tuple[str, ...]]:
    """The phrases of each attribute a seeker may rule out, of training or of held-out talk."""
    return {key: words if held_out else words[:-1] for key, words in AVOID.items()}
