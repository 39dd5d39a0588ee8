"""What the engine counts."""

from __future__ import annotations

from collections import Counter, deque

from .requests import TurnAnswer

_RECENT = 512  # turns whose latencies are looked at
_PERCENTILES = (50, 95, 99)


class Statistics:
    """Counts since the engine began, and latencies of the last turns. The engine's thread writes;
    any thread may read `figures`."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter(
            answered=0, failed=0, cancelled=0, late=0, busy=0, prompt_tokens=0, cached_tokens=0,
            completion_tokens=0, illegal_items=0, admissions=0, admitted=0, chunks=0, steps=0,
            step_rows=0,
        )  # fmt: skip
        self._recent: dict[str, deque[float]] = {}

    def answered(self, answer: TurnAnswer) -> None:
        """Count an answered turn."""
        self.counts.update(answer.usage)
        self.counts["answered"] += 1
        self.counts["illegal_items"] += answer.invalid_items
        for stage, milliseconds in answer.timings.items():
            self._recent.setdefault(stage, deque(maxlen=_RECENT)).append(milliseconds)

    def figures(self) -> dict[str, float]:
        """All counts by name, means of batch sizes, and percentiles such as `rank_ms_p95`."""
        out: dict[str, float] = dict(self.counts)
        out["mean_admitted"] = out["admitted"] / max(1, out["admissions"])
        out["mean_step_rows"] = out["step_rows"] / max(1, out["steps"])
        for stage in sorted(self._recent):
            values = sorted(list(self._recent[stage]))
            for percent in _PERCENTILES:
                out[f"{stage}_p{percent}"] = values[
                    min(len(values) - 1, len(values) * percent // 100)
                ]
        return out
