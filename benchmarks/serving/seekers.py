"""What the simulated seekers of a load test say."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from crs_fast.crs.data.dialogue import SEEKER
from crs_fast.crs.data.starter import load_starter


@dataclass
class Conversation:
    """One conversation as it goes on: `messages` is what the recommender reads next."""

    name: str
    lines: list[str]
    messages: list[dict[str, Any]] = field(default_factory=list)

    def say(self) -> bool:
        """Say the next line. False if there is none."""
        said = sum(message["role"] == "user" for message in self.messages)
        if said == len(self.lines):
            return False
        self.messages.append({"role": "user", "content": self.lines[said]})
        return True

    def hear(self, text: str, item_ids: list[str]) -> None:
        """Take the recommender's turn."""
        self.messages.append({"role": "assistant", "content": text, "shown": item_ids})


def conversations(client: int, clients: int) -> Iterator[Conversation]:
    """The conversations of one client, without end: the seekers' lines of simulated held-out
    dialogues, which are others for each client."""
    for number in itertools.count():
        for name, lines in _scripts()[client::clients]:
            yield Conversation(f"{client}-{number}-{name}", lines)


@lru_cache(maxsize=1)
def _scripts() -> list[tuple[str, list[str]]]:
    dialogues = load_starter(train=0, valid=0, test=400).splits["test"]
    return [
        (d.dialogue_id, [turn.text for turn in d.turns if turn.role == SEEKER and turn.text])
        for d in dialogues
    ]
