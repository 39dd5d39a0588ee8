"""Rows of the UniCRS family: `{train,valid,test}_data_processed.jsonl`, as UniCRS, iEvaLM-CRS and
what was built on them write and read. One row per reply:

    {"context": ["", "Hi!", "I like Heat (1995)"], "resp": "Try Ronin (1998)",
     "rec": ["Ronin (1998)"], "entity": ["Heat (1995)"]}

`context` holds all earlier turns, `rec` the items of the reply, `entity` all entities of the
context. Items are names, or numbers that `entity2id.json` names (DBpedia links or titles).
`item_ids.json` (or `movie_ids.json`) says which of them are items, `id2info.json` has their texts;
they are looked for in the folder, and for iEvaLM's `redial_eval` in `redial` beside it. Without
them the catalogue is every `rec` of all splits, and what seekers alone name is no item. Every file
may be gzipped, "dev" is "valid".

Rows come in three shapes, told apart by the files:

- one row for every recommender turn, items of `resp` masked as `<movie>` (UniCRS, `process_mask`)
- one row for every recommender turn that names an item, with `dialog_id` and `turn_id` (iEvaLM)
- one row for every turn of both roles (UniCRS, `process`)

What rows don't say is guessed, and counted in `ReadReport.guessed`:

- A dialogue's bounds, where there is no `dialog_id`: a row goes on with the dialogue of the row
  before it if its context begins with that row's context and reply.
- Roles: by place, the seeker's turns stand at even places of `context` and the recommender's at
  odd ones; where the recommender begins, place 0 is "". `turn_id` counts without that empty place,
  so it is never read: taken for a place it would lose two thirds of iEvaLM's ReDial targets. In the
  third shape place 0 is always empty, so there the recommender is taken to begin every dialogue. In
  the other two a reply at an even place is the recommender's all the same.
- Where an item stands in the text: its title is looked for (`locate_items`), and the k-th `<movie>`
  of a reply that no later context repeats is the k-th of its items.
- Who named the items of `entity`: a seeker turn since the last row, the one whose text has the
  title or else the latest. A recommender turn names what its own row says and nothing more, so that
  targets are exactly the rows' `rec`.

In the third shape `rec` holds every entity of the turn, so there `item_ids.json` decides what is an
item; in the others every `rec` is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from crs_fast.crs.data.dialogue import (
    RECOMMENDER,
    SEEKER,
    CrsDataset,
    Dialogue,
    Item,
    Turn,
    merge_turns,
)
from crs_fast.crs.data.entity_spans import locate_items
from crs_fast.crs.data.lines import (
    OnError,
    ReadReport,
    by_number,
    find_file,
    json_object,
    read_info,
    read_json,
    read_lines,
    split_title,
)
from crs_fast.crs.data.redial import info_fields

FILES = {"train": ("train",), "valid": ("valid", "dev"), "test": ("test",)}
MASK = "<movie>"
_LINK = re.compile(r"<?https?://dbpedia\.org/resource/([^>]*)>?")


@dataclass(slots=True)
class Row:
    """A line: item and entity values as strings."""

    context: list[str]
    resp: str
    rec: list[str]
    entity: list[str]
    dialogue: str | None = None

    @property
    def place(self) -> int:
        """Where the reply stands, counted as the places of `context`."""
        return len(self.context)


@dataclass(slots=True)
class _Names:
    """What the files beside the rows say: names by number, items, and their texts by name."""

    of_number: dict[str, str] = field(default_factory=dict)
    items: list[str] | None = None
    info: dict[str, dict[str, Any]] = field(default_factory=dict)


def processed_files(folder: Path) -> dict[str, Path]:
    """Split -> the file of its rows, for those that are there."""
    found = {
        split: find_file(folder, *(f"{name}_data_processed.jsonl" for name in names))
        for split, names in FILES.items()
    }
    return {split: path for split, path in found.items() if path is not None}


def load_unicrs(
    folder: Path, on_error: OnError = "raise", report: ReadReport | None = None
) -> CrsDataset:
    """Read a folder of rows (this module's docstring has the format).

    Raises:
        FileNotFoundError: no split is there.
        ValueError: a broken line, with file and line number, unless `on_error` is "skip"; or rows
            of one `dialog_id` whose contexts don't continue each other.
    """
    report = ReadReport() if report is None else report
    files = processed_files(folder)
    if not files:
        raise FileNotFoundError(
            f"load_dataset: {folder} must hold a split's _data_processed.jsonl, plain or .gz "
            "(got none)"
        )
    rows = {split: read_lines(path, _parse, on_error, report) for split, path in files.items()}
    groups = {split: _dialogues(rows[split], files[split], report) for split in rows}
    dialogues = [of_one for split in groups.values() for of_one in split]
    several = Counter(of_one[0].dialogue for of_one in dialogues if of_one[0].dialogue)
    shared = sum(n > 1 for n in several.values())
    if shared:
        report.noise["dialogues with rows in several splits, which share contexts"] += shared
    both = _are_both_roles(dialogues)
    items = _catalogue(dialogues, _read_names(folder), both, report)
    catalogue = {item.item_id: item for item in items}
    splits = {
        split: tuple(
            _dialogue(of_one[0].dialogue or f"{split}-{number}", of_one, catalogue, both, report)
            for number, of_one in enumerate(groups[split])
        )
        for split in groups
    }
    return CrsDataset(folder.name, items, splits)


def _are_both_roles(dialogues: Sequence[Sequence[Row]]) -> bool:
    """Whether rows follow each other place by place, as those of both roles do."""
    steps = [after.place - before.place for rows in dialogues for before, after in pairwise(rows)]
    return 2 * steps.count(1) > len(steps) - steps.count(0)


def _parse(line: str) -> Row:
    record = json_object(line)
    context, resp = record["context"], record["resp"]
    if not isinstance(context, list) or not all(isinstance(text, str) for text in context):
        raise ValueError(f"context must be a list of strings (got {context!r})")
    if not isinstance(resp, str):
        raise ValueError(f"resp must be a string (got {resp!r})")
    # Without an empty place the recommender's first words would stand where a seeker's do.
    context = context or [""]
    name = record.get("dialog_id")
    rec, entity = _values(record["rec"], "rec"), _values(record.get("entity") or [], "entity")
    return Row(context, resp, rec, entity, None if name is None else str(name))


def _values(value: Any, key: str) -> list[str]:
    if not isinstance(value, list) or not all(type(v) in (int, str) for v in value):
        raise ValueError(f"{key} must be a list of names or numbers (got {value!r})")
    return [str(v) for v in value]


def _dialogues(rows: Sequence[Row], path: Path, report: ReadReport) -> list[list[Row]]:
    """The rows of each dialogue, by place."""
    named: dict[str, list[Row]] = {}
    groups: list[list[Row]] = []
    for row in rows:
        if row.dialogue is not None:
            if row.dialogue not in named:
                named[row.dialogue] = []
                groups.append(named[row.dialogue])
            named[row.dialogue].append(row)
        elif groups and groups[-1][0].dialogue is None and _goes_on(groups[-1][-1], row):
            groups[-1].append(row)
        else:
            groups.append([row])
            report.guessed["dialogues whose bounds come from contexts that go on"] += 1
    for group in groups:
        group.sort(key=lambda row: row.place)
        for before, after in pairwise(group):
            if not _goes_on(before, after):
                raise ValueError(
                    f"load_dataset: {path} must hold rows that continue each other in dialogue "
                    f"{after.dialogue!r} (got another context at place {before.place})"
                )
    return groups


def _goes_on(before: Row, after: Row) -> bool:
    """Whether a row is a later one of the same dialogue, or the same reply with another item."""
    if after.context[: before.place] != before.context:
        return False
    if after.place == before.place:
        another = bool(before.rec and after.rec) and before.rec != after.rec
        return another and after.resp == before.resp
    parts = map(re.escape, before.resp.split(MASK))
    return re.fullmatch(".*".join(parts), after.context[before.place], re.DOTALL) is not None


def _read_names(folder: Path) -> _Names:
    folders = [folder]
    if folder.name.endswith("_eval"):
        folders.append(folder.parent / folder.name.removesuffix("_eval"))

    def find(*names: str) -> Path | None:
        paths = (find_file(place, *names) for place in folders)
        return next((path for path in paths if path is not None), None)

    def read(kind: type, *names: str) -> Any:
        path = find(*names)
        value = None if path is None else read_json(path)
        if value is not None and not isinstance(value, kind):
            what = "an object" if kind is dict else "a list"
            raise ValueError(f"load_dataset: {path} must hold {what} (got {value!r:.200})")
        return value

    numbers, info = read(dict, "entity2id.json") or {}, find("id2info.json")
    items = read(list, "item_ids.json", "movie_ids.json")
    texts = {} if info is None else read_info(info, "name")
    return _Names(
        {str(number): name for name, number in numbers.items()},
        None if items is None else [str(item) for item in items],
        {facts["name"]: facts for facts in texts.values()},
    )


def _catalogue(
    dialogues: Sequence[Sequence[Row]], names: _Names, both: bool, report: ReadReport
) -> tuple[Item, ...]:
    """Items in the order of `item_ids.json`, then those that it lacks, sorted."""
    values = {value for rows in dialogues for row in rows for value in row.rec}
    listed = names.items
    if listed is None or not both:
        if listed is not None and not values & set(listed):  # the rows have names, the list numbers
            listed = [names.of_number.get(item, item) for item in listed]
        missing = values - set(listed or ())
        if missing:
            report.guessed["items known from `rec` alone"] += len(missing)
        listed = [*(listed or ()), *sorted(missing, key=by_number)]
    return tuple(_item(value, names, report) for value in dict.fromkeys(listed))


def _item(value: str, names: _Names, report: ReadReport) -> Item:
    name = names.of_number.get(value, value)
    link = _LINK.fullmatch(name)
    if link:
        name = unquote(link[1]).replace("_", " ")
    elif name.isdigit() and not names.of_number:
        report.guessed["items without a title (no entity2id.json)"] += 1
    info = names.info.get(name) or {}
    title, year = split_title(name)
    if year is None and re.fullmatch("[0-9]{1,9}", str(info.get("year") or "")):
        year = int(info["year"])
    fields = info_fields({**info, "star": info.get("star") or info.get("actor")})
    return Item(value, title, year, fields, info.get("imdb_id") or None)


def _dialogue(
    name: str, rows: Sequence[Row], catalogue: dict[str, Item], both: bool, report: ReadReport
) -> Dialogue:
    last = rows[-1]
    texts = [*last.context, last.resp]
    roles = _roles(rows, texts, both, report)
    named: dict[int, list[str]] = {place: [] for place in range(len(texts))}
    before = -1
    for row in rows:
        earlier = {item for place in range(row.place) for item in named[place]}
        unknown = [v for v in dict.fromkeys(row.entity) if v in catalogue and v not in earlier]
        places = [p for p in range(row.place) if roles[p] == SEEKER and texts[p]]
        recent = [p for p in places if p > before] or places[-1:]
        for value in unknown:
            place = _namer(catalogue[value], texts, recent)
            if place is None:
                report.guessed["items of `entity` dropped: no seeker turn before them"] += 1
                continue
            report.guessed["items of `entity` given to a seeker turn"] += 1
            named[place].append(value)
        for value in row.rec:
            if value in catalogue:
                named[row.place].append(value)
            else:
                report.noise["`rec` that is no item, dropped"] += 1
        before = row.place
    turns = [
        _turn(roles[p], text, [catalogue[v] for v in named[p]], p == last.place, report)
        for p, text in enumerate(texts)
        if text or named[p]
    ]
    return Dialogue(name, merge_turns(turns))


def _roles(rows: Sequence[Row], texts: Sequence[str], both: bool, report: ReadReport) -> list[str]:
    roles = [RECOMMENDER if place % 2 else SEEKER for place in range(len(texts))]
    report.guessed["turns whose role comes from their place"] += sum(map(bool, texts))
    if both:
        report.guessed["dialogues that the recommender is taken to begin"] += 1
        return roles
    for place in {row.place for row in rows}:
        if roles[place] == SEEKER:
            report.guessed["replies at a seeker's place"] += 1
            roles[place] = RECOMMENDER
    return roles


def _namer(item: Item, texts: Sequence[str], places: Sequence[int]) -> int | None:
    """The last place whose text has the item's title as it is, or else like it, or the last."""
    title = item.title.casefold()
    as_it_is = [p for p in places if title in texts[p].casefold()]
    alike = [p for p in places if not as_it_is and locate_items(texts[p], [item])[0].located]
    return next(iter([*as_it_is[-1:], *alike[-1:], *places[-1:]]), None)


def _turn(role: str, text: str, items: Sequence[Item], is_last: bool, report: ReadReport) -> Turn:
    if is_last and items and text.count(MASK) == len(items):
        report.guessed["masked items filled in, in the order of `rec`"] += len(items)
        for item in items:
            text = text.replace(MASK, item.display(), 1)
    mentions = locate_items(text, items)
    for mention in mentions:
        found = "found by title" if mention.located else "not found"
        report.guessed[f"mentions whose place was {found}"] += 1
    return Turn(role, text, mentions)
