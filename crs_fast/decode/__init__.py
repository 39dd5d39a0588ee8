"""Constrained decoding: the logits processor, and beams as a token tree over one prompt."""

from .capability import Capability, capability
from .output import RecommendOutput
from .processor import SidLogitsProcessor
from .prompt import Prompt, left_pad
from .recommend import BeamTree, grow_beams, recommend

__all__ = [
    "BeamTree",
    "Capability",
    "Prompt",
    "RecommendOutput",
    "SidLogitsProcessor",
    "capability",
    "grow_beams",
    "left_pad",
    "recommend",
]
