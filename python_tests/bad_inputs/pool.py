"""Runs rows in subprocesses that are started again after a crash, so that a crash is a row."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import NamedTuple

SECONDS = 600  # of one batch of rows, on a busy machine


class Outcome(NamedTuple):
    row: str
    what: str
    details: str


def run(names: Sequence[str], workers: int = 2) -> list[Outcome]:
    """What happened in each row, in order of `names`."""
    outcomes: dict[str, Outcome] = {}
    threads = [
        threading.Thread(target=_run, args=(list(names[at::workers]), outcomes))
        for at in range(workers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcomes[name] for name in names]


def _run(names: list[str], outcomes: dict[str, Outcome]) -> None:
    left = names
    while left:
        lines = "".join(json.dumps(name) + "\n" for name in left)
        command = [sys.executable, "-m", "python_tests.bad_inputs"]
        try:
            done = subprocess.run(
                command, input=lines, capture_output=True, text=True, timeout=SECONDS
            )
            written, ended = done.stdout, f"exit {done.returncode}: {done.stderr[-500:]}"
        except subprocess.TimeoutExpired as error:
            written, ended = (error.stdout or b"").decode(), f"nothing after {SECONDS} seconds"
        begun = None
        for line in written.splitlines():
            name, what, details = json.loads(line)
            begun = name if what == "begun" else None
            if what != "begun":
                outcomes[name] = Outcome(name, what, details)
        if begun is not None:
            outcomes[begun] = Outcome(begun, "crash", ended)
        after = [name for name in left if name not in outcomes]
        if len(after) == len(left):  # it did not even begin
            outcomes |= {name: Outcome(name, "crash", ended) for name in after}
            return
        left = after
