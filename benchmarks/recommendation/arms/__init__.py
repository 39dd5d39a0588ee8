"""The methods that the experiment compares on the same turns, with the same backbone and the same
budget of training tokens. The code calls a method an arm.

Most methods are ablations: `gcrs` with one change. Changes can be combined by "+":
`co-mention+mentions` has both, and `retrieval+co-mention` is the retrieval head with the item
vectors of `co-mention`. `+copy` or `+copy-odds` at the end fuses the ranking with the items that
were named before.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from benchmarks.recommendation.arms.baselines import COPY, COPY_POPULARITY, POPULARITY
from benchmarks.recommendation.arms.fused import RULES, FusedArm
from benchmarks.recommendation.arms.generative import GenerativeArm
from benchmarks.recommendation.arms.intents import FineIntentsArm
from benchmarks.recommendation.arms.oracle import OracleArm
from benchmarks.recommendation.arms.retrieval import RetrievalArm
from benchmarks.recommendation.arms.setting import Arm, Fitted, Setting
from crs_fast.crs.sequence import Layout
from crs_fast.crs.training.mentions import with_mentions

__all__ = ["ARMS", "Arm", "Fitted", "FusedArm", "Setting", "choose_arms"]

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
    GenerativeArm("sid-weight", "gcrs, loss of SID tokens times 4", sid_weight=4.0),
    GenerativeArm(
        "sid-smoothing", "gcrs, 10 % label smoothing among sibling codes", sid_smoothing=0.1
    ),
    GenerativeArm("align", "gcrs, also trained on item text -> SID -> title", align=True),
    GenerativeArm(
        "co-mention", "gcrs, SIDs of text and co-mentions", signals=("text", "co-mention")
    ),
    GenerativeArm(
        "co-mention-filled",
        "co-mention, items without co-mentions get those of their neighbours by text",
        signals=("text", "co-mention-filled"),
    ),
    GenerativeArm("mentions", "gcrs, trained on every mention too", instances=with_mentions),
    GenerativeArm("fast-rows", "gcrs, new rows at ten times the rate", embedding_lr_ratio=10.0),
    *(
        GenerativeArm(f"sids-{n}x{k}", f"gcrs, SIDs of {n} levels of {k} codes", shape=(n, k))
        for n, k in ((3, 64), (5, 64), (4, 128))
    ),
    GenerativeArm("redial-first", "gcrs, half its budget spent on ReDial first", joint=True),
    OracleArm(),
    FineIntentsArm(),
)
# redial-first is for INSPIRED, oracle-liked is for ReDial and no system can do it, and fine-intents
# needs data with intents.
NOT_DEFAULT = ("redial-first", "oracle-liked", "fine-intents", "sid-weight", "sid-smoothing")
ARMS: dict[str, Arm] = {arm.name: arm for arm in _ALL}


def choose_arms(names: str | None) -> list[Arm | FusedArm]:
    """The methods with these names, which are joined by commas and may each have ablations behind a
    "+"; for None all methods but `NOT_DEFAULT`. A fused method follows the one it is made of.

    Raises:
        ValueError: a name is unknown, or an ablation does not apply to a method.
    """
    if names is None:
        return [arm for arm in _ALL if arm.name not in NOT_DEFAULT]
    chosen: dict[str, Arm | FusedArm] = {}
    for arm in map(_arm, names.split(",")):
        if isinstance(arm, FusedArm):
            chosen.setdefault(arm.base.name, arm.base)
        chosen.setdefault(arm.name, arm)
    return list(chosen.values())


def _arm(name: str) -> Arm | FusedArm:
    first, *ablations = name.split("+")
    for part, names in [(first, {*ARMS}), *((ablation, {*ARMS, *RULES}) for ablation in ablations)]:
        if part not in names:
            raise ValueError(f"choose_arms: arms must be among {sorted(names)} (got {part!r})")
    arm: Arm | FusedArm = ARMS[first]
    for ablation in ablations:
        arm = _with_ablation(arm, ablation)
    return arm


def _with_ablation(arm: Any, ablation: str) -> Arm | FusedArm:
    """`arm` with the fields in which the method `ablation` differs from gcrs, or its ranking fused
    by the rule `ablation`."""
    if ablation in RULES and arm.trains and not isinstance(arm, FusedArm):
        return FusedArm(arm, ablation)
    other, gcrs = ARMS.get(ablation), ARMS["gcrs"]
    changed: dict[str, Any] = {}
    if isinstance(other, GenerativeArm):
        changeable = {field.name for field in fields(other)} - {"name", "about"}
        values = {name: getattr(other, name) for name in changeable}
        changed = {name: new for name, new in values.items() if new != getattr(gcrs, name)}
    still_default = all(getattr(arm, name, None) == getattr(gcrs, name) for name in changed)
    if not changed or not still_default:
        raise ValueError(f"choose_arms: {arm.name} must have a place for {ablation} (got none)")
    about = f"{arm.about}, and {ablation}"
    return replace(arm, name=f"{arm.name}+{ablation}", about=about, **changed)
