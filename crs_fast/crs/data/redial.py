"""ReDial (Li et al., NeurIPS 2018): movies, English; https://redialdata.github.io/website.

Reads the official release (`train_data.jsonl`, `test_data.jsonl`, `movies_with_mentions.csv`) or
a copy that lacks part of the training dialogues (`train_exact.jsonl`, whose lines are official,
and `train_reconstructed.jsonl`). Every file may be gzipped. The official release has no
validation split: ours is the official training lines whose conversationId is divisible by 10.

The forms were filled in after the dialogue: of them only what the seeker liked and had seen is
read, for oracles and for scoring (`Dialogue.liked`, `Dialogue.seen`).
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crs_fast.crs.data.dialogue import (
    OPINIONS,
    RECOMMENDER,
    SEEKER,
    CrsDataset,
    Dialogue,
    Item,
    Mention,
    Turn,
    merge_turns,
)
from crs_fast.crs.data.intents import read_iard, with_intents
from crs_fast.crs.data.lines import (
    Once,
    OnError,
    ReadReport,
    by_number,
    data_object,
    find_file,
    need_file,
    read_info,
    read_lines,
    read_text,
    split_title,
)

_MENTION = re.compile(r"@([0-9]+)")


def info_fields(info: dict[str, Any] | None) -> dict[str, str]:
    """Text fields of an `id2info.json` entry: genres, director (2), cast (4), plot."""
    if info is None:
        return {}
    fields = {
        "genres": ", ".join(info.get("genre") or []),
        "director": ", ".join((info.get("director") or [])[:2]),
        "cast": ", ".join((info.get("star") or [])[:4]),
        "plot": " ".join((info.get("plot") or "").split()),
    }
    return {name: text for name, text in fields.items() if text}


def read_catalogue(folder: Path) -> tuple[Item, ...]:
    """The items of `movies_with_mentions.csv` in numeric id order, with the fields of
    `id2info.json` where that file is there (an official download has none: title and year only).
    Its IMDb ids were found by title, and some are wrong (three High School Musicals share one).

    Raises:
        ValueError: a row without a numeric movieId or a movieName, with its line number.
    """
    path = need_file(folder, "movies_with_mentions.csv")
    info_path = find_file(folder, "id2info.json")
    info = {} if info_path is None else read_info(info_path)
    # Not splitlines(), which takes U+2028 and others for line ends.
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
    ids = Once("movieId")
    items = []
    for row in _csv_rows(rows, path):
        movie_id, name = row.get("movieId") or "", row.get("movieName") or ""
        if not movie_id.isascii() or not movie_id.isdigit() or not name.strip():
            raise ValueError(
                f"load_dataset: {path}, line {rows.line_num} must hold movieId and movieName "
                f"(got {movie_id!r}, {name!r})"
            )
        try:
            ids.check(movie_id)
        except ValueError as error:
            raise ValueError(f"load_dataset: {path}, line {rows.line_num}: {error}") from None
        facts = info.get(movie_id) or {}
        imdb_id = facts.get("imdb_id") or None
        items.append(Item(movie_id, *split_title(name), info_fields(facts), imdb_id))
    return tuple(sorted(items, key=lambda item: by_number(item.item_id)))


def _csv_rows(rows: csv.DictReader[str], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(
            f"load_dataset: {path}, line {rows.line_num} must be CSV (got {error})"
        ) from error


def _message_turn(role: str, message: str, catalogue: dict[str, Item], report: ReadReport) -> Turn:
    if not isinstance(message, str):
        raise ValueError(f"text must be a string (got {message!r})")
    text, at, mentions = "", 0, []
    for found in _MENTION.finditer(message):
        item = catalogue.get(found[1])
        if item is None:
            report.noise["@id not in the catalogue, left as text"] += 1
            continue
        text += message[at : found.start()]
        title = item.display()
        mentions.append(Mention(item.item_id, len(text), len(text) + len(title)))
        text += title
        at = found.end()
    return Turn(role, text + message[at:], tuple(mentions))


def _parse_dialogue(
    line: str, catalogue: dict[str, Item], ids: Once, report: ReadReport
) -> Dialogue:
    record = data_object(line, report)
    roles = {record["respondentWorkerId"]: RECOMMENDER, record["initiatorWorkerId"]: SEEKER}
    turns = [
        _message_turn(roles[message["senderWorkerId"]], message["text"], catalogue, report)
        for message in record["messages"]
    ]
    name = record.get("conversationId")
    if name is None:
        name = f"reconstructed-{record['sourceIndex']}"
    # A form that was not filled in is [], and its answers are 0, 1 and 2 in OPINIONS' order.
    form = record.get("initiatorQuestions") or {}
    answers = {item: answer for item, answer in form.items() if item in catalogue}
    liked = {
        item: OPINIONS[answer["liked"]]
        for item, answer in answers.items()
        if answer.get("liked") in (0, 1, 2)
    }
    seen = tuple(item for item, answer in answers.items() if answer.get("seen") == 1)
    return Dialogue(ids.check(str(name)), merge_turns(turns), liked, seen)


def _is_validation(dialogue: Dialogue) -> bool:
    name = dialogue.dialogue_id
    return name.isascii() and name.isdigit() and name.endswith("0")


def load_redial(
    folder: Path,
    iard: Path | None = None,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> CrsDataset:
    """Read ReDial (this module's docstring says which files).

    A mention `@123` becomes the movie's `Title (year)`, with a located `Mention`; an id that is
    not in the catalogue stays text.

    Args:
        folder: the folder.
        iard: IARD's folder, for the intents of 276 dialogues; None or a missing folder gives none.
        on_error: what to do with a broken line.
        report: filled in where given.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a broken line, with file and line number, unless `on_error` is "skip".
    """
    report = ReadReport() if report is None else report
    items = read_catalogue(folder)
    catalogue = {item.item_id: item for item in items}

    def read(path: Path) -> list[Dialogue]:
        ids = Once("conversationId")
        return read_lines(
            path, lambda line: _parse_dialogue(line, catalogue, ids, report), on_error, report
        )

    official = read(need_file(folder, "train_data.jsonl", "train_exact.jsonl"))
    train = [dialogue for dialogue in official if not _is_validation(dialogue)]
    rest = find_file(folder, "train_reconstructed.jsonl")
    if rest is not None and find_file(folder, "train_data.jsonl") is None:
        train += read(rest)
    splits = {
        "train": tuple(train),
        "valid": tuple(filter(_is_validation, official)),
        "test": tuple(read(need_file(folder, "test_data.jsonl"))),
    }
    path = None if iard is None else find_file(iard, "umap2020_IARD_Cai.json")
    if path is not None:
        labelled = read_iard(path)
        splits = {name: with_intents(split, labelled) for name, split in splits.items()}
    return CrsDataset("redial", items, splits)
