"""INSPIRED2 (Manzoor and Jannach, KaRS 2022): hand-corrected labels of INSPIRED's dev and test
dialogues; https://github.com/ahtsham58/INSPIRED2.

Its tables (`dev.tsv`, or `dev_set.tsv` as the authors name it, and likewise test) hold INSPIRED's
dialogues in INSPIRED's order with other movie tags. The labels become `Turn.corrected`; mentions,
contexts and catalogue stay INSPIRED's own, so a system answers once and is scored by both label
sets. A tag that INSPIRED's catalogue lacks is no item: nothing can rank it, and it stays a target.
The training dialogues have no such labels here.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crs_fast.crs.data.dialogue import CrsDataset, Dialogue, Mention, Turn, merge_turns
from crs_fast.crs.data.inspired import read_table
from crs_fast.crs.data.lines import OnError, ReadReport, find_file

SPLITS = {"dev": "valid", "test": "test"}


def with_corrected_labels(
    inspired: CrsDataset,
    folder: Path,
    on_error: OnError = "raise",
    report: ReadReport | None = None,
) -> CrsDataset:
    """INSPIRED with the labels of `folder`'s tables; unchanged where there are none.

    Raises:
        ValueError: a broken line (unless `on_error` is "skip"), or a table that doesn't hold the
            split's turns.
    """
    report = ReadReport() if report is None else report
    splits = dict(inspired.splits)
    for name, split in SPLITS.items():
        path = find_file(folder, f"{name}.tsv", f"{name}_set.tsv")
        if path is None or split not in splits:
            continue
        table = [
            merge_turns([Turn(t.role, t.text, tuple(map(Mention, t.tags))) for t in turns])
            for _, turns in read_table(path, name, on_error, report)
        ]
        roles = [[[turn.role for turn in turns] for turns in one]
                 for one in (table, [dialogue.turns for dialogue in splits[split]])]  # fmt: skip
        if roles[0] != roles[1]:
            raise ValueError(
                f"load_dataset: {path} must hold the turns of INSPIRED's {name} dialogues "
                f"(got {len(roles[0])} dialogues, {len(roles[1])} expected, or other turns)"
            )
        pairs = zip(splits[split], table, strict=True)
        splits[split] = tuple(_labelled(dialogue, turns) for dialogue, turns in pairs)
    return replace(inspired, splits=splits)


def _labelled(dialogue: Dialogue, table: tuple[Turn, ...]) -> Dialogue:
    pairs = zip(dialogue.turns, table, strict=True)
    turns = tuple(replace(turn, corrected=tuple(row.item_ids())) for turn, row in pairs)
    return replace(dialogue, turns=turns)
