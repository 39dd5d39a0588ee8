"""Constrained decoding: the logits processor, and beams as a token tree over one prompt."""

from .beam_search import beam_search
from .capability import Capability, capability, sliding_window
from .output import RecommendOutput
from .processor import SidLogitsProcessor
from .prompt import Prompt, left_pad
from .recommend import BeamTree, recommend

__all__ = [
    "BeamTree",
    "Capability",
    "Prompt",
    "RecommendOutput",
    "SidLogitsProcessor",
    "beam_search",
    "capability",
    "left_pad",
    "recommend",
    "sliding_window",
]
