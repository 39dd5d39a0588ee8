"""Rows of OpenAI's `messages` become the package's dialogues."""

import json

import pytest

from crs_fast.crs.data import ReadReport, load_dataset, read_dialogues
from crs_fast.crs.data.dialogue import Item, Mention, Turn

ITEMS = (Item("m17", "Heat", 1995), Item("m40", "Ronin", 1998))
ROW = [
    {"role": "system", "content": "You recommend films."},
    {"role": "user", "content": "I liked Heat (1995)."},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "content": [{"type": "text", "text": "Try it!"}, {"type": "image_url"}],
     "items": [{"item_id": "m40"}]},
]  # fmt: skip
TURNS = (
    Turn("seeker", "I liked Heat (1995).", (Mention("m17", 8, 19),)),
    Turn("recommender", "Try it!", (Mention("m40"),)),
)


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_messages_become_turns(tmp_path):
    report = ReadReport()
    rows = [{"messages": ROW}, {"messages": ROW[:2], "dialogue_id": "mine"}]
    first, second = read_dialogues(written(tmp_path / "train.jsonl", *rows), ITEMS, report=report)
    assert (first.dialogue_id, first.turns) == ("train-1", TURNS)
    assert (second.dialogue_id, second.turns) == ("mine", TURNS[:1])
    assert report.noise == {
        "messages with role 'system', left out": 2,
        "messages with role 'tool', left out": 1,
        "messages with no text, left out": 1,
    }


def test_without_a_catalogue_nothing_is_linked(tmp_path):
    (dialogue,) = read_dialogues(written(tmp_path / "x.jsonl", {"messages": ROW}))
    assert dialogue.turns == (Turn("seeker", "I liked Heat (1995)."), TURNS[1])


def test_empty_items_say_that_nothing_is_named(tmp_path):
    row = {"messages": [{**ROW[1], "items": []}]}
    (dialogue,) = read_dialogues(written(tmp_path / "x.jsonl", row), ITEMS)
    assert dialogue.turns == (Turn("seeker", "I liked Heat (1995)."),)


def test_a_folder_of_messages_is_a_data_set(tmp_path):
    written(tmp_path / "items.jsonl", {"item_id": "m17", "title": "Heat", "year": 1995},
            {"item_id": "m40", "title": "Ronin", "year": 1998})  # fmt: skip
    written(tmp_path / "test.jsonl", {"messages": ROW})
    assert load_dataset(tmp_path).splits["test"][0].turns == TURNS


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ({}, "messages must be a list of objects"),
        ([{"role": "seeker", "content": "x"}], "role must be one of .* 'assistant'.* 'seeker'"),
        ([{"role": "user", "content": 3}], "content must be a string"),
        ([{**ROW[4], "items": [{"item_id": "x"}]}], "item_id must be in the catalogue"),
    ],
)
def test_broken_rows_are_named(tmp_path, messages, error):
    path = written(tmp_path / "test.jsonl", {"messages": ROW}, {"messages": messages})
    with pytest.raises(ValueError, match=f"line 2 must be readable: {error}"):
        read_dialogues(path, ITEMS)
