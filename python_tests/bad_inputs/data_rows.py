"""The rows of items, dialogues, data files, and of what a recommender is given beside its model."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crs_fast import RQKMeans
from crs_fast.crs import (
    ControlTokens,
    CrsDataset,
    Dialogue,
    Exposure,
    Item,
    ItemEncoder,
    ItemGroups,
    JoinedBeams,
    Mention,
    TextNeighbours,
    Turn,
    read_dialogues,
    read_items,
    write_dialogues,
    write_items,
)
from crs_fast.trie import SidTrie
from python_tests.crs.tiny_system import DIALOGUE, ITEMS, dialogues, system

from .ops_rows import INF, NAN, TRIE
from .table import ERROR, SAME, Call, Change, filled, scalars

DIALOGUES = tuple(dialogues(3))
ITEM_TRIE = SidTrie.from_sids([[n, n % 3] for n in range(8)], [item.item_id for item in ITEMS])


def value_calls() -> list[Call]:
    mention = Mention("i1", 2, 6)
    turn = Turn("seeker", "a film", (mention,))

    def items(item_id: Any, title: Any, year: Any, fields: Any, imdb_id: Any) -> Any:
        made = Item(item_id, title, year, fields, imdb_id)
        return [made.item_id, made.year, made.text(), made.display()]

    no_items = scalars(None, "x", 3, ["x"], [None], (3,), {})
    return [
        Call("Item", items,
             lambda: dict(item_id="m1", title="Heat", year=1995, fields={"plot": "x"},
                          imdb_id="tt1"),
             {"item_id": scalars(None, 3, b"x", ["x"]),
              "title": scalars(None, 3, b"x", ["x"]),
              "year": [*scalars("x", 1.5, True, [1995], INF),
                       *scalars("1995", 1995.0, np.int64(1995), verdict=SAME)],
              "fields": scalars(None, 3, "x", ["x"]),
              "imdb_id": scalars(3, b"x", ["x"])}),
        Call("Mention", lambda **a: str(Mention(**a)),
             lambda: dict(item_id="m1", start=2, end=6),
             {"item_id": scalars(None, 3, b"x", ["x"]),
              "start": scalars(None, 1.5, "x", True, [2]),
              "end": scalars(None, 6.0, "x", True, [2])}),
        Call("Turn", lambda **a: repr(Turn(**a)),
             lambda: dict(role="seeker", text="a film", mentions=(mention,), intent=None,
                          breaks=(2,), corrected=None),
             {"role": scalars(None, "user", "", 3, ["seeker"]),
              "text": scalars(None, 3, b"a film", ["a", "f"]),
              "mentions": [*scalars(None, 3, "x", ("m1",), (None,), {}),
                           Change("past the text", ERROR, lambda _: (Mention("m", 3, 9),)),
                           Change("before the text", ERROR, lambda _: (Mention("m", -3, 2),)),
                           Change("overlapping", ERROR, lambda m: (*m, Mention("m", 3, 5))),
                           Change("list", SAME, list)],
              "intent": scalars(3, ["x"], b"x"),
              "breaks": scalars(None, 3, "x", (0,), (9,), (3, 2), (1.5,), ("x",)),
              "corrected": scalars(3, "x", (3,), (None,))}),
        Call("Dialogue", lambda **a: Dialogue(**a).dialogue_id,
             lambda: dict(dialogue_id="d", turns=(turn,), liked={"i1": "liked"}, seen=("i1",)),
             {"dialogue_id": scalars(None, 3, b"x", ["x"]),
              "turns": [*scalars(None, 3, "x", ("x",), (None,), {}),
                        Change("a turn alone", ERROR, lambda turns: turns[0])],
              "liked": scalars(None, 3, "x", ["i1"], {"i1": 1}, {"i1": "yes"}),
              "seen": scalars(None, 3, "x", (3,), (None,))}),
        Call("CrsDataset", lambda **a: CrsDataset(**a).name,
             lambda: dict(name="x", items=ITEMS, splits={"train": DIALOGUES}),
             {"name": scalars(None, 3, ["x"]),
              "items": no_items,
              "splits": [*scalars(None, 3, "x", {"train": None}, {"train": "x"}, {"train": (3,)}),
                         Change("dialogues alone", ERROR, lambda s: s["train"]),
                         Change("one dialogue", ERROR, lambda s: {"train": DIALOGUE})]}),
    ]  # fmt: skip


def _written(write: Any, content: Any, path: Any) -> Any:
    """What is in a folder after a file was written into it, or the error with nothing written."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / path if isinstance(path, str) and path else path
        try:
            write(path, content)
        except (ValueError, TypeError):
            assert list(Path(folder).iterdir()) == []
            raise
        return [file.read_bytes() for file in sorted(Path(folder).iterdir())]


def _read(read: Any, name: str, **arguments: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_items(Path(folder) / "items.jsonl", ITEMS)
        write_dialogues(Path(folder) / "train.jsonl", DIALOGUES)
        if arguments["path"] == name:
            arguments["path"] = Path(folder) / name
        return len(read(**arguments))


def file_calls() -> list[Call]:
    paths = scalars(None, 3, b"x", [], "", "/", "/nowhere/items.jsonl")
    how = {"on_error": scalars(None, "x", 3, ["raise"]), "report": scalars("x", 3, {})}
    a, b = DIALOGUES[0], DIALOGUES[1]
    return [
        Call("read_items", functools.partial(_read, read_items, "items.jsonl"),
             lambda: dict(path="items.jsonl", on_error="raise", report=None),
             {"path": paths, **how}),
        Call("read_dialogues", functools.partial(_read, read_dialogues, "train.jsonl"),
             lambda: dict(path="train.jsonl", items=ITEMS, on_error="raise", report=None),
             {"path": paths, "items": scalars("x", 3, ["x"], [None], {}), **how}),
        Call("write_items", lambda path, items: _written(write_items, items, path),
             lambda: dict(path="items.jsonl", items=ITEMS),
             {"path": scalars(None, 3, b"x", ""),
              "items": [*scalars(None, 3, "x", ["x"], [None], {}),
                        Change("no title", ERROR, lambda _: [Item("a", "")]),
                        Change("no id", ERROR, lambda _: [Item("", "a")]),
                        Change("one id twice", ERROR, lambda items: [*items, items[0]]),
                        Change("a field named title", ERROR,
                               lambda _: [Item("a", "b", fields={"title": "x"})]),
                        Change("a field that is no text", ERROR,
                               lambda _: [Item("a", "b", fields={"plot": 3})]),
                        Change("one item", ERROR, lambda items: items[0]),
                        Change("generator", SAME, iter)]},
             aliases={"items": ("item ",)}),
        Call("write_dialogues", lambda path, dialogues: _written(write_dialogues, dialogues, path),
             lambda: dict(path="train.jsonl", dialogues=DIALOGUES),
             {"path": scalars(None, 3, b"x", ""),
              "dialogues": [*scalars(None, 3, "x", ["x"], [None], {}),
                            Change("one id twice", ERROR, lambda d: [*d, d[0]]),
                            Change("no id", ERROR, lambda d: [Dialogue("", d[0].turns)]),
                            Change("two turns of one role", ERROR,
                                   lambda _: [Dialogue("d", (a.turns[0], b.turns[0]))]),
                            Change("one dialogue", ERROR, lambda d: d[0]),
                            Change("generator", SAME, iter)]}),
    ]  # fmt: skip


def encode(texts: Any) -> torch.Tensor:
    """Text embeddings [n, 4] that differ by the texts' lengths."""
    rows = torch.tensor([[len(t), len(t) % 3, len(t) % 5, 1.0] for t in texts])
    return torch.nn.functional.normalize(rows, dim=1)


@functools.cache
def quantizer() -> RQKMeans:
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return RQKMeans(levels=2, codes=4, iterations=2).fit(x)


def exposure_calls() -> list[Call]:
    def exposure(**a: Any) -> Any:
        made = Exposure(**a)
        return [list(made.exclude), list(made.allow or ()), made.groups, made.max_per_group]

    def groups(**a: Any) -> Any:
        made = ItemGroups(**a)
        return [made.names, made.of("i1")]

    collections = scalars("i1", b"i1", 3, True)
    return [
        Call("Exposure", exposure,
             lambda: dict(exclude=["i1"], allow=["i2"], groups=["crime"], max_per_group=2,
                          repeat_named=True),
             {"exclude": [*collections, *scalars(None),
                          Change("generator", ERROR, iter)],
              "allow": [*collections, Change("generator", ERROR, iter)],
              "groups": [*collections, *scalars([3], [None]),
                         Change("upper case", SAME, lambda _: [" CRIME "])],
              "max_per_group": scalars(0, -1, 1.5, "x", True, [1], {"crime": 0}, {"crime": "x"},
                                       {"crime": 1.5}, {"crime": None}, {3: 1}),
              "repeat_named": scalars(None, "x", 3)}),
        Call("ItemGroups", groups,
             lambda: dict(items=ITEMS, trie=ITEM_TRIE, groups_of=lambda item: ["new"]),
             {"items": [*scalars(None, "x", 3, ["x"], {}),
                        Change("one item less", ERROR, lambda items: items[1:]),
                        Change("one item twice", ERROR, lambda items: [*items, items[0]])],
              "trie": [*scalars(None, "x", 3), Change("another", ERROR, lambda _: TRIE),
                       Change("tensors", ERROR, lambda trie: trie.tensors)],
              "groups_of": [*scalars(None, "x", 3),
                            Change("one text", ERROR, lambda _: lambda item: "new"),
                            Change("a number", ERROR, lambda _: lambda item: 3),
                            Change("numbers", ERROR, lambda _: lambda item: [3])]}),
    ]  # fmt: skip


@functools.cache
def tokenizer() -> Any:
    return system()[1]


def recommender_part_calls() -> list[Call]:
    tokens = scalars(None, -1, 1.5, "x", True, [3])
    positive = scalars(0, -1, 1.5, "x", None, True)
    embeddings = encode([item.text() for item in ITEMS])
    said = [Turn("seeker", "I like Film 3")]

    def neighbours(**a: Any) -> Any:
        return TextNeighbours(**a)([said])

    def sids(quantizer: Any, **a: Any) -> Any:
        return ItemEncoder(quantizer, encode).sids(**a)

    def join(**a: Any) -> Any:
        made = JoinedBeams(**a)
        return [made.share, made.rule]

    floats = [
        *scalars("x", 3, [["a"]], [None]),
        Change("NaN", ERROR, filled(NAN)),
        Change("inf", ERROR, filled(INF)),
        Change("integers", ERROR, lambda t: t.long()),
        Change("one row less", ERROR, lambda t: t[1:]),
        Change("one axis less", ERROR, lambda t: t[:, 0]),
        Change("array", SAME, lambda t: t.numpy()),
    ]
    return [
        Call("ControlTokens", lambda **a: ControlTokens(**a).tokens,
             lambda: dict(resp=1, chat=2, rec=3, fine={"rec:explain": 4}),
             {"resp": [*tokens, *scalars(2)], "chat": [*tokens, *scalars(3)],
              "rec": [*tokens, *scalars(1)],
              "fine": scalars(None, 3, "x", [("rec:x", 4)], {"x": 4}, {"rec": 4}, {"rec:": 4},
                              {3: 4}, {"rec:x": "y"}, {"rec:x": 2}, {"rec:x": -1})}),
        Call("ControlTokens.extend", lambda **a: ControlTokens.extend(**a).tokens,
             lambda: dict(tokenizer=tokenizer(), model=None, fine=["rec:explain"]),
             {"tokenizer": scalars(None, "x", 3), "model": scalars("x", 3),
              "fine": scalars(None, 3, "rec", ["x"], [3], ["rec:"])}),
        Call("ControlTokens.of", lambda **a: ControlTokens.of(**a).tokens,
             lambda: dict(tokenizer=tokenizer()), {"tokenizer": scalars(None, "x", 3)}),
        Call("JoinedBeams", join, lambda: dict(source=lambda contexts: [], share=0.1,
                                               rule="mixture"),
             {"source": scalars(None, "x", 3),
              "share": scalars(-0.1, 1.1, NAN, INF, "x", None, True, [0.1]),
              "rule": scalars("x", None, 3, ["mixture"])}),
        Call("TextNeighbours", neighbours,
             lambda: dict(items=ITEMS, encoder=encode, embeddings=embeddings.clone(), turns=2,
                          num_items=3, temperature=0.05),
             {"items": [*scalars(None, "x", 3, [], ["x"], {}),
                        Change("one item less", ERROR, lambda items: items[1:])],
              "encoder": scalars(3, {}, ["x"]),
              "embeddings": floats,
              "turns": positive, "num_items": positive,
              "temperature": scalars(0, -1.0, NAN, INF, "x", None, [1.0])},
             aliases={"items": ("items", "embeddings")}),
        Call("TextNeighbours call",
             lambda contexts: TextNeighbours(ITEMS, encode, num_items=3)(contexts),
             lambda: dict(contexts=[said]),
             {"contexts": scalars(None, "x", 3, ["x"], [["x"]], [[None]], [3])}),
        Call("ItemEncoder", lambda **a: ItemEncoder(**a).by_text,
             lambda: dict(quantizer=quantizer(), encoder=encode, by_text=True),
             {"quantizer": scalars("x", 3),
              "encoder": scalars(3, {}, ["x"]),
              "by_text": scalars(None, "x", 3)}),
        Call("ItemEncoder.read", ItemEncoder.read, lambda: dict(folder="/nowhere"),
             {"folder": scalars(None, 3, "", [])}),
        Call("ItemEncoder.sids", sids,
             lambda: dict(quantizer=quantizer(), items=ITEMS[:2],
                          occupied=torch.tensor([[0, 0], [1, 1]]),
                          embeddings=embeddings[:2].clone()),
             {"quantizer": scalars(None), "items": scalars(None, "x", 3, ["x"], {}),
              "occupied": [*scalars(None, "x", 3),
                           Change("one axis less", ERROR, lambda t: t[0]),
                           Change("floats", ERROR, lambda t: t.float()),
                           Change("one level less", ERROR, lambda t: t[:, :1])],
              "embeddings": [c for c in floats if c.label != "integers"]}),
    ]  # fmt: skip


def calls() -> list[Call]:
    return [
        *value_calls(),
        *file_calls(),
        *exposure_calls(),
        *recommender_part_calls(),
    ]
