"""Makes every mention a target: the model also learns to name each item where it stands in the text
of a dialogue, the seeker's items too, and not only the items of recommender turns.

    Instance("User: I loved <BOI>", "<a_3><b_7><c_1><d_0><EOI>")

As a branch behind its dialogue's trunk, such an instance costs only the tokens of a SID.
"""

from __future__ import annotations

from crs_fast.crs.data.dialogue import Dialogue
from crs_fast.crs.sequence import Instance, SequenceBuilder


def with_mentions(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """The builder's instances of a dialogue, followed by `mention_instances`."""
    return builder.instances(dialogue) + mention_instances(builder, dialogue)


def mention_instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """One instance for each mention whose position in a turn's text is known; its context ends in
    the mention's `<BOI>`. Mentions that lie beyond `builder.max_length` are left out."""
    out: list[Instance] = []
    past: list[int] = []
    for index, tokens in enumerate(builder.turns(dialogue.turns)):
        start = len(past)
        past += tokens
        for begin in range(start, len(past)):
            if past[begin] not in builder.begins:
                continue
            end = past.index(builder.end, begin) + 1
            if end > builder.max_length:
                return out
            item_id = builder.item_of(past[begin:end])
            context, response = past[: begin + 1], past[begin + 1 : end]
            out.append(Instance(index, item_id, tuple(context), tuple(response)))
    return out
