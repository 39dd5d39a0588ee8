"""How the words of a reply are chosen from their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy, or samples at a temperature from the likeliest words that together have `top_p`.

    Raises:
        ValueError: a temperature that is not above 0, or `top_p` outside of (0, 1].
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"Sampling: temperature must be above 0 (got {self.temperature})")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p must be above 0 and at most 1 (got {self.top_p})")


GREEDY = Sampling()


def choose(
    scores: torch.Tensor,
    ways: Sequence[Sampling],
    generators: Sequence[torch.Generator | None],
) -> torch.Tensor:
    """A token for each row of scores float32 [R, V]: int64 [R]. A row that samples draws from its
    own generator (None: torch's), so what it draws does not depend on the other rows."""
    tokens = scores.argmax(1)
    rows = [row for row, way in enumerate(ways) if way.do_sample]
    if not rows:
        return tokens
    temperature, top_p = (
        torch.tensor([getattr(ways[row], name) for row in rows], device=scores.device)
        for name in ("temperature", "top_p")
    )
    ordered, order = (scores[rows] / temperature[:, None]).sort(1)  # ascending, [S, V]
    below = ordered.softmax(1).cumsum(1) <= (1 - top_p)[:, None]
    below &= (top_p < 1)[:, None]
    below[:, -1] = False
    probabilities = ordered.masked_fill(below, float("-inf")).softmax(1)
    for at, row in enumerate(rows):
        drawn = torch.multinomial(probabilities[at], 1, generator=generators[row])
        tokens[row] = order[at, drawn[0]]
    return tokens
