"""The arms of the experiment: ways to recommend that are compared on the same instances, with the
same backbone and the same budget of training tokens."""

from __future__ import annotations

from crs_fast.crs.arms.baselines import COPY, COPY_POPULARITY, POPULARITY
from crs_fast.crs.arms.generative import GenerativeArm
from crs_fast.crs.arms.intents import FineIntentsArm
from crs_fast.crs.arms.mentions import with_mentions
from crs_fast.crs.arms.oracle import OracleArm
from crs_fast.crs.arms.retrieval import RetrievalArm
from crs_fast.crs.arms.setting import Arm, Fitted, Setting
from crs_fast.crs.sequence import Layout

__all__ = ["ARMS", "Arm", "Fitted", "Setting", "choose_arms"]

BOTH = ("text", "co-mention")
_ALL: tuple[Arm, ...] = (
    POPULARITY,
    COPY,
    COPY_POPULARITY,
    GenerativeArm("gcrs", "mode, then the item's SID, then the reply"),
    GenerativeArm("resp", "the reply alone, SIDs inside it", Layout(mode=False, item=False)),
    RetrievalArm(),
    GenerativeArm("sid-only", "the item's SID alone", Layout(mode=False, words=False)),
    GenerativeArm("titles", "gcrs with titles in place of SIDs, same trie constraint", titles=True),
    GenerativeArm("mode-resp", "mode, then the reply with SIDs inside it", Layout(item=False)),
    GenerativeArm("all-rows", "gcrs, old tokens' embeddings tuned too", all_rows=True),
    GenerativeArm("random-rows", "gcrs, SID rows start at random", informed_rows=False),
    GenerativeArm("code-noise", "gcrs, 10 % of fed codes replaced at random", code_noise=0.1),
    GenerativeArm("align", "gcrs, also trained on item text -> SID -> title", align=True),
    GenerativeArm("co-mention", "gcrs, SIDs of text and co-mentions", signals=BOTH),
    GenerativeArm("mentions", "gcrs, trained on every mention too", instances=with_mentions),
    GenerativeArm("co-mention-mentions", "both of these", signals=BOTH, instances=with_mentions),
    RetrievalArm("retrieval-co-mention", "retrieval, items of text and co-mentions", BOTH),
    RetrievalArm(
        "retrieval-co-mention-mentions", "that, trained on every mention too", BOTH, with_mentions
    ),
    *(
        GenerativeArm(f"sids-{n}x{k}", f"gcrs, SIDs of {n} levels of {k} codes", shape=(n, k))
        for n, k in ((3, 64), (5, 64), (4, 128))
    ),
    GenerativeArm("redial-first", "gcrs, half its budget spent on ReDial first", joint=True),
    GenerativeArm(
        "redial-first-co-mention-mentions",
        "co-mention-mentions, half its budget spent on ReDial first",
        signals=BOTH,
        instances=with_mentions,
        joint=True,
    ),
    OracleArm(),
    FineIntentsArm(),
)
# For INSPIRED; for ReDial, and no rival; for data with intents.
NOT_DEFAULT = (
    "redial-first",
    "redial-first-co-mention-mentions",
    "oracle-liked",
    "fine-intents",
)
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}


def choose_arms(names: str | None) -> list[Arm]:
    """Arms by their names, joined by commas; for None all but `NOT_DEFAULT`.

    Raises:
        ValueError: an unknown name.
    """
    if names is None:
        return [arm for arm in _ALL if arm.name not in NOT_DEFAULT]
    wanted = names.split(",")
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise ValueError(f"choose_arms: arms must be among {sorted(ARMS)} (got {unknown[0]!r})")
    return [ARMS[name] for name in dict.fromkeys(wanted)]
