"""Rows of the UniCRS family, written here in each shape from dialogues that are known."""

import json
import random
from dataclasses import replace

import pytest

from crs_fast.cli import main
from crs_fast.crs.data import ReadReport, load_dataset
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Turn, merge_turns
from crs_fast.crs.evaluation.targets import TargetCounts, count_targets, recommender_turns

from ..tiny_system import DIALOGUE, dialogues, say

CHAT = Dialogue("c", (say(SEEKER, "hello"), say(RECOMMENDER, "hello"), say(SEEKER, "bye")))
ALONE = Dialogue("x", (say(RECOMMENDER, "hello there"),))
DIALOGUES = (replace(DIALOGUE, dialogue_id="a"), *dialogues(3), CHAT, ALONE, ALONE)
TITLES = {f"i{n}": f"<http://dbpedia.org/resource/Film_{n}_({1990 + n}_film)>" for n in range(8)}
NUMBERS = {f"i{n}": 100 - n for n in range(8)}


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / f"{split}_data_processed.jsonl").write_text("\n".join(lines), encoding="utf-8")


def masked(turn):
    return turn.with_placeholder()


def replies_masked(dialogue, number=NUMBERS.get):
    """Shape 1: every recommender turn; numbers; entities as a set, in no order."""
    context, named = [], set()
    for turn in dialogue.turns:
        items = [number(m.item_id) for m in turn.mentions]
        if turn.role == RECOMMENDER:
            context = context or [""]
            entity = random.Random(len(named)).sample(sorted({*named, 7777}), len(named) + 1)
            yield {"context": context, "resp": masked(turn), "rec": items, "entity": entity}
        context = [*context, turn.text]
        named |= set(items)


def replies_that_recommend(dialogue, name=str, number_of_turn=True):
    """Shape 2: recommender turns that name an item after some entity; names; with ids."""
    context, entity = [], []
    for index, turn in enumerate(dialogue.turns):
        items = [name(m.item_id) for m in turn.mentions]
        if turn.role == RECOMMENDER and items and entity:
            yield {
                "dialog_id": dialogue.dialogue_id,
                "turn_id": index,
                "context": context,
                "entity": entity,
                "rec": items,
                "resp": turn.text,
            }
        if turn.role == RECOMMENDER and not index:
            context = [""]
        context = [*context, turn.text]
        entity = entity + items


def every_turn(dialogue):
    """Shape 3: rows of both roles, `rec` with entities that are no items; place 0 always empty."""
    context, entity = [""], []
    for turn in dialogue.turns:
        items = [NUMBERS[i] for i in turn.item_ids()]
        rec = [*items, 7777]
        yield {"context": context, "resp": turn.text, "rec": rec, "entity": sorted(set(entity))}
        context, entity = [*context, turn.text], entity + rec


def name_numbers(folder):
    numbers = {TITLES[item]: number for item, number in NUMBERS.items()}
    (folder / "entity2id.json").write_text(json.dumps({**numbers, "sequel": 7777}))


def told(dialogues):
    """What a recommender turn is asked for and may know, with items by number."""
    return [
        ([str(NUMBERS[i]) for i in t.targets], list(t.new), {str(NUMBERS[i]) for i in t.named})
        for t in recommender_turns(dialogues)
    ]


def test_replies_with_masks_and_numbers(tmp_path):
    write(tmp_path / "d", "test", [row for d in DIALOGUES for row in replies_masked(d)])
    write(tmp_path / "d", "dev", [row for d in DIALOGUES[1:3] for row in replies_masked(d)])
    name_numbers(tmp_path / "d")
    (tmp_path / "d" / "movie_ids.json").write_text(json.dumps([93, 94, 95, 96, 98, 99, 100]))
    report = ReadReport()
    data = load_dataset(tmp_path / "d", report=report)
    assert set(data.splits) == {"test", "valid"}
    test = data.splits["test"]
    # The i4 that `DIALOGUE` names nowhere in the text is a target without a place.
    got = [(list(t.targets), list(t.new), set(t.named)) for t in recommender_turns(test)]
    assert got == told(DIALOGUES)
    assert len(test) == len(DIALOGUES)
    for dialogue, known in zip(test, DIALOGUES, strict=True):
        heard = known.turns if known.turns[-1].role == RECOMMENDER else known.turns[:-1]
        assert [t.role for t in dialogue.turns] == [t.role for t in heard]
        for turn, true in zip(dialogue.turns[:-1], heard[:-1], strict=True):
            assert turn.text == true.text
            assert [m.start for m in turn.mentions] == [m.start for m in true.mentions]
    # The last reply of all: its mask is filled in.
    assert test[0].turns[-1].text == "try Film 5 (1995)"
    assert [piece for piece in test[0].turns[-1].pieces() if piece[1]] == [("Film 5 (1995)", "95")]
    film = next(item for item in data.items if item.item_id == "95")
    assert (film.title, film.year) == ("Film 5", 1995)
    assert report.guessed["dialogues whose bounds come from contexts that go on"] == 9
    assert report.guessed["mentions whose place was not found"] == 1
    # A list that lacks items, as some do: a `rec` is one all the same. Without any list an item is
    # unknown that only seekers name.
    assert [i.item_id for i in data.items] == ["93", "94", "95", "96", "98", "99", "100", "97"]
    (tmp_path / "d" / "movie_ids.json").unlink()
    report = ReadReport()
    data = load_dataset(tmp_path / "d", report=report)
    assert [i.item_id for i in data.items] == ["95", "96", "97", "98"]
    assert report.guessed["items known from `rec` alone"] == 4


def test_replies_that_recommend(tmp_path):
    rows = [row for d in DIALOGUES for row in replies_that_recommend(d)]
    random.Random(0).shuffle(rows)  # with ids their order is free
    write(tmp_path / "films_eval", "test", rows)
    (tmp_path / "films").mkdir()
    info = {"4": {"name": "i4", "year": "1994", "actor": ["A"], "genre": ["Drama"]}}
    (tmp_path / "films" / "id2info.json").write_text(json.dumps(info))
    (tmp_path / "films" / "entity2id.json").write_text(json.dumps({**NUMBERS, "sequel": 7777}))
    (tmp_path / "films" / "item_ids.json").write_text(json.dumps(list(NUMBERS.values())))
    data = load_dataset(tmp_path / "films_eval")
    kept = [d for d in DIALOGUES if list(replies_that_recommend(d))]
    test = sorted(data.splits["test"], key=lambda d: d.dialogue_id)
    assert {d.dialogue_id for d in test} == {d.dialogue_id for d in kept}
    for dialogue in test:
        (known,) = [d for d in kept if d.dialogue_id == dialogue.dialogue_id]
        targets = [t for t in recommender_turns([dialogue]) if t.targets]
        expected = [t for t in recommender_turns([known]) if t.targets]
        assert [(t.turn, t.targets, t.new) for t in targets] == [
            (t.turn, t.targets, t.new) for t in expected
        ]
        assert [set(t.named) for t in targets] == [set(t.named) for t in expected]
    drama = next(item for item in data.items if item.item_id == "i4")
    assert (drama.year, drama.fields) == (1994, {"genres": "Drama", "cast": "A"})


def test_rows_of_both_roles(tmp_path):
    # The recommender begins these; what of a dialogue that the seeker begins is said in the report.
    begun = [d for d in DIALOGUES if d.turns[0].role == RECOMMENDER]
    write(tmp_path / "d", "test", [row for d in begun for row in every_turn(d)])
    name_numbers(tmp_path / "d")
    (tmp_path / "d" / "item_ids.json").write_text(json.dumps(list(NUMBERS.values())))
    report = ReadReport()
    data = load_dataset(tmp_path / "d", report=report)
    assert [item.item_id for item in data.items] == [str(n) for n in NUMBERS.values()]
    got = [
        (list(t.targets), list(t.new), set(t.named)) for t in recommender_turns(data.splits["test"])
    ]
    assert got == told(begun)
    assert report.noise["`rec` that is no item, dropped"] == sum(len(d.turns) for d in begun)
    assert report.guessed["dialogues that the recommender is taken to begin"] == len(begun)


def test_an_item_named_before_belongs_to_the_seeker_who_says_its_title(tmp_path):
    row = {
        "context": ["I like Film 1", "and?", "it has a twin", "Film 3 is no row of its own",
                    "go on", "ok", "Film 2 too"],
        "resp": "Film 4!", "rec": ["Film 4"],
        "entity": ["Film 9", "Film 1", "Film 3", "Film 2", "twins"],
    }  # fmt: skip
    write(tmp_path / "d", "test", [row])
    (tmp_path / "d" / "item_ids.json").write_text(
        json.dumps(["Film 1", "Film 2", "Film 3", "Film 4", "Film 9"])
    )
    (dialogue,) = load_dataset(tmp_path / "d").splits["test"]
    assert [(t.role, t.item_ids()) for t in dialogue.turns if t.mentions] == [
        (SEEKER, ["Film 1"]),
        (SEEKER, ["Film 2", "Film 9", "Film 3"]),
        (RECOMMENDER, ["Film 4"]),
    ]
    # Targets are the rows' own, whatever the context's recommender said.
    assert count_targets([dialogue]) == TargetCounts(1, 1, 1, 1, 4)


def test_one_row_an_item_is_one_reply(tmp_path):
    reply = {"context": ["hi"], "resp": "Film 1, Film 2", "entity": []}
    rows = [{**reply, "rec": [name]} for name in ("Film 1", "Film 2")]
    write(tmp_path / "d", "test", rows)
    (dialogue,) = load_dataset(tmp_path / "d").splits["test"]
    assert dialogue.turns[1].item_ids() == ["Film 1", "Film 2"]
    assert [m.start for m in dialogue.turns[1].mentions] == [0, 8]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "hello"}, "context must be a list of strings"),
        ({"context": ["a", 1]}, "context must be a list of strings"),
        ({"resp": None}, "resp must be a string"),
        ({"rec": "Film 1"}, "rec must be a list of names or numbers"),
        ({"rec": [True]}, "rec must be a list of names or numbers"),
        ({"entity": {"a": 1}}, "entity must be a list of names or numbers"),
        ({"rec": ...}, "no key 'rec'"),
    ],
)
def test_refused_rows(tmp_path, change, message):
    good = {"context": ["hi"], "resp": "Film 1", "rec": ["Film 1"], "entity": []}
    odd = {key: value for key, value in {**good, **change}.items() if value is not ...}
    write(tmp_path / "d", "test", [good, odd])
    with pytest.raises(ValueError, match=f"test_data_processed.jsonl, line 2 must.*{message}"):
        load_dataset(tmp_path / "d")
    report = ReadReport()
    data = load_dataset(tmp_path / "d", on_error="skip", report=report)
    assert (len(data.splits["test"]), len(report.skipped)) == (1, 1)


def test_rows_of_one_id_must_continue_each_other(tmp_path):
    rows = [
        {"dialog_id": 1, "context": context, "resp": "Film 1", "rec": ["Film 1"], "entity": []}
        for context in (["hi"], ["hello", "Film 1", "more"])
    ]
    write(tmp_path / "d", "test", rows)
    with pytest.raises(ValueError, match="continue each other in dialogue '1'"):
        load_dataset(tmp_path / "d")
    write(tmp_path / "d", "test", rows[:1])
    write(tmp_path / "d", "train", [{**rows[0], "context": ["hi", "Film 1", "more"]}])
    report = ReadReport()
    load_dataset(tmp_path / "d", report=report)
    assert report.noise == {"dialogues with rows in several splits, which share contexts": 1}


def test_the_commands_read_it_and_say_what_was_guessed(tmp_path, capsys):
    write(tmp_path / "d", "test", [row for d in DIALOGUES for row in replies_masked(d)])
    write(tmp_path / "d", "train", [row for d in DIALOGUES[:2] for row in replies_masked(d)])
    template = ["score", "--template", str(tmp_path / "t.jsonl"), "--data", str(tmp_path / "d")]
    assert main(template) == 0
    printed = capsys.readouterr().out
    assert "guessed: turns whose role comes from their place: " in printed
    assert "guessed: items without a title (no entity2id.json): " in printed
    assert main(["score", str(tmp_path / "t.jsonl"), "--data", str(tmp_path / "d")]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["recommendation"]["paper"]["system"]["n"] == 7


@pytest.mark.data
def test_redial_as_such_rows_keeps_its_counts(data_root, tmp_path):
    """Of 4,969 targets; a reader that took `turn_id` for a place would keep a third."""
    test = load_dataset("redial", data_root).splits["test"]
    plain = [Dialogue(d.dialogue_id, merge_turns([Turn(t.role, t.text, t.mentions)
                                                  for t in d.turns])) for d in test]  # fmt: skip
    write(tmp_path / "d", "test", [row for d in plain for row in replies_masked(d, int)])
    report = ReadReport()
    data = load_dataset(tmp_path / "d", report=report)
    got = count_targets(data.splits["test"])
    assert (got.targets, got.new_targets, got.rec_turns) == (4969, 4498, 3671)
    assert got.recommender_turns == 7978

    rows = [row for d in plain for row in replies_that_recommend(d)]
    write(tmp_path / "e", "test", rows)
    got = count_targets(load_dataset(tmp_path / "e").splits["test"])
    assert got.targets == sum(len(set(row["rec"])) for row in rows)
    assert got.rec_turns == len(rows)
    naive = sum(len(row["rec"]) for row in rows if row["turn_id"] == len(row["context"]))
    assert naive < 0.4 * got.targets
