"""Answers a split in parts, so that a run that is cut off goes on with the part it was at.

<folder>/parts/<first dialogue>/<decoding>.jsonl    a part that is complete
<folder>/<decoding>.jsonl                           all parts, one after the other
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from crs_fast._files import replacing, write_text
from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.evaluation.predictions import Prediction, write_predictions

PART = 256  # dialogues per part, enough to fill a GPU's batches


def answer_in_parts(
    answer: Callable[[Sequence[Dialogue]], dict[str, list[Prediction]]],
    dialogues: Sequence[Dialogue],
    folder: Path,
) -> None:
    """Write one file per decoding, `<decoding>.jsonl` ("predictions.jsonl" for the decoding "").
    Parts that an earlier call has answered are not answered again. Call `forget_parts` when all
    is done."""
    parts = [folder / "parts" / str(first) for first in range(0, len(dialogues), PART)]
    for part in parts:
        if part.is_dir():
            continue
        part.parent.mkdir(parents=True, exist_ok=True)
        first = int(part.name)
        answers = answer(dialogues[first : first + PART])
        with replacing(part) as partial:
            partial.mkdir()
            for decoding, predictions in answers.items():
                write_predictions(partial / f"{decoding or 'predictions'}.jsonl", predictions)
    for name in sorted({file.name for part in parts for file in part.iterdir()}):
        write_text(folder / name, "".join((part / name).read_text() for part in parts))


def forget_parts(folder: Path) -> None:
    """Delete the parts that `answer_in_parts` keeps for going on."""
    shutil.rmtree(folder / "parts", ignore_errors=True)
