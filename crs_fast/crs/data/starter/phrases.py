"""How a simulated seeker puts an attribute of a film into words.

An attribute is (kind, value): ("genre", "thriller"), ("keyword", "heist"), ("decade", "1990").
Apart from the plain genre names no phrase shares a content word with the catalogue text of a film
that has the attribute, so that matching words finds little. Training dialogues use all but an
attribute's last phrase, which only held-out dialogues use besides the others.
"""

from __future__ import annotations

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
    "a typist",
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
        "an adrenaline rush",
        "something full of stunts and explosions",
    ),
    "adventure": (
        "a big journey into the unknown",
        "something with daring expeditions",
        "a swashbuckling journey",
        "something with daring feats in faraway places",
    ),
    "animation": (
        "something drawn rather than filmed",
        "a cartoon",
        "something drawn or computer made",
        "a feature length cartoon",
    ),
    "biography": (
        "something based on a real person",
        "a portrait of somebody who actually lived",
        "the portrait of a real person",
        "a portrait of a real hero",
    ),
    "comedy": (
        "something to make me laugh",
        "something silly and light",
        "a hearty laugh",
        "something funny and light",
    ),
    "crime": (
        "something about lawbreakers",
        "something with crooks and felonies",
        "a look at the underworld",
        "something about crooks in the underworld",
    ),
    "drama": (
        "something serious and moving",
        "something with deep emotions",
        "a serious character study",
        "something moving with real emotions",
    ),
    "family": (
        "something the kids can watch too",
        "something suitable for all ages",
        "a film my kids would enjoy",
        "something suitable for kids",
    ),
    "fantasy": (
        "something with enchanted creatures",
        "a fairy tale for an evening",
        "something mythical and enchanted",
        "a mythical fairy tale",
    ),
    "history": (
        "something set around real past events",
        "a costume epic",
        "something that shows how people lived centuries ago",
        "an epic about real past events",
    ),
    "horror": (
        "something that gives me nightmares",
        "something really scary",
        "a film that makes me shiver",
        "something scary that makes me shiver",
    ),
    "music": (
        "something with great songs",
        "something with tunes I can hum",
        "a film where people burst into song",
        "something with songs I can hum",
    ),
    "mystery": (
        "a puzzle to solve",
        "a good whodunit",
        "something that keeps me guessing",
        "a puzzle that keeps me guessing",
    ),
    "romance": (
        "something for a date",
        "something sweet where two people fall for each other",
        "a tearjerker about two people falling for each other",
        "something sweet for a date",
    ),
    "science fiction": (
        "something futuristic",
        "something with advanced technology",
        "a look decades ahead",
        "something futuristic with technology",
    ),
    "sport": (
        "something about athletes",
        "something about competing to win the big match",
        "a film about athletes and coaches",
        "something about winning the big match",
    ),
    "thriller": (
        "something that keeps me on the edge of my seat",
        "something tense and suspenseful",
        "a nail biter",
        "something suspenseful that keeps my pulse up",
    ),
    "war": (
        "something set in the trenches",
        "something about combat",
        "a film about troops in combat",
        "something about troops in trenches",
    ),
    "western": (
        "something with gunslingers and saloons",
        "something set on the old frontier",
        "a film with horses and saloons",
        "something with gunslingers on the frontier",
    ),
}

DECADES: dict[str, tuple[str, ...]] = {
    "1930": ("from the thirties", "from the 30s", "made in the thirties"),
    "1940": ("from the forties", "from the 40s", "made in the forties"),
    "1950": ("from the fifties", "from the 50s", "made in the fifties"),
    "1960": ("from the sixties", "from the 60s", "made in the sixties"),
    "1970": ("from the seventies", "from the 70s", "made in the seventies"),
    "1980": ("from the eighties", "from the 80s", "made in the eighties"),
    "1990": ("from the nineties", "from the 90s", "made in the nineties"),
    "2000": ("from the two thousands", "from the noughties", "made in the noughties"),
    "2010": ("from the twenty tens", "from the tens", "made in the twenty tens"),
    "2020": ("from the last few years", "that is recent", "made in the last few years"),
}

KEYWORDS: dict[str, tuple[str, ...]] = {
    "friendship": ("about loyal pals", "about best buddies", "with pals who stick together"),
    "survival": (
        "about staying alive against the odds",
        "about making it out in one piece",
        "where staying alive is all that counts",
    ),
    "father": ("about a dad", "about dads and their kids", "with a devoted dad"),
    "mother": ("about a mum", "about mums and their kids", "with a fierce mum"),
    "new york": ("set around Broadway", "set around Manhattan", "set in Brooklyn or Manhattan"),
    "los angeles": ("set in Hollywood", "set in sunny California", "set on California streets"),
    "london": ("set in the British capital", "set near the Thames", "near the British capital"),
    "japan": ("set in Tokyo or thereabouts", "set in the Far East", "set in old Kyoto or Tokyo"),
    "childhood": ("seen through a kid's eyes", "about being little", "about kids being kids"),
    "small town": (
        "set in a sleepy little place",
        "where everybody knows everybody",
        "set in a sleepy village",
    ),
    "battle": ("with huge armies", "with armies clashing", "with charging armies"),
    "chase": ("with frantic pursuits", "where someone is on the run", "with a frantic pursuit"),
    "school": ("about students", "set among classrooms and lockers", "about students and teachers"),
    "police": ("about cops", "with officers on a case", "with cops on the beat"),
    "revenge": ("about getting even", "about settling a score", "about payback"),
    "magic": ("with spells and wands", "with wizardry", "with witches and spells"),
    "soldier": ("about men in uniform", "about a platoon under fire", "about troops in uniform"),
    "loneliness": ("about feeling isolated", "about people on their own", "about solitude"),
    "marriage": ("about husbands and wives", "about a wedded couple", "about a couple's vows"),
    "monster": ("with a terrifying beast", "with a beast on the loose", "with scary beasts"),
    "science": ("about clever inventors", "about experiments in a lab", "about a lab inventor"),
    "satire": ("that pokes fun at everything", "that mocks the powerful", "full of mockery"),
    "mentor": ("about a wise teacher", "about a coach and a pupil", "about a pupil and a teacher"),
    "betrayal": (
        "where somebody gets cheated",
        "with a stab in the back",
        "with backstabbing partners",
    ),
    "detective": ("with a sleuth", "about someone following clues", "with a sleuth after clues"),
    "memory": ("about forgetting and recalling", "about recollections", "about amnesia"),
    "rivalry": ("about bitter opponents", "about two competitors", "with fierce competitors"),
    "space": ("among the planets", "on a rocket ship", "among rockets and planets"),
    "rebellion": ("about an uprising", "about defying authority", "about defiance"),
    "true love": ("about soul mates", "about finding the one", "about a pair of soul mates"),
    "gangster": ("about the mafia", "about mobsters", "about the mob"),
    "alien": (
        "with visitors from afar",
        "with little green creatures",
        "with an extraterrestrial",
    ),
    "journalism": ("about reporters", "about the newspapers", "about a newspaper reporter"),
    "politics": ("about governments", "about power and elections", "about statesmen"),
    "underdog": ("about an unlikely winner", "about beating long odds", "about long shots"),
    "animals": ("with furry creatures", "with talking critters", "with furry critters"),
    "coming of age": ("about teenagers", "about becoming an adult", "about a teenager"),
    "class difference": (
        "about wealthy and poor people",
        "about wealth and snobbery",
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
    "outsider": ("about someone who does not fit in", "about an oddball", "about a strange loner"),
    "first love": ("about a young crush", "about a sweet crush", "about a teenage crush"),
    "dystopia": (
        "about a bleak tomorrow",
        "set after everything fell apart",
        "in a bleak ruined world",
    ),
    "racism": ("about bigotry", "about the color line", "about bigotry and the color line"),
    "courtroom": ("about lawyers", "about a trial", "with lawyers and a jury"),
    "mental illness": ("about madness", "about someone coming undone", "about going mad"),
    "drugs": ("about narcotics", "about dealers and users", "about pushers"),
    "prison": ("set behind bars", "about inmates", "about life in a cell"),
    "martial arts": ("with kung fu kicks", "with high kicks", "with flying kicks"),
    "ghost": ("with restless spirits", "with things that go bump", "with spirits"),
    "road trip": ("about driving across the country", "on the highway", "about a long drive"),
    "sports team": ("about a squad of players", "about a locker room", "about a winning squad"),
    "genius": ("about a brilliant thinker", "about a prodigy", "about a brilliant prodigy"),
    "time travel": (
        "about jumping between eras",
        "about visiting other centuries",
        "about era hopping",
    ),
    "sea": ("on the ocean", "among waves and sailors", "with sailors and waves"),
    "christmas": (
        "for a cosy december evening",
        "with snow and santa",
        "for the december holidays",
    ),
    "princess": ("about royalty", "about a royal daughter", "with royal daughters"),
}

AVOID: dict[Attribute, tuple[str, ...]] = {
    ("genre", "horror"): ("I scare far too easily", "no frights please", "I cannot handle frights"),
    ("genre", "music"): ("no singing please", "singing puts me off", "I cannot stand singing"),
    ("genre", "animation"): ("no cartoons", "cartoons are not for me", "I skip cartoons"),
    ("genre", "war"): ("nothing with armed conflict", "armed conflict upsets me", "no combat"),
    ("genre", "romance"): ("nothing mushy", "mushy films bore me", "I hate mushy stuff"),
    ("genre", "science fiction"): ("nothing futuristic", "lasers bore me", "no lasers"),
    ("keyword", "superhero"): ("no capes please", "I am tired of capes", "capes bore me"),
    ("keyword", "gangster"): ("no mobsters please", "I am tired of mobsters", "mobsters bore me"),
}


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
