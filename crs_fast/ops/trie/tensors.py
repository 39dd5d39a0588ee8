"""The tensors that travel together into the trie ops."""

from __future__ import annotations

from typing import NamedTuple

import torch

NO_NODE = -1
# In `trie_mask`: the node of a row that is left as it is.
LEAVE = -2
END = -1
ROOT = 0
# A node as int64: 7 bits of depth, 28 of size (in items), 28 of begin; the root is 0.
NODE_BITS = 28
# What the log-softmax of `trie_step` runs over.
NORMALIZE = ("vocab", "level", "legal")


class TrieTensors(NamedTuple):
    """A trie over items in sorted SID order; see csrc/trie.h.

    A node is a range of items at a depth. For each depth a bitmap marks the items at which a node
    begins; an item whose SID has ended belongs to the node that begins before it no more, so it
    has no bit from there on.

    codes uint8, int16 or int32 [codes]: codes of the nodes, depth after depth, in item order
    bits int64 [L, W]: bit i % 64 of word i // 64 says whether a node of depth l + 1 begins at item
        i; W is at least N // 64 + 1
    rank int32 [L, W]: nodes of that depth before each word
    starts int32 [starts]: items at which the nodes of sparse depths begin
    level int64 [L + 1, 2]: where each depth's part of `codes` and of `starts` (-1: it has none)
        begins; the last row holds the number of codes and of items
    """

    codes: torch.Tensor
    bits: torch.Tensor
    rank: torch.Tensor
    starts: torch.Tensor
    level: torch.Tensor

    @property
    def num_levels(self) -> int:
        return self.bits.shape[0]

    def used(self) -> TrieTensors:
        """Without the room a `TrieSlot` leaves; waits for the device."""
        level = self.level.tolist()
        codes, items = level[-1]
        ends = [*(first for first, _ in level[1:])]
        sparse = [
            table + end - first
            for (first, table), end in zip(level[:-1], ends, strict=True)
            if table >= 0
        ]
        words = items // 64 + 1
        return TrieTensors(
            self.codes[:codes],
            self.bits[:, :words].contiguous(),  # else the kernels would need a stride
            self.rank[:, :words].contiguous(),
            self.starts[: max(sparse, default=0)],
            self.level,
        )


class FilterTensors(NamedTuple):
    """Which items are allowed: one bitmap per request.

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
