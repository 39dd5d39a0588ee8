"""Title linking: the rules one by one, then recall and precision on real chat (`data`)."""

import random
import time

import pytest

from crs_fast.crs.data import load_dataset, located_share
from crs_fast.crs.data.dialogue import Item, Mention, Turn
from crs_fast.crs.data.entity_linking import TitleIndex, link_items
from crs_fast.crs.data.entity_spans import locate_items

NAMES = [
    ("The Matrix", 1999),
    ("The Matrix Reloaded", 2003),
    ("Spider-Man", 2002),
    ("WALL·E", 2008),
    ("Amélie", 2001),
    ("Fast & Furious", 2009),
    ("When Harry Met Sally...", 1989),
    ("The Mummy", 1999),
    ("The Mummy", 1932),
    ("The Mummy Returns", 2001),
    ("Inception", 2010),
    ("Titanic", None),
    ("It", 2017),
    ("Her", 2013),
    ("Get Out", 2017),
    ("Yes", 2004),
    ("1917", 2019),
    ("Maybe", 2015),
    ("D", 2005),
    ("Notebook", 2004),
    ("Blade Runner", 1982),
    ("Blade Runner 2049", 2017),
    ("...", 2000),
]
ITEMS = [Item(f"{title}/{year}", title, year) for title, year in NAMES]
INDEX = TitleIndex(ITEMS)


def linked(text):
    """(what stands in the text, item) of each mention."""
    mentions = link_items(text, INDEX)
    Turn("seeker", text, tuple(mentions))  # ordered, non-overlapping, inside the text
    return [(text[m.start : m.end], m.item_id) for m in mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I liked The Matrix", [("The Matrix", "The Matrix/1999")]),
        ("i liked THE matrix!", [("THE matrix", "The Matrix/1999")]),
        ("the matrix reloaded?", [("the matrix reloaded", "The Matrix Reloaded/2003")]),
        ("spiderman", [("spiderman", "Spider-Man/2002")]),
        ("the spider man film", [("spider man", "Spider-Man/2002")]),
        ("wall-e, walle", [("wall-e", "WALL·E/2008"), ("walle", "WALL·E/2008")]),
        ("amelie and Amélie", [("amelie", "Amélie/2001"), ("Amélie", "Amélie/2001")]),
        ("Ame\u0301lie", [("Ame\u0301lie", "Amélie/2001")]),
        ("fast and furious", [("fast and furious", "Fast & Furious/2009")]),
        ("Inception's plot", [("Inception", "Inception/2010")]),
        ("blade runner 2049", [("blade runner 2049", "Blade Runner 2049/2017")]),
        ("blade runner 1982", [("blade runner 1982", "Blade Runner/1982")]),
        ("The Matrix (1999).", [("The Matrix (1999)", "The Matrix/1999")]),
        ("Inception 2010 rocks", [("Inception 2010", "Inception/2010")]),
        ("inception 1995", [("inception", "Inception/2010")]),
        ("Titanic (1997)", [("Titanic (1997)", "Titanic/None")]),
        (
            "When Harry Met Sally... (1989)",
            [("When Harry Met Sally... (1989)", "When Harry Met Sally.../1989")],
        ),
        ("a matrix of inceptions", []),
        ("rematrix", []),
        ("the notebook", [("notebook", "Notebook/2004")]),
        ("in a note book", []),
        ("blade\nrunner", []),
        ("", []),
        ("... !!", []),
    ],
)
def test_whole_titles(text, expected):
    assert linked(text) == expected


def test_ambiguous_titles_need_a_year():
    assert linked("I saw The Mummy") == []
    assert linked("The Mummy (1999)") == [("The Mummy (1999)", "The Mummy/1999")]
    assert linked("the mummy 1932") == [("the mummy 1932", "The Mummy/1932")]
    assert linked("the mummy returns") == [("the mummy returns", "The Mummy Returns/2001")]
    assert linked("The Mummy (2017)") == []
    twins = [Item("1", "Heat", 1995), Item("2", "Heat", 1995)]
    assert link_items("Heat (1995)", twins) == []


def test_another_year_in_brackets_is_another_film():
    assert linked("The Matrix (2030)") == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("it was fun, I met her there, get out", []),
        ("It was fun. Her too", []),
        ("I think It was good", []),
        ("oh wow Yes", []),
        ("I MET HER", []),
        ("may be", []),
        ("in 1917 he left", []),
        ("haha :D", []),
        ("so D it is", []),
        ("I loved Her", ["Her/2013"]),
        ("I loved 'it'", ["It/2017"]),
        ("it (2017)", ["It/2017"]),
        ("Get Out was great", ["Get Out/2017"]),
        ("Get out of here", []),
        ("1917 (2019)", ["1917/2019"]),
        ('"1917"', ["1917/2019"]),
    ],
)
def test_everyday_titles_need_a_mark(text, expected):
    assert [item for _, item in linked(text)] == expected


def test_everyday_words_may_be_turned_off():
    assert [m.item_id for m in TitleIndex(ITEMS, everyday=frozenset()).link("get out")] == [
        "Get Out/2017"
    ]


def test_agrees_with_a_slow_scan_of_every_title():
    """Random word streams against a linker that tries every title at every place."""
    rng = random.Random(0)
    words = ["red", "fox", "dark", "sun", "ocean", "fury"]
    titles = {" ".join(rng.choices(words[1:], k=rng.randint(2, 3))) for _ in range(40)}
    items = [Item(title, title) for title in sorted(titles)]
    index = TitleIndex(items, everyday=frozenset())
    for _ in range(200):
        stream = rng.choices(words, k=12)
        expected, at = [], 0
        while at < len(stream):
            here = [t for t in titles if stream[at : at + len(t.split())] == t.split()]
            if not here:
                at += 1
                continue
            longest = max(here, key=len)
            expected.append(longest)
            at += len(longest.split())
        assert [m.item_id for m in index.link(" ".join(stream))] == expected


def test_seven_thousand_titles_are_quick():
    rng = random.Random(0)
    names = ["".join(rng.choices("abcdefgh", k=5)) for _ in range(400)]
    index = TitleIndex([Item(str(n), " ".join(rng.choices(names, k=3))) for n in range(7000)])
    text = " ".join(rng.choices(names, k=1000))
    start = time.perf_counter()
    index.link(text)
    # A regular expression an item would take seconds.
    assert time.perf_counter() - start < 0.5


HEAT = Item("heat", "Heat", 1995)
ENDGAME = Item("endgame", "Avengers: Endgame", 2019)


@pytest.mark.parametrize(
    ("text", "item", "found"),
    [
        ("it was heat", HEAT, "heat"),
        ("Heat (1995) yes", HEAT, "Heat (1995)"),
        ("the heat in Heat", HEAT, "Heat"),
        ("heat, I mean heat (1995)", HEAT, "heat (1995)"),
        ("endgame", ENDGAME, "endgame"),
        ("matrix", Item("m", "The Matrix"), "matrix"),
        ("Rambo was ok", Item("r", "Rambo III"), "Rambo"),
        ("Forest Gump", Item("g", "Forrest Gump"), "Forest Gump"),
        ("ford vs ferrari", Item("f", "Ford v Ferrari"), "ford vs ferrari"),
        ("it is good", Item("it", "It"), "it"),
        ("nothing of the kind", HEAT, None),
        ("", HEAT, None),
        ("x", Item("dots", "..."), None),
    ],
)
def test_locate_items(text, item, found):
    (mention,) = locate_items(text, [item])
    where = text[mention.start : mention.end] if mention.located else None
    assert where == found


def test_locate_gives_each_entry_its_own_place():
    it, chapter = Item("it", "It", 2017), Item("it2", "It Chapter Two", 2019)
    text = "It chapter two is better than It"
    assert locate_items(text, [it, chapter, it]) == (
        Mention("it2", 0, 14),
        Mention("it", 30, 32),
        Mention("it"),
    )


@pytest.mark.data
def test_located_share_of_inspired_tags(data_root):
    splits = load_dataset("inspired", data_root).splits
    shares = {split: round(located_share(dialogues), 3) for split, dialogues in splits.items()}
    assert shares == {"train": 0.938, "valid": 0.954, "test": 0.94}


@pytest.mark.data
def test_titles_in_real_chat(data_root):
    """ReDial's test turns, mentions written out as `Title (year)`: nearly all are found, none is
    taken for another film, and chat names a film elsewhere in 3 turns of 100 (many truly do:
    people also type titles without tagging them)."""
    data = load_dataset("redial", data_root)
    index = TitleIndex(data.items)
    names = {(item.title.casefold(), item.year): 0 for item in data.items}
    for item in data.items:
        names[item.title.casefold(), item.year] += 1
    unique = {i.item_id for i in data.items if names[i.title.casefold(), i.year] == 1}
    found = missed = wrong = elsewhere = turns = 0
    for dialogue in data.splits["test"]:
        for turn in dialogue.turns:
            turns += 1
            gold = {(m.start, m.end): m.item_id for m in turn.mentions}
            for m in index.link(turn.text):
                item_id = gold.pop((m.start, m.end), None)
                found += item_id == m.item_id
                wrong += item_id not in (None, m.item_id)
                elsewhere += item_id is None
            missed += sum(item_id in unique for item_id in gold.values())
    assert wrong == 0
    assert found / (found + missed) > 0.98
    assert elsewhere / turns < 0.035
