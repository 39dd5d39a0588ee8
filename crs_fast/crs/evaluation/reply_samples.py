"""Some replies printed as they are, drawn at random, for readers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from crs_fast.crs.control_tokens import CHAT, REC
from crs_fast.crs.data.dialogue import CrsDataset, Dialogue
from crs_fast.crs.evaluation.predictions import PLACEHOLDER, Prediction

TURNS = 3  # of the context that are shown


def sample_replies(
    predictions: Sequence[Prediction], count: int = 10, seed: int = 0
) -> list[Prediction]:
    """Turns with a reply, drawn at random: half of them recommend, one from each dialogue as long
    as there are dialogues left. The same turns are drawn from the answers of every system that
    answered the same turns.

    Args:
        count: how many; all if there are fewer.
        seed: of the draw.

    Raises:
        ValueError: count is below 1.
    """
    if count < 1:
        raise ValueError(f"sample_replies: count must be at least 1 (got {count})")
    drawn = [p for p in predictions if p.reply is not None]
    random.Random(seed).shuffle(drawn)
    chosen: list[Prediction] = []
    for recommends, most in ((True, -(-count // 2)), (False, count)):
        alike = [p for p in drawn if bool(p.gold_items) == recommends]
        chosen += _spread(alike, {p.dialogue for p in chosen}, most - len(chosen))
    rest = [p for p in drawn if all(p is not other for other in chosen)]
    chosen += rest[: count - len(chosen)]
    return sorted(chosen, key=lambda p: (p.dialogue, p.turn))


def _spread(drawn: Sequence[Prediction], known: set[int], most: int) -> list[Prediction]:
    """The first of the turns, those of new dialogues before all others."""
    new, others, seen = list[Prediction](), list[Prediction](), set(known)
    for p in drawn:
        (others if p.dialogue in seen else new).append(p)
        seen.add(p.dialogue)
    return [*new, *others][:most]


def replies_markdown(
    dataset: CrsDataset,
    split: str,
    predictions: Sequence[Prediction],
    count: int = 10,
    seed: int = 0,
    heading: str = "Replies as they are",
) -> str:
    """A section with some replies, each with the end of its context, the gold reply and the items;
    empty if there are no replies."""
    chosen = sample_replies(predictions, count, seed)
    if not chosen:
        return ""
    titles = {item.item_id: item.display() for item in dataset.items}
    written = sum(p.reply is not None for p in predictions)
    shown = [_shown(p, dataset.splits[split][p.dialogue], titles) for p in chosen]
    return "\n".join(
        [
            f"### {heading}\n",
            f"{len(chosen)} of {written} replies, drawn at random (seed {seed}), half of them at "
            f"turns that recommend. Of each context the last {TURNS} turns are shown.\n",
            "```text",
            "\n\n".join(shown),
            "```\n",
        ]
    )


def with_titles(prediction: Prediction, titles: Mapping[str, str]) -> str:
    """The reply with titles in place of placeholders."""
    text = prediction.reply or ""
    for item_id in prediction.reply_items:
        text = text.replace(PLACEHOLDER, titles[item_id], 1)
    return text


def _shown(p: Prediction, dialogue: Dialogue, titles: Mapping[str, str]) -> str:
    mode = REC if p.gold_items else CHAT
    lines = [("dialogue", f"{p.dialogue_id}, turn {p.turn}")]
    lines += [(turn.role, turn.text) for turn in dialogue.turns[max(p.turn - TURNS, 0) : p.turn]]
    lines += [("gold reply", dialogue.turns[p.turn].text), ("reply", with_titles(p, titles))]
    lines.append(("gold mode", f"{mode}; the system's own: {p.mode or 'none'}"))
    if p.gold_items:
        ranking = p.ranking or []
        lines.append(("chosen item", titles[ranking[0]] if ranking else "none"))
        for item_id in p.gold_items:
            rank = f"rank {ranking.index(item_id) + 1}" if item_id in ranking else "not ranked"
            lines.append(("gold item", f"{titles[item_id]}: {rank}"))
    return "\n".join(f"{name:<12} {' '.join(text.split())}" for name, text in lines)
