"""Every mention as a target: a model also learns to name each item of a dialogue where it stands in
the text, the seeker's items too, and not only those that recommender turns recommend.

    Instance("User: I loved <BOI>", "<a_3><b_7><c_1><d_0><EOI>")

Packed onto its dialogue's trunk, such a branch costs a SID's tokens and no more.
"""

from __future__ import annotations

from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.sequence import Instance, SequenceBuilder


def with_mentions(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """The builder's instances of a dialogue, then `mention_instances`."""
    return builder.instances(dialogue) + mention_instances(builder, dialogue)


def mention_instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """For each mention that is located in a turn's text, one instance whose context ends in its
    `<BOI>`. Where the dialogue outgrows `builder.max_length` it ends."""
    out: list[Instance] = []
    past: list[int] = []
    for index, tokens in enumerate(builder.turns(dialogue.turns)):
        start = len(past)
        past += tokens
        for begin in range(start, len(past)):
            if past[begin] != builder.begin:
                continue
            end = past.index(builder.end, begin) + 1
            if end > builder.max_length:
                return out
            item_id = builder.item_of(past[begin:end])
            context, response = past[: begin + 1], past[begin + 1 : end]
            out.append(Instance(index, item_id, tuple(context), tuple(response)))
    return out
