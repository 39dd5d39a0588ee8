"""Readers on hand-written files in each exact schema, and on the real files (`data`)."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from crs_fast import load_index
from crs_fast.crs.data import (
    ReadReport,
    load_dataset,
    located_share,
    read_dialogues,
    read_items,
    write_dialogues,
    write_items,
)
from crs_fast.crs.data.dialogue import Dialogue, Item, Mention, Turn
from crs_fast.crs.data.lines import split_title

MOVIES = """movieId,movieName,nbMentions
30,"Good, the Bad (1966)",2
7,Heat  (1995),5
112,Ronin ,1
"""
INFO = {
    "7": {
        "name": "Heat (1995)",
        "genre": ["crime", "drama"],
        "plot": "A thief\nand a cop.",
        "director": ["A", "B", "C"],
        "writer": ["W"],
        "star": ["S1", "S2", "S3", "S4", "S5"],
        "imdb_id": "tt1",
    },
    "30": {"name": "x", "genre": [], "plot": None, "director": [], "writer": [], "star": []},
}


def redial_line(conversation="11", messages=((1, "I liked @7"),), **extra):
    record = {
        "movieMentions": {"7": "Heat  (1995)", "30": None},
        "respondentQuestions": {"7": {"suggested": 0, "seen": 1, "liked": 1}},
        "messages": [
            {"timeOffset": 0, "text": text, "senderWorkerId": who, "messageId": n}
            for n, (who, text) in enumerate(messages)
        ],
        "conversationId": conversation,
        "respondentWorkerId": 2,
        "initiatorWorkerId": 1,
        "initiatorQuestions": [],
    }
    return json.dumps({**record, **extra})


def write(path: Path, text: str, gz: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if gz:
        Path(f"{path}.gz").write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


@pytest.fixture
def redial(tmp_path):
    folder = tmp_path / "redial"
    write(folder / "movies_with_mentions.csv", MOVIES)
    chat = [(1, "I liked @7 and @999!"), (1, "@30"), (2, "Try @112, or @7."), (2, "")]
    write(folder / "train_data.jsonl", redial_line("11", chat) + "\n" + redial_line("20") + "\n")
    form = {"7": {"liked": 1}, "30": {"liked": 0}, "112": {"liked": 2}, "999": {"liked": 1}}
    line = redial_line("30", initiatorQuestions={**form, "5": {"seen": 1}})
    write(folder / "test_data.jsonl", line + "\n")
    return folder


def test_redial_official_release(redial, tmp_path):
    report = ReadReport()
    data = load_dataset("redial", tmp_path, report=report)
    assert [i.item_id for i in data.items] == ["7", "30", "112"]
    assert data.items[0] == Item("7", "Heat", 1995)
    assert data.items[1].title == "Good, the Bad"
    assert data.items[2].year is None
    assert [d.dialogue_id for d in data.splits["train"]] == ["11"]
    assert [d.dialogue_id for d in data.splits["valid"]] == ["20"]
    assert [d.dialogue_id for d in data.splits["test"]] == ["30"]
    assert data.splits["train"][0].liked == {}
    assert data.splits["test"][0].liked == {"7": "liked", "30": "disliked", "112": "not said"}
    seeker, recommender = data.splits["train"][0].turns
    assert (seeker.role, recommender.role) == ("seeker", "recommender")
    assert seeker.text == "I liked Heat (1995) and @999! Good, the Bad (1966)"
    assert [piece for piece in seeker.pieces() if piece[1]] == [
        ("Heat (1995)", "7"),
        ("Good, the Bad (1966)", "30"),
    ]
    assert recommender.with_placeholder().rstrip() == "Try <movie>, or <movie>."
    assert recommender.item_ids() == ["112", "7"]
    assert report.lines == 3
    assert sum(report.noise.values()) == 1


def test_redial_item_fields_from_id2info(redial, tmp_path):
    write(redial / "id2info.json", json.dumps(INFO), gz=True)
    heat, good, ronin = load_dataset("redial", tmp_path).items
    assert heat.text() == (
        "title: Heat | year: 1995 | genres: crime, drama | director: A, B | "
        "cast: S1, S2, S3, S4 | plot: A thief and a cop."
    )
    assert good.fields == ronin.fields == {}
    assert [heat.imdb_id, good.imdb_id, ronin.imdb_id] == ["tt1", None, None]


def test_redial_reconstructed_train_is_never_validation(redial, tmp_path):
    (redial / "train_data.jsonl").rename(redial / "train_exact.jsonl")
    exact = json.loads(redial_line("40"))
    aligned = {**exact, "sourceIndex": 3, "reconstructed": True}
    del aligned["conversationId"]
    lines = [json.dumps({**exact, "reconstructed": True}), json.dumps(aligned)]
    write(redial / "train_reconstructed.jsonl", "\n".join(lines), gz=True)
    splits = load_dataset("redial", tmp_path).splits
    assert [d.dialogue_id for d in splits["train"]] == ["11", "40", "reconstructed-3"]
    assert [d.dialogue_id for d in splits["valid"]] == ["20"]


@pytest.mark.parametrize(
    "bad", ["{not json", "[]", '{"messages": []}', redial_line(messages=[(9, "who?")])]
)
def test_broken_line_is_refused_or_skipped(redial, tmp_path, bad):
    write(redial / "test_data.jsonl", redial_line("30") + "\n\n" + bad + "\n" + redial_line("31"))
    with pytest.raises(ValueError, match=r"test_data\.jsonl, line 3 must be readable"):
        load_dataset("redial", tmp_path)
    report = ReadReport()
    data = load_dataset("redial", tmp_path, on_error="skip", report=report)
    assert [d.dialogue_id for d in data.splits["test"]] == ["30", "31"]
    assert len(report.skipped) == 1
    assert "test_data.jsonl, line 3" in report.skipped[0]


def test_line_that_is_not_utf8_and_cut_gzip(redial, tmp_path):
    path = redial / "test_data.jsonl"
    path.write_bytes(redial_line().encode() + b"\n\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2"):
        load_dataset("redial", tmp_path)
    packed = gzip.compress(os.urandom(4096))
    path.unlink()
    Path(f"{path}.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"test_data\.jsonl\.gz must be a whole gzip file"):
        load_dataset("redial", tmp_path, on_error="skip")


def test_deep_and_long_lines_are_skipped_or_refused(redial, tmp_path, monkeypatch):
    monkeypatch.setattr("crs_fast.crs.data.lines.LONGEST_LINE", 5000)
    write(
        redial / "test_data.jsonl",
        "\n".join(["[" * 4000, redial_line("30"), "x" * 20_000, '{"a":' * 900, redial_line("31")]),
    )
    with pytest.raises(ValueError, match=r"test_data\.jsonl, line 1 must be readable: .*recursion"):
        load_dataset("redial", tmp_path)
    report = ReadReport()
    data = load_dataset("redial", tmp_path, on_error="skip", report=report)
    assert len(data.splits["test"]) == 2
    for line, message in zip((1, 3, 4), report.skipped, strict=True):
        assert f"test_data.jsonl, line {line} must be readable" in message


def test_gzip_files_that_are_corrupt_or_unpack_to_too_much(redial, tmp_path):
    path = redial / "test_data.jsonl"
    path.unlink()
    packed = bytearray(gzip.compress((redial_line("30") + "\n").encode() * 500))
    packed[40:60] = b"\xff" * 20
    bomb = gzip.compress(b"\0" * (80 << 20), 6)  # 80 KB
    for raw, message in (
        (packed, "whole gzip file"),
        (bomb, "(unpacks to more than 64|longer than 16) MiB"),
    ):
        Path(f"{path}.gz").write_bytes(raw)
        for on_error in ("raise", "skip"):
            with pytest.raises(ValueError, match=rf"test_data\.jsonl\.gz.*{message}"):
                load_dataset("redial", tmp_path, on_error=on_error)
        index = tmp_path / "index.json.gz"
        index.write_bytes(raw)
        with pytest.raises(ValueError, match=r"load_index: .*index\.json\.gz"):
            load_index(index)


def test_bad_catalogue_row(redial, tmp_path):
    write(redial / "movies_with_mentions.csv", "movieId,movieName,nbMentions\nx,Heat,1\n")
    with pytest.raises(ValueError, match=r"movies_with_mentions\.csv, line 2"):
        load_dataset("redial", tmp_path)


def inspired_turn(role, text, movies=()):
    links = {key: [] for key in ("entity_link", "entity_name", "movie_link", "movie_name")}
    return {"text": text, "role": role, "movie": list(movies), **links}


@pytest.fixture
def inspired(tmp_path):
    folder = tmp_path / "inspired"
    train = [
        inspired_turn(
            "RECOMMENDER", "Pan's labyrinth?", ["Pan's Labyrinth (2006), Hellboy (2019)"]
        ),
        inspired_turn("SEEKER", "Sure", ["", "Akira ()"]),
    ]
    dev = [inspired_turn("SEEKER", "I saw IT (2017)", ["It (2017)", "Heat (1995)"])]
    write(folder / "train.jsonl", json.dumps(train) + "\n", gz=True)
    write(folder / "dev.jsonl", json.dumps(dev) + "\n")
    facts = {"genres": ["g"], "directors": ["d"], "casts": ["c"] * 5, "wiki_name": "x"}
    write(folder / "movies.json", json.dumps({"Heat (1995)": facts}), gz=True)
    return folder


def test_inspired_json_lines_and_their_noise(inspired, tmp_path):
    report = ReadReport()
    data = load_dataset("inspired", tmp_path, report=report)
    assert [i.item_id for i in data.items] == [
        "Akira ()",
        "Heat (1995)",
        "Hellboy (2019)",
        "It (2017)",
        "Pan's Labyrinth (2006)",
    ]
    assert data.items[0] == Item("Akira ()", "Akira", None)
    heat = {"genres": "g", "director": "d", "cast": "c, c, c, c"}
    assert data.items[1] == Item("Heat (1995)", "Heat", 1995, heat)
    assert set(data.splits) == {"train", "valid"}
    recommender, seeker = data.splits["train"][0].turns
    assert recommender.mentions == (
        Mention("Pan's Labyrinth (2006)", 0, 15),
        Mention("Hellboy (2019)"),
    )
    assert seeker.mentions == (Mention("Akira ()"),)
    said = data.splits["valid"][0].turns[0]
    assert said.mentions == (Mention("It (2017)", 6, 15), Mention("Heat (1995)"))
    assert report.noise == {"joined tags, split": 1, "empty tag, dropped": 1}
    assert located_share(data.splits["valid"]) == 0.5
    assert located_share([]) == 1.0


def test_inspired_plots_come_from_redial(inspired, redial, tmp_path):
    write(redial / "id2info.json", json.dumps(INFO))
    data = load_dataset("inspired", tmp_path)
    plots = {i.item_id: i.fields["plot"] for i in data.items if "plot" in i.fields}
    assert plots == {"Heat (1995)": "A thief and a cop."}


def test_inspired_lines_take_intents_from_the_table(inspired, tmp_path):
    plain = load_dataset("inspired", tmp_path)
    said = [inspired_turn("RECOMMENDER", 'Hi! "Heat"?', ["Heat (1995)"])]
    write(inspired / "test.jsonl", json.dumps(said) + "\n")
    table = "dialog_id\tspeaker\ttext\tmovies\texpert_label\n"
    table += "a\tRECOMMENDER\tHi!\t\tno_strategy\n"
    table += "a\tRECOMMENDER\tQUOTATION_MARKHeatQUOTATION_MARK?\tIt (2017)\tcredibility\n"
    write(inspired / "raw_test.tsv", table, gz=True)
    data = load_dataset("inspired", tmp_path)
    (turn,) = data.splits["test"][0].turns
    assert (turn.item_ids(), turn.intent) == (["Heat (1995)"], "credibility")
    assert data.splits["valid"] == plain.splits["valid"]


def test_inspired_table(tmp_path):
    header = "dialog_id\tutt_id\tspeaker\tturn_id\ttext\tmovies\texpert_label"
    rows = [
        "a.pkl\t1\tRECOMMENDER\t1\tHello  you\t\tno_strategy",
        "a.pkl\t2\tRECOMMENDER\t1\tTry QUOTATION_MARKHeatQUOTATION_MARK\tHeat (1995);It (2017)\t"
        "encouragement",
        "b.pkl\t1\tSEEKER\t1\tdoesn\ufffdt matter\t\t",
    ]
    write(tmp_path / "inspired" / "raw_dev.tsv", "\n".join([header, *rows]), gz=True)
    report = ReadReport()
    data = load_dataset("inspired", tmp_path, report=report)
    first, second = data.splits["valid"]
    assert first.dialogue_id == "a.pkl"
    assert first.turns[0].text == 'Hello you Try "Heat"'
    assert first.turns[0].mentions == (Mention("Heat (1995)", 15, 19), Mention("It (2017)"))
    assert second.turns == (Turn("seeker", "doesnt matter"),)
    assert first.turns[0].intent == "encouragement"
    assert sum(report.noise.values()) == 2

    write(tmp_path / "bad" / "inspired" / "test.tsv", "\n".join([header, rows[0], "a\tb"]))
    with pytest.raises(ValueError, match=r"test\.tsv, line 3 .*2 cells under 7 columns"):
        load_dataset("inspired", tmp_path / "bad")
    assert len(load_dataset("inspired", tmp_path / "bad", on_error="skip").splits["test"]) == 1
    write(tmp_path / "bad" / "inspired" / "test.tsv", "a\tb\n")
    with pytest.raises(ValueError, match="header without dialog_id"):
        load_dataset("inspired", tmp_path / "bad")


@pytest.mark.parametrize("turn", [{"role": "BOT", "text": "x"}, {"role": "SEEKER", "text": None}])
def test_inspired_bad_turn_names_its_line(tmp_path, turn):
    write(tmp_path / "inspired" / "dev.jsonl", "[]\n" + json.dumps([turn]) + "\n")
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 2"):
        load_dataset("inspired", tmp_path)


ITEMS = (
    Item("m1", "Heat", 1995, {"genres": "crime, drama", "plot": "Ünïcode"}),
    Item("m2", "Ronin", imdb_id="tt0122690"),
)
DIALOGUES = (
    Dialogue(
        "d1",
        (
            Turn("seeker", "I liked Heat.", (Mention("m1", 8, 12), Mention("m2"))),
            Turn("recommender", "Ok", intent="accept"),
        ),
        {"m1": "not said"},
    ),
)


def test_own_format_round_trip(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    write_items(folder / "items.jsonl", ITEMS)
    write_dialogues(folder / "train.jsonl", DIALOGUES)
    assert sorted(p.name for p in folder.iterdir()) == ["items.jsonl", "train.jsonl"]
    assert read_items(folder / "items.jsonl") == ITEMS
    assert read_dialogues(folder / "train.jsonl", ITEMS) == DIALOGUES
    data = load_dataset(folder)
    assert (data.name, data.items, data.splits) == ("mine", ITEMS, {"train": DIALOGUES})


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "items.jsonl"
    write_items(path, ITEMS)
    with pytest.raises(ValueError, match="must not be named 'title'"):
        write_items(path, [Item("x", "y", None, {"title": "z"})])
    with pytest.raises(TypeError):
        write_items(path, [Item("x", "y", None, {"genres": object()})])
    assert [p.name for p in tmp_path.iterdir()] == ["items.jsonl"]
    assert read_items(path) == ITEMS


def test_own_format_lists_and_merging(tmp_path):
    record = {"item_id": "m1", "title": "Heat", "genres": ["a", "b"], "plot": None}
    write(tmp_path / "items.jsonl", "\ufeff" + json.dumps(record))
    assert read_items(tmp_path / "items.jsonl") == (Item("m1", "Heat", None, {"genres": "a, b"}),)
    marked = [{"item_id": "m1"}, {"item_id": "m1", "start": 0, "end": 4}]
    turns = [{"role": "seeker", "text": "Hi"}, {"role": "seeker", "text": "Heat", "items": marked}]
    write(tmp_path / "d.jsonl", json.dumps({"dialogue_id": "d", "turns": turns}))
    (dialogue,) = read_dialogues(tmp_path / "d.jsonl")
    assert dialogue.turns == (Turn("seeker", "Hi Heat", (Mention("m1", 3, 7), Mention("m1"))),)


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"title": "x"}, "no key 'item_id'"),
        ({"item_id": 3, "title": "x"}, "item_id must be a non-empty string"),
        ({"item_id": "m1", "title": "x", "year": "soon"}, "year must be an integer"),
        ({"item_id": "m1", "title": "x", "genres": 3}, "genres must be a string"),
        ({"item_id": "m1", "title": "x", "imdb_id": 3}, "imdb_id must be a non-empty string"),
        ({"item_id": "m0", "title": "again"}, "item_id must be given once"),
    ],
)
def test_own_format_broken_items(tmp_path, record, why):
    first = {"item_id": "m0", "title": "fine"}
    path = tmp_path / "items.jsonl"
    write(path, json.dumps(first) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=f"line 2 .*{why}"):
        read_items(path)
    assert read_items(path, on_error="skip") == (Item("m0", "fine"),)


@pytest.mark.parametrize(
    ("turn", "why"),
    [
        ({"role": "bot", "text": "x"}, "role must be one of"),
        ({"role": "seeker", "text": 3}, "text must be a string"),
        ({"role": "seeker", "text": "x", "items": [{"item_id": "no"}]}, "in the catalogue"),
        ({"role": "seeker", "text": "x", "items": [{"item_id": "m1", "start": 0}]}, "both"),
        (
            {"role": "seeker", "text": "x", "items": [{"item_id": "m1", "start": 0, "end": 9}]},
            "spans inside the text",
        ),
    ],
)
def test_own_format_broken_dialogues(tmp_path, turn, why):
    write(tmp_path / "d.jsonl", json.dumps({"dialogue_id": "d", "turns": [turn]}))
    with pytest.raises(ValueError, match=f"line 1 .*{why}"):
        read_dialogues(tmp_path / "d.jsonl", ITEMS)


def test_own_format_broken_opinion(tmp_path):
    write(tmp_path / "d.jsonl", json.dumps({"dialogue_id": "d", "turns": [], "liked": {"m1": 1}}))
    with pytest.raises(ValueError, match=r"line 1 .*liked must hold opinions of .* \(got 1\)"):
        read_dialogues(tmp_path / "d.jsonl", ITEMS)


def test_what_load_dataset_refuses(tmp_path, monkeypatch):
    monkeypatch.delenv("CRS_FAST_DATA", raising=False)
    with pytest.raises(ValueError, match="root must be the folder"):
        load_dataset("redial")
    with pytest.raises(ValueError, match="on_error must be one of"):
        load_dataset("redial", tmp_path, on_error="ignore")
    with pytest.raises(FileNotFoundError, match="name_or_path must be"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"items\.jsonl"):
        load_dataset(tmp_path)
    write_items(tmp_path / "items.jsonl", ITEMS)
    with pytest.raises(FileNotFoundError, match=r"train\.jsonl or valid\.jsonl"):
        load_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"dev\.jsonl"):
        load_dataset("inspired", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"movies_with_mentions\.csv"):
        load_dataset("redial", tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Heat  (1995)", ("Heat", 1995)),
        ("The Witch (2015 film)", ("The Witch", 2015)),
        ("Dirty Dancing (2017 film", ("Dirty Dancing", 2017)),
        ("Akira ()", ("Akira", None)),
        ("(500) Days of Summer (2009)", ("(500) Days of Summer", 2009)),
        ("2001: A Space Odyssey", ("2001: A Space Odyssey", None)),
        ("(2015)", ("(2015)", None)),
    ],
)
def test_split_title(name, expected):
    assert split_title(name) == expected


@pytest.mark.data
def test_real_redial(data_root):
    report = ReadReport()
    data = load_dataset("redial", data_root, report=report)
    assert len(data.items) == 6924
    assert {k: len(v) for k, v in data.splits.items()} == {
        "train": 8353,
        "valid": 297,
        "test": 1342,
    }
    assert not report.skipped
    assert not report.noise
    assert sum(not item.fields for item in data.items) == 341
    # The standard's 614 and two entries whose whole name is "(2015)" and "(2007)".
    assert sum(item.year is None for item in data.items) == 616


@pytest.mark.data
def test_real_inspired(data_root):
    report = ReadReport()
    data = load_dataset("inspired", data_root, report=report)
    assert {k: len(v) for k, v in data.splits.items()} == {"train": 801, "valid": 99, "test": 99}
    # 1,807 distinct strings less the empty one and two joined ones, whose parts occur alone.
    assert len(data.items) == 1804
    assert sum("plot" in item.fields for item in data.items) == 777
    assert sum(not item.fields for item in data.items) == 97
    assert report.noise == {"joined tags, split": 2, "empty tag, dropped": 1}


@pytest.mark.data
def test_real_inspired_table_has_the_same_dialogues(data_root, tmp_path):
    folder = tmp_path / "inspired"
    folder.mkdir()
    for name in ("dev", "test"):
        (folder / f"{name}.tsv.gz").symlink_to(data_root / "inspired" / f"raw_{name}.tsv.gz")
    tables = load_dataset("inspired", tmp_path)
    lines = load_dataset("inspired", data_root)

    def letters(dialogue):
        return ["".join(filter(str.isalnum, turn.text)) for turn in dialogue.turns]

    for split in ("valid", "test"):
        pairs = zip(tables.splits[split], lines.splits[split], strict=True)
        # One text of dev differs between the two copies.
        assert sum(letters(a) != letters(b) for a, b in pairs) == (split == "valid")


def folder_with_turn(folder, text, items):
    """A data set of two films whose second dialogue has one turn."""
    write_items(folder / "items.jsonl", [Item("m17", "Heat"), Item("m40", "The Heat")])
    good = {"dialogue_id": "d1", "turns": [{"role": "seeker", "text": "hi"}]}
    turn = {"role": "seeker", "text": text, "items": items}
    lines = [json.dumps(good), json.dumps({"dialogue_id": "d2", "turns": [turn]})]
    write(folder / "train.jsonl", "\n".join(lines))
    return folder


def test_mentions_in_any_order_are_sorted(tmp_path):
    items = [
        {"item_id": "m17"},
        {"item_id": "m40", "start": 13, "end": 21},
        {"item_id": "m17", "start": 0, "end": 4},
    ]
    folder = folder_with_turn(
        tmp_path, "Heat, and not The Heat", items[:1] + items[2:] + items[1:2]
    )
    (turn,) = load_dataset(folder).splits["train"][1].turns
    expected = (Mention("m17", 0, 4), Mention("m40", 13, 21), Mention("m17"))
    assert turn.mentions == expected
    assert Turn("seeker", "Heat, and not The Heat", expected[::-1]).mentions == expected


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([(4, 12), (8, 12)], "must not overlap (got 'm40' at 4:12 and 'm17' at 8:12)"),
        ([(8, 12), (4, 12)], "must not overlap (got 'm17' at 4:12 and 'm40' at 8:12)"),
        ([(4, 12), (4, 12)], "must not overlap (got 'm40' at 4:12 and 'm17' at 4:12)"),
        ([(4, 13)], "must be spans inside the text, 0 <= start < end <= 12 (got 'm40' at 4:13)"),
        ([(-1, 3)], "must be spans inside the text, 0 <= start < end <= 12 (got 'm40' at -1:3)"),
        ([(4, 4)], "must be spans inside the text, 0 <= start < end <= 12 (got 'm40' at 4:4)"),
    ],
)
def test_mentions_that_can_not_be_are_named_with_their_line(tmp_path, spans, why):
    ids = ("m40", "m17")
    items = [
        {"item_id": i, "start": start, "end": end}
        for i, (start, end) in zip(ids, spans, strict=False)
    ]
    folder = folder_with_turn(tmp_path, "See The Heat", items)
    with pytest.raises(
        ValueError, match=re.escape(f"train.jsonl, line 2 must be readable: Turn: mentions {why}")
    ):
        load_dataset(folder)
