"""Recommendation turns for many callers at once, from one model."""

from .catalogue import Catalogue, CatalogueStore
from .engine import Engine
from .requests import (
    Busy,
    Cancelled,
    Done,
    Event,
    Failed,
    Ranked,
    Text,
    TurnAnswer,
    TurnRequest,
)
from .ticket import Ticket

__all__ = [
    "Busy",
    "Cancelled",
    "Catalogue",
    "CatalogueStore",
    "Done",
    "Engine",
    "Event",
    "Failed",
    "Ranked",
    "Text",
    "Ticket",
    "TurnAnswer",
    "TurnRequest",
]
