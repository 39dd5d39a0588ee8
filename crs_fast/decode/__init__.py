"""Constrained decoding: the logits processor, and beams as a token tree over one prompt."""

from .processor import SidLogitsProcessor
from .prompt import Prompt, left_pad
from .recommend import RecommendOutput, grow_beams, recommend

__all__ = ["Prompt", "RecommendOutput", "SidLogitsProcessor", "grow_beams", "left_pad", "recommend"]
