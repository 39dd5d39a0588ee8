"""The rows of tries, vocabularies, filters, slots, quantizers and searches."""

from __future__ import annotations

from .table import Call


def calls() -> list[Call]:
    return []
