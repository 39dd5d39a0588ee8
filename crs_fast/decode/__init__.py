"""Constrained decoding: the logits processor, and beams as a token tree over one prompt."""

from .processor import SidLogitsProcessor
from .prompt import Prompt
from .recommend import RecommendOutput, grow_beams, recommend

__all__ = ["Prompt", "RecommendOutput", "SidLogitsProcessor", "grow_beams", "recommend"]
