"""Data as other programs write it: taken where the meaning is plain, else refused in a sentence
that says where; and what was read can always be written."""

import csv
import io
import json

import numpy as np
import pytest

from crs_fast import cli
from crs_fast.crs.backbones import tiny_backbone
from crs_fast.crs.data import (
    ReadReport,
    load_dataset,
    read_dialogues,
    read_items,
    write_dialogues,
    write_items,
)
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Item, Mention, Turn
from crs_fast.crs.data.lines import by_number
from crs_fast.crs.evaluation.predictions import (
    blank_predictions,
    read_predictions,
    write_predictions,
)
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.pipeline import train_recommender

LOST = "half of a surrogate pair, replaced"


def lines(path, *records):
    """JSON lines as Python writes them: NaN for a missing number, escapes for what isn't ASCII."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def film(n, **more):
    return {"item_id": f"m{n}", "title": f"Film {n}", **more}


def talk(name, item="m1", text="try it"):
    turns = [
        {"role": "seeker", "text": "hi"},
        {"role": "recommender", "text": text, "items": [{"item_id": item}]},
    ]
    return {"dialogue_id": name, "turns": turns}


@pytest.mark.parametrize(
    ("given", "year"),
    [
        (1995, 1995), ("1995", 1995), (1995.0, 1995), ("1995.0", 1995), (" 1995 ", 1995),
        (None, None), (float("nan"), None),
    ],
)  # fmt: skip
def test_years_as_people_have_them(given, year, tmp_path):
    (item,) = read_items(lines(tmp_path / "items.jsonl", film(1, year=given)))
    assert item == Item("m1", "Film 1", year)
    assert type(item.year) is type(year)
    assert Item("m1", "Film 1", given) == item


@pytest.mark.parametrize("given", [1995.5, "95s", "", True, [1995], float("inf"), "1995-01-01"])
def test_other_years_are_refused_with_their_line(given, tmp_path):
    path = lines(tmp_path / "items.jsonl", film(0), film(1, year=given))
    with pytest.raises(ValueError, match=r"items\.jsonl, line 2 .*(year|number) must .*\(got "):
        read_items(path)
    if given != float("inf"):
        with pytest.raises(ValueError, match=r"^Item: year must be an integer or None \(got "):
            Item("m1", "Film 1", given)


@pytest.mark.parametrize(
    "given", [np.int64(1995), np.uint16(1995), np.float64(1995), np.str_("1995")]
)
def test_years_of_numpy(given, tmp_path):
    item = Item("m1", "Film 1", given)
    assert type(item.year) is int
    write_items(tmp_path / "items.jsonl", [item])
    assert read_items(tmp_path / "items.jsonl") == (item,)


def test_an_id_that_is_no_string_is_refused_at_once():
    with pytest.raises(ValueError, match=r"^Item: item_id must be a string \(got 5\)"):
        Item(5, "Film")


def test_nulls_as_pandas_writes_them(tmp_path):
    nan = float("nan")
    item = film(1, year=nan, imdb_id=nan, genres=nan, plot=nan)
    assert read_items(lines(tmp_path / "items.jsonl", item)) == (Item("m1", "Film 1"),)
    turns = [
        {"role": "seeker", "text": "Film 1", "intent": nan,
         "items": [{"item_id": "m1", "start": 0.0, "end": 6.0}]},
        {"role": "recommender", "text": "ok", "items": nan},
        {"role": "seeker", "text": "Film 1",
         "items": [{"item_id": "m1", "start": nan, "end": nan}]},
    ]  # fmt: skip
    record = {"dialogue_id": "d", "turns": turns, "liked": nan}
    (dialogue,) = read_dialogues(lines(tmp_path / "d.jsonl", record))
    assert dialogue.turns[0].mentions == (Mention("m1", 0, 6),)
    assert dialogue.turns[2].mentions == (Mention("m1"),)
    assert dialogue.liked == {}


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (film(1, title=float("nan")), "title must be a non-empty string"),
        (film(1, item_id=float("nan")), "item_id must be a non-empty string"),
        (film(1, genres=["a", None]), "genres must be a string or a list of strings"),
        (film(1, runtime=float("inf")), "every number must be finite"),
    ],
)
def test_nulls_where_something_must_be(record, why, tmp_path):
    path = lines(tmp_path / "items.jsonl", film(0), record)
    with pytest.raises(ValueError, match=rf"items\.jsonl, line 2 must be readable: {why} \(got "):
        read_items(path)


def test_offsets_with_a_fraction_are_refused(tmp_path):
    record = talk("d")
    record["turns"][1]["items"] = [{"item_id": "m1", "start": 0.5, "end": 2}]
    with pytest.raises(ValueError, match=r"line 1 .*start and end must both be integers or absent"):
        read_dialogues(lines(tmp_path / "d.jsonl", record))


# Names that a dialogue may have twice in a file, and where the second stands.
TWICE = {
    "next to each other": (["x", "x"], 2),
    "far apart": (["x", "y", "z", "x"], 4),
    "three times": (["x", "y", "x", "x"], 3),
    "alike but for an escape": (["é", "\u00e9"], 2),
}


@pytest.mark.parametrize(("names", "line"), TWICE.values(), ids=TWICE)
def test_a_dialogue_id_twice_is_refused_with_its_line(names, line, tmp_path):
    lines(tmp_path / "items.jsonl", film(1))
    lines(tmp_path / "train.jsonl", *map(talk, names))
    with pytest.raises(
        ValueError, match=rf"train\.jsonl, line {line} .*dialogue_id must be given once \(got '"
    ):
        load_dataset(tmp_path)
    report = ReadReport()
    kept = load_dataset(tmp_path, on_error="skip", report=report).splits["train"]
    assert [d.dialogue_id for d in kept] == list(dict.fromkeys(names))
    assert len(report.skipped) == len(names) - len(kept)


def test_ids_may_begin_anew_in_every_split(tmp_path):
    lines(tmp_path / "items.jsonl", film(1))
    for split in ("train", "test"):
        lines(tmp_path / f"{split}.jsonl", talk("1"), talk("2"))
    assert len(load_dataset(tmp_path).splits["test"]) == 2


def test_redial_and_inspired_give_an_id_once(tmp_path):
    redial = tmp_path / "redial"
    redial.mkdir()
    (redial / "movies_with_mentions.csv").write_text("movieId,movieName\n7,Heat (1995)\n")
    record = {"respondentWorkerId": 2, "initiatorWorkerId": 1, "conversationId": "11",
              "messages": [{"text": "hi", "senderWorkerId": 1}]}  # fmt: skip
    lines(redial / "train_data.jsonl", record, record)
    lines(redial / "test_data.jsonl", record)
    with pytest.raises(ValueError, match=r"train_data\.jsonl, line 2 .*conversationId must be"):
        load_dataset("redial", tmp_path)
    record["messages"][0]["text"] = None
    lines(redial / "train_data.jsonl", record)
    with pytest.raises(ValueError, match=r"line 1 .*text must be a string \(got None\)"):
        load_dataset("redial", tmp_path)
    (redial / "movies_with_mentions.csv").write_text("movieId,movieName\n7,Heat\n7,Heat\n")
    with pytest.raises(ValueError, match=r"mentions\.csv, line 3: movieId must be given once"):
        load_dataset("redial", tmp_path)

    (tmp_path / "inspired").mkdir()
    rows = ["dialog_id\tspeaker\ttext\tmovies", "a\tSEEKER\thi\t", "a\tSEEKER\tyes\t",
            "b\tSEEKER\thi\t", "a\tSEEKER\tanother\t"]  # fmt: skip
    (tmp_path / "inspired" / "dev.tsv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"dev\.tsv, line 5 .*dialog_id must be given once"):
        load_dataset("inspired", tmp_path)


def two_of_one_id():
    turn = Turn("recommender", "try it", (Mention("m1"),))
    return (Dialogue("x", (turn,)), Dialogue("y", (turn,)), Dialogue("x", (turn,)))


def test_no_prediction_is_lost_where_the_readers_were_passed_by(tmp_path):
    path, dialogues = tmp_path / "p.jsonl", two_of_one_id()
    with pytest.raises(ValueError, match=r"dialogue_id must be given once .*'x' again"):
        write_predictions(path, blank_predictions(dialogues))
    assert not path.exists()
    write_predictions(path, blank_predictions(dialogues[:2]))
    with pytest.raises(ValueError, match=r"dialogue_id must be given once .*'x' again"):
        read_predictions(path, dialogues, [Item("m1", "Film")])


def test_score_counts_every_target_or_none(tmp_path, capsys):
    lines(tmp_path / "items.jsonl", film(1), film(2))
    lines(tmp_path / "train.jsonl", talk("a"))
    lines(tmp_path / "test.jsonl", talk("x"), talk("x", "m2"))
    argv = ["score", "--data", str(tmp_path), "--template", str(tmp_path / "t.jsonl")]
    assert cli.main(argv) != 0
    assert "test.jsonl, line 2" in capsys.readouterr().err
    assert not (tmp_path / "t.jsonl").exists()


HALVES = {
    "\ud83d": "\ufffd",
    "a\ud83d b": "a\ufffd b",
    "\ude00x": "\ufffdx",
    "\ud83d\ud83d": "\ufffd\ufffd",
}


@pytest.mark.parametrize(("text", "read"), HALVES.items(), ids=map(ascii, HALVES))
def test_half_an_emoji_is_replaced_and_counted(text, read, tmp_path):
    report = ReadReport()
    path = lines(tmp_path / "items.jsonl", film(1, plot=text, genres=[text]), film(2, plot="😀"))
    items = read_items(path, report=report)
    assert items[0].fields == {"plot": read, "genres": read}
    assert items[1].fields == {"plot": "😀"}
    record = talk("d", text=f"{text} Film 1")
    start = len(text) + 1
    record["turns"][1]["items"] = [{"item_id": "m1", "start": start, "end": start + 6}]
    (dialogue,) = read_dialogues(lines(tmp_path / "d.jsonl", record), report=report)
    assert dialogue.turns[1].with_placeholder() == f"{read} <movie>"
    assert report.noise == {LOST: 2}
    write_items(tmp_path / "again.jsonl", items)
    assert read_items(tmp_path / "again.jsonl") == items
    write_dialogues(tmp_path / "d2.jsonl", [dialogue])
    assert read_dialogues(tmp_path / "d2.jsonl") == (dialogue,)


def test_half_an_emoji_that_no_reader_saw_can_be_written(tmp_path):
    write_items(tmp_path / "items.jsonl", [Item("m1", "Film \ud83d", None, {"plot": "\ude00"})])
    (item,) = read_items(tmp_path / "items.jsonl")
    assert (item.title, item.fields["plot"]) == ("Film \ufffd", "\ufffd")


ODD_LINES = ["Léon \u2028The Professional", "A\u2029B", "A\x85B", "A\x0bB", "A\x0cB", "A\x1cB"]


@pytest.mark.parametrize("title", ODD_LINES, ids=ascii)
def test_line_separators_inside_a_cell(title, tmp_path):
    folder = tmp_path / "redial"
    folder.mkdir()
    table = io.StringIO(newline="")
    csv.writer(table).writerows(
        [
            ["movieId", "movieName"],
            ["7", f"{title} (1994)"],
            ["8", "Two\r\nlines (1999)"],
            ["9", "C"],
        ]
    )
    (folder / "movies_with_mentions.csv").write_bytes(table.getvalue().encode())
    for name in ("train_data", "test_data"):
        (folder / f"{name}.jsonl").write_text("")
    items = load_dataset("redial", tmp_path).items
    assert [item.item_id for item in items] == ["7", "8", "9"]
    assert items[0] == Item("7", " ".join(title.split()), 1994)
    assert items[1] == Item("8", "Two lines", 1999)


@pytest.mark.parametrize("name", ["movies_with_mentions.csv", "id2info.json", "train_data.jsonl"])
def test_bytes_that_are_no_utf8_name_file_and_line(name, tmp_path):
    folder = tmp_path / "redial"
    folder.mkdir()
    (folder / "movies_with_mentions.csv").write_text("movieId,movieName\n7,Heat\n")
    for other in ("train_data", "test_data"):
        (folder / f"{other}.jsonl").write_text("")
    first = b"\n" if name.endswith("jsonl") else b"movieId,movieName\n"
    (folder / name).write_bytes(first + "8,Amélie\n".encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}, line 2 must be .*0xe9"):
        load_dataset("redial", tmp_path)


SPLITS = {"train": (Dialogue("d", (Turn("recommender", "try it", (Mention("m1"),)),)),)}


@pytest.mark.parametrize(
    ("item", "why"),
    [
        (Item("m1", ""), "title must be a non-empty string"),
        (Item("m1", "Film", fields={"title": "x"}), "fields must not be named 'title'"),
        (Item("m1", "Film", fields={"plot": object()}), "not JSON serializable"),
        (Item("m1", "Film", fields={"plot": 3}), "plot must be a string"),
        (Item("m1", "Film", imdb_id=""), "imdb_id must be a non-empty string"),
        (Item("m0", "Film"), "item_id must be given once"),
    ],
)
def test_what_could_not_be_saved_is_refused_before_training(item, why, tmp_path):
    data = CrsDataset("x", (Item("m0", "A"), item), SPLITS)
    with pytest.raises(ValueError, match=rf"^train_recommender: item '{item.item_id}' .*{why}"):
        train_recommender(data, (None, None), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_trained_on_odd_texts_is_saved_and_read(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    odd = "\ud83d \u2028 \x00 👩‍👩‍👧 ＜/s＞"
    lines(data / "items.jsonl", *(film(n, plot=odd, year=1990.0 + n) for n in range(4)))
    lines(data / "train.jsonl", talk("d\ud83d", "m1", odd))
    dataset = load_dataset(data)
    backbone = tiny_backbone(["hello"] * 9, hidden_size=32, layers=1, heads=2, vocab_size=300)
    train_recommender(
        dataset, backbone, tmp_path / "model", titles=True, progress=False,
        training=TrainConfig(epochs=1, lora_rank=None),
    )  # fmt: skip
    assert read_items(tmp_path / "model" / "items.jsonl") == dataset.items


def test_digits_sort_as_numbers():
    ordered = ["", "x", "9a", "٣"]
    numbers = ["0", "00", "7", "07", "08", "8", "10", "010", "99", "100", "9" * 5000]
    key = [by_number(text) for text in numbers]
    assert [int(n) for n in sorted(numbers[:-1], key=by_number)] == sorted(map(int, numbers[:-1]))
    assert max(key) == key[-1]
    assert all(by_number(text) > key[-1] for text in ordered)
