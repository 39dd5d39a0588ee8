"""The tensors that travel together into the trie ops."""

from __future__ import annotations

from typing import NamedTuple

import torch

NO_NODE = -1
END = -1


class TrieTensors(NamedTuple):
    """A trie, nodes in breadth-first order: edge e leads to node e + 1. All int32.

    child_begin [nodes + 1]: edges of node n are child_begin[n] .. child_begin[n + 1]
    code [nodes - 1]: label of each edge, ascending within a node; -1 ends a SID that is also the
        prefix of a longer one
    item_begin, item_end [nodes]: the items below a node, in sorted SID order
    level_begin [levels + 2]: the first node of each depth
    """

    child_begin: torch.Tensor
    code: torch.Tensor
    item_begin: torch.Tensor
    item_end: torch.Tensor
    level_begin: torch.Tensor

    @property
    def num_levels(self) -> int:
        return self.level_begin.numel() - 2


class FilterTensors(NamedTuple):
    """Which items are allowed, one bitmap a request.

    words int64 [F, W]: bit i % 64 of word i // 64 is item i in sorted SID order
    rank int32 [F, W]: allowed items before each word
    """

    words: torch.Tensor
    rank: torch.Tensor


class TokenTensors(NamedTuple):
    """Where codes stand among the logits.

    column int64 [levels, C]: logits column of code c at each level, -1 where there is none;
        levels that share one row may be an expanded view
    denied int64 [n]: columns masked in rows that stand outside a SID
    terminator: column forced after a whole SID, -1 where there is none
    num_columns: logits must have at least this many columns
    """

    column: torch.Tensor
    denied: torch.Tensor
    terminator: int
    num_columns: int
