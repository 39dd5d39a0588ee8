"""The ops, one folder each, with the same file names in every folder.

`__init__.py`: the public functions and every check. `dispatch.py`: registration with torch and
which kernel takes a call. `native.py`: the call into C++ and CUDA. `triton.py`: Triton kernels.
`eager.py`: the op in PyTorch calls, where no kernel serves. `reference.py`: the oracle; where
there is no `eager.py`, also the fallback.

Importing this package registers `torch.ops.crs_fast.*`.
"""

from . import tree_attention  # its function has the folder's name
from .codebook import beam_lookup, residual_codes, residual_lookup, residual_statistics
from .collisions import place_colliding
from .number_find import number_find
from .splice import splice
from .text_table import text_find, text_table
from .trie import (
    token_tensors,
    trie_build,
    trie_insert,
    trie_logprob,
    trie_mask,
    trie_mask_,
    trie_remove,
    trie_rows,
    trie_step,
    trie_walk,
)
from .trie.tensors import LEAVE, FilterTensors, TokenTensors, TrieTensors
from .vocab_logsumexp import vocab_logsumexp

__all__ = [
    "LEAVE",
    "FilterTensors",
    "TokenTensors",
    "TrieTensors",
    "beam_lookup",
    "number_find",
    "place_colliding",
    "residual_codes",
    "residual_lookup",
    "residual_statistics",
    "splice",
    "text_find",
    "text_table",
    "token_tensors",
    "tree_attention",
    "trie_build",
    "trie_insert",
    "trie_logprob",
    "trie_mask",
    "trie_mask_",
    "trie_remove",
    "trie_rows",
    "trie_step",
    "trie_walk",
    "vocab_logsumexp",
]
