"""Dialogues in parquet files, against the same rows as lines of JSON."""

import json

import pytest

from crs_fast.crs.data import read_dialogues, write_dialogues
from crs_fast.crs.data.dialogue import Dialogue, Item, Mention, Turn
from crs_fast.crs.data.parquet import read_parquet_dialogues, read_parquet_items

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

ITEMS = (Item("m1", "Heat", 1995), Item("m2", "Ronin"), Item("m3", "Café", 2001))
DIALOGUES = (
    Dialogue(
        "d1",
        (
            Turn("seeker", "I liked Heat. A lot.", (Mention("m1", 8, 12),), None, (14,)),
            Turn("recommender", "Try Ronin!", (Mention("m2"),), "explain", corrected=("m2",)),
        ),
        {"m2": "liked", "m1": "not said"},
        ("m1",),
    ),
    Dialogue("d2", (Turn("seeker", "hi"), Turn("recommender", "hello", corrected=()))),
)
MESSAGES = (
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "I liked Heat (1995)."},
            {"role": "assistant", "content": "Try it!", "items": [{"item_id": "m2"}]},
        ]
    },
    {"messages": [{"role": "user", "content": "Café?"}, {"role": "assistant", "content": None}]},
)
UNKNOWN = {"role": "seeker", "text": "a", "items": [{"item_id": "x"}]}
LIKED_MAP = pa.map_(pa.string(), pa.string())


def rows(tmp_path, kind):
    """The rows, and the file of lines that holds the same."""
    path = tmp_path / "rows.jsonl"
    if kind == "turns":
        write_dialogues(path, DIALOGUES)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in MESSAGES))
    return [json.loads(line) for line in path.open()], path


def written(tmp_path, rows, schema=None):
    """A file whose rows all have every key, as columns have them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pa.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows], schema)
    parquet.write_table(table, tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


@pytest.mark.parametrize("kind", ["turns", "messages"])
@pytest.mark.parametrize("cells", ["nested", "JSON"])
def test_columns_read_as_lines(tmp_path, kind, cells):
    given, lines = rows(tmp_path, kind)
    if cells == "JSON":
        given = [
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in given
        ]
    read = read_parquet_dialogues("op", written(tmp_path, given), ITEMS)
    assert read == read_dialogues(lines, ITEMS)
    if kind == "turns":
        assert read == DIALOGUES
        assert read[0].turns[0].breaks == (14,)
    else:
        assert read[0].dialogue_id == "rows-1"
        assert [m.item_id for m in read[0].turns[0].mentions] == ["m1"]


def test_opinions_may_be_a_map(tmp_path):
    given, lines = rows(tmp_path, "turns")
    table = pa.Table.from_pylist(given)
    opinions = pa.array([list(row.get("liked", {}).items()) for row in given], LIKED_MAP)
    table = table.set_column(table.schema.get_field_index("liked"), "liked", opinions)
    parquet.write_table(table, tmp_path / "rows.parquet")
    read = read_parquet_dialogues("op", tmp_path / "rows.parquet", ITEMS)
    assert read == read_dialogues(lines, ITEMS)


def test_nulls_within_cells_count_as_absent(tmp_path):
    opinions = pa.array([[("m1", "liked"), ("m2", None)]], LIKED_MAP)
    columns = {"dialogue_id": ["d"], "turns": ["[]"], "liked": opinions, "seen": [["m1", None]]}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    (read,) = read_parquet_dialogues("op", tmp_path / "rows.parquet", ITEMS)
    (tmp_path / "rows.jsonl").write_text(
        '{"dialogue_id": "d", "turns": [], "liked": {"m1": "liked"}, "seen": ["m1"]}'
    )
    assert (read,) == read_dialogues(tmp_path / "rows.jsonl", ITEMS)


def test_a_broken_item_is_named_with_its_file(tmp_path):
    rows = [{"item_id": "m1", "title": "Heat"}, {"item_id": None, "title": "Up"}]
    with pytest.raises(ValueError, match=r"op: rows\.parquet, row 2 must be readable: no key"):
        read_parquet_items("op", written(tmp_path, rows))


def test_rows_of_several_batches_are_numbered_on(tmp_path, monkeypatch):
    monkeypatch.setattr("crs_fast.crs.data.parquet._BATCH", 2)
    given = [{"messages": MESSAGES[0]["messages"]} for _ in range(5)]
    read = read_parquet_dialogues("op", written(tmp_path, given), ITEMS)
    assert [dialogue.dialogue_id for dialogue in read] == [f"rows-{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"dialogue_id": "d", "turns": "[{"}, "row 2 must be readable: Expecting"),
        ({"dialogue_id": "d", "turns": None}, "row 2 must be readable: no key 'turns'"),
        ({"dialogue_id": "d0", "turns": "[]"}, "dialogue_id must be given once"),
        ({"dialogue_id": "d", "turns": json.dumps([UNKNOWN])}, "item_id must be in the catalogue"),
        ({"dialogue_id": "d", "turns": "7"}, "row 2 must be readable"),
        ({"dialogue_id": "d", "turns": "[]", "liked": "[1]"}, "row 2 must be readable"),
    ],
)
def test_broken_rows_are_named(tmp_path, row, said):
    path = written(tmp_path, [{"dialogue_id": "d0", "turns": "[]"}, row])
    with pytest.raises(ValueError, match=f"op: rows.parquet, .*{said}"):
        read_parquet_dialogues("op", path, ITEMS)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"op: rows\.parquet must be a parquet file"):
        read_parquet_dialogues("op", tmp_path / "rows.parquet", ITEMS)
