"""Alignment tasks, that tie an item's SID to its words (LC-Rec, arXiv 2311.09049)."""

from __future__ import annotations

from collections.abc import Sequence

from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.sequence import Instance, SequenceBuilder

TEXT_TOKENS = 96


def alignment_instances(builder: SequenceBuilder, items: Sequence[Item]) -> list[list[Instance]]:
    """Two instances per item, from its text to its SID and from its SID to its title; each is a
    group of its own."""
    ask_id = builder.text("\nThis film's ID:")
    ask_title = builder.text("\nThis film's title:")
    groups = []
    for item in items:
        sid = builder.item(item.item_id)
        text = builder.text(item.text())[:TEXT_TOKENS]
        title = builder.text(f" {item.display()}")
        pairs = (
            ((*text, *ask_id), (*sid, builder.eos)),
            ((*sid, *ask_title), (*title, builder.eos)),
        )
        groups += [[Instance(0, item.item_id, context, reply)] for context, reply in pairs]
    return groups
