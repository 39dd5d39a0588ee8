"""Alignment tasks: what an item's SID says in words (LC-Rec: Zheng et al., arXiv 2311.09049)."""

from __future__ import annotations

from collections.abc import Sequence

from crs_fast.crs.data.dialogue import Item
from crs_fast.crs.sequence import Instance, SequenceBuilder

TEXT_TOKENS = 96


def alignment_instances(builder: SequenceBuilder, items: Sequence[Item]) -> list[list[Instance]]:
    """For each item: its text -> its SID, and its SID -> its title. One group an instance."""
    ask, name = builder.text("\nThis film's ID:"), builder.text("\nThis film's title:")
    groups = []
    for item in items:
        sid = builder.item(item.item_id)
        text = builder.text(item.text())[:TEXT_TOKENS]
        title = builder.text(f" {item.display()}")
        pairs = (((*text, *ask), (*sid, builder.eos)), ((*sid, *name), (*title, builder.eos)))
        groups += [[Instance(0, item.item_id, context, reply)] for context, reply in pairs]
    return groups
