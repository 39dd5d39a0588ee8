"""Constrained decoding: the logits processor, and beams as a token tree over one prompt."""

from .beam_search import beam_search
from .lm.capability import capability, sliding_window
from .lm.model_state import Capability
from .lm.prompt import Prompt, left_pad, right_pad
from .lm.stand_in import stand_in, unwrapped
from .lm.tree_model import TreeModel
from .output import RecommendOutput, refuse_not_numbers
from .processor import SidLogitsProcessor
from .recommend import BeamTree, recommend
from .sequential import sequential

__all__ = [
    "BeamTree",
    "Capability",
    "Prompt",
    "RecommendOutput",
    "SidLogitsProcessor",
    "TreeModel",
    "beam_search",
    "capability",
    "left_pad",
    "recommend",
    "refuse_not_numbers",
    "right_pad",
    "sequential",
    "sliding_window",
    "stand_in",
    "unwrapped",
]
