"""An oracle: GCRS that reads what the seeker said of the named items in a form, which was filled in
after the dialogue. No system can know that, so its figures are no headline; they bound what such
knowledge is worth.

A label stands behind the first mention of an item that the seeker brought up, in words:

    User: I saw <BOI>...<EOI> (liked) and <BOI>...<EOI> (disliked), any more?

If the target of a recommender turn is itself an item that the seeker brought up, its context has no
labels at all. Such turns are not trained on, because the missing labels would give the target away.
So the method never learns to name such items again, and only its new-only figures are meaningful.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.recommendation.arms.generative import GenerativeArm
from benchmarks.recommendation.arms.setting import ORACLE, Answer, Fitted, Setting
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Mention, Turn
from crs_fast.crs.evaluation.predictions import Prediction
from crs_fast.crs.sequence import Instance, SequenceBuilder
from crs_fast.crs.training.config import TrainConfig

WORDS = {"liked": " (liked)", "disliked": " (disliked)", "not said": " (not said if liked)"}


@dataclass(frozen=True, slots=True)
class OracleArm:
    """See the module. Needs a data set whose dialogues have `liked`."""

    name: str = "oracle-liked"
    about: str = f"{ORACLE}; gcrs that reads what the seeker liked of the items it brought up"
    trains = True

    def fit(self, setting: Setting, folder: Path, config: TrainConfig) -> Fitted:
        if not any(dialogue.liked for dialogue in setting.dataset.splits["train"]):
            raise ValueError(
                f"{self.name}: the data set must say what seekers liked, as ReDial does "
                f"(got no such label in {setting.dataset.name!r})"
            )
        fitted = GenerativeArm(self.name, self.about, instances=labelled_instances).fit(
            setting, folder, config
        )

        def answer(dialogues: Sequence[Dialogue], replies: bool) -> dict[str, list[Prediction]]:
            return answer_labelled(fitted.answer, dialogues, replies)

        return Fitted(answer, fitted.training)


def labelled(dialogue: Dialogue) -> Dialogue:
    """The dialogue with labels in the seeker's text; the recommender's turns stay as they are."""
    by_seeker = _brought_up(dialogue)
    words = {item: WORDS[label] for item, label in dialogue.liked.items() if item in by_seeker}
    turns = tuple(
        _with_words(turn, words) if turn.role == SEEKER else turn for turn in dialogue.turns
    )
    return replace(dialogue, turns=turns)


def _with_words(turn: Turn, words: dict[str, str]) -> Turn:
    """The turn with each item's words behind its first mention. Used words are removed from
    `words`."""
    text, at, mentions = "", 0, []
    for mention in turn.mentions:
        if mention.start is None or mention.end is None:
            mentions.append(mention)
            continue
        start = len(text) + mention.start - at
        text += turn.text[at : mention.end]
        mentions.append(Mention(mention.item_id, start, len(text)))
        text += words.pop(mention.item_id, "")
        at = mention.end
    return replace(turn, text=text + turn.text[at:], mentions=tuple(mentions))


def _brought_up(dialogue: Dialogue) -> set[str]:
    """Items that the seeker named first."""
    first: dict[str, str] = {}
    for turn in dialogue.turns:
        for item in turn.item_ids():
            first.setdefault(item, turn.role)
    return {item for item, role in first.items() if role == SEEKER}


def telling_turns(dialogue: Dialogue) -> set[int]:
    """Recommender turns with a target that the seeker brought up."""
    by_seeker = _brought_up(dialogue)
    return {
        index
        for index, turn in enumerate(dialogue.turns)
        if turn.role == RECOMMENDER and by_seeker & set(turn.item_ids())
    }


def labelled_instances(builder: SequenceBuilder, dialogue: Dialogue) -> list[Instance]:
    """Training instances with labels in their contexts, without those of `telling_turns`."""
    telling = telling_turns(dialogue)
    return [i for i in builder.instances(labelled(dialogue)) if i.turn_index not in telling]


def answer_labelled(
    answer: Answer, dialogues: Sequence[Dialogue], replies: bool
) -> dict[str, list[Prediction]]:
    """Answers to contexts with labels, or without labels at `telling_turns`."""
    telling = {i: turns for i, d in enumerate(dialogues) if (turns := telling_turns(d))}
    answers = answer([labelled(dialogue) for dialogue in dialogues], replies)
    unlabelled = answer([dialogues[i] for i in telling], replies) if telling else {}
    for decoding, predictions in unlabelled.items():
        index = dict(enumerate(telling))
        renumbered = [replace(p, dialogue=index[p.dialogue]) for p in predictions]
        instead = {(p.dialogue, p.turn): p for p in renumbered if p.turn in telling[p.dialogue]}
        answers[decoding] = [instead.get((p.dialogue, p.turn), p) for p in answers[decoding]]
    return answers
