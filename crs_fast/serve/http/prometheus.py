"""Figures of the running server for Prometheus: `GET /metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from ..engine import Engine
    from ..requests import TurnAnswer

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
STAGES = ("queue", "prefill", "rank", "write", "total")
OUTCOMES = ("busy", "invalid", "timeout", "cancelled", "internal")


class Meters:
    """Counters of one server, in a registry of its own so that a process may hold several."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.engine = engine
        self.turns = self._counter("turns", "Turns answered.", "mode")
        self.failures = self._counter("turns_failed", "Turns not answered.", "reason")
        self.tokens = self._counter("tokens", "Tokens of answered turns.", "kind")
        self.illegal = self._counter("illegal_items", "Fragments of SIDs that are no item.")
        self.unknown = self._counter("unknown_items", "Ids in requests that no item has.")
        self.latency = Histogram(
            "crs_fast_stage_seconds",
            "Seconds of each stage of a turn.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        for stage in STAGES:
            self.latency.labels(stage)
        for reason in OUTCOMES:
            self.failures.labels(reason)
        self.registry.register(self)  # the engine's figures are read when they are asked for

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"crs_fast_{name}", text, labels, registry=self.registry)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The engine's own figures, as gauges."""
        for name, value in sorted(self.engine.metrics.items()):
            if isinstance(value, int | float):
                yield GaugeMetricFamily(f"crs_fast_engine_{name}", f"The engine's {name}.", value)

    def answered(self, answer: TurnAnswer) -> None:
        """Count an answered turn."""
        self.turns.labels(answer.mode).inc()
        self.illegal.inc(answer.invalid_items)
        self.unknown.inc(len(answer.unknown_items))
        for kind, count in answer.usage.items():
            self.tokens.labels(kind.removesuffix("_tokens")).inc(count)
        for name, milliseconds in answer.timings.items():
            self.latency.labels(name.removesuffix("_ms")).observe(milliseconds / 1000)

    def failed(self, reason: str) -> None:
        """Count a turn that was not answered; reason is one of `OUTCOMES`."""
        self.failures.labels(reason).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
