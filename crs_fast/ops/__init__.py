"""One file an op: a plain-PyTorch oracle, the checks, the way into the native kernel.

Importing this package registers `torch.ops.crs_fast.*`.
"""

from .codebook import residual_codes, residual_lookup, residual_statistics
from .codebook.beam import beam_lookup
from .trie import trie_build, trie_mask, trie_mask_, trie_rows, trie_step, trie_walk
from .trie.tensors import FilterTensors, TokenTensors, TrieTensors

__all__ = [
    "FilterTensors",
    "TokenTensors",
    "TrieTensors",
    "beam_lookup",
    "residual_codes",
    "residual_lookup",
    "residual_statistics",
    "trie_build",
    "trie_mask",
    "trie_mask_",
    "trie_rows",
    "trie_step",
    "trie_walk",
]
