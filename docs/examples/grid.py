"""GRID's prefix check with crs_fast's ops: `trie_walk` for prefixes, `trie_mask_` for logits.
Run: python docs/examples/grid.py"""

import torch

import crs_fast
from crs_fast import ops


def check_valid_prefix(trie, prefix):
    """As GRID's `_check_valid_prefix`: which rows of int64 [n, h] begin an item's SID. GRID
    compares every prefix with every item; the trie is walked once per prefix."""
    return ops.trie_walk(trie.tensors, prefix) >= 0


def prune(trie, tokens, candidate_logits, generated_ids=None):
    """As the check at the head of GRID's beam step, in place: -inf for each code that no item has
    after its row's codes. `candidate_logits` is [rows, V], `generated_ids` [batch, beams, h]."""
    nodes = torch.zeros(len(candidate_logits), dtype=torch.int64, device=trie.device)  # the root
    if generated_ids is not None:
        nodes = ops.trie_walk(trie.tensors, generated_ids.flatten(0, 1))
    dead = nodes < 0  # a prefix of no item: outside the trie nothing would be masked
    ops.trie_mask_(candidate_logits, nodes, trie.tensors, tokens)
    return candidate_logits.masked_fill_(dead[:, None], -torch.inf)


if __name__ == "__main__":
    torch.manual_seed(0)
    codebooks = torch.randint(256, (10_000, 4))  # GRID's name for the SIDs of all items
    trie = crs_fast.SidTrie.from_sids(codebooks)
    tokens = ops.token_tensors(torch.arange(256).expand(4, -1))  # a code is its own column
    prefix = torch.cat([codebooks[:2, :3], torch.randint(256, (2, 3))])
    print(check_valid_prefix(trie, prefix).tolist())
    logits = prune(trie, tokens, torch.randn(2, 256), codebooks[:2, None, :3])
    print(logits.isfinite().sum(1).tolist(), "codes may follow")
