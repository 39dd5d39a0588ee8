"""Small calls of every CUDA kernel, for compute-sanitizer to watch (see sanitize.sh):

    python benchmarks/sanitize_gpu.py [cpu]

Each tensor is an allocation of its own here, so that an access past its end is seen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # read when torch first allocates
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.cases.case import catalogue
from crs_fast.ops import trie_mask, trie_step, trie_walk
from crs_fast.trie import ItemFilter

LEVELS, BATCH, BEAMS = 3, 2, 7
DEVICE = sys.argv[1] if len(sys.argv) > 1 else "cuda"


def main() -> None:
    trie, vocab = catalogue(items=500, levels=LEVELS, codes=12, words=33)
    trie = trie.to(DEVICE)
    tokens = vocab.tensors(DEVICE)
    filters = ItemFilter.stack([trie.filter(allow=range(0, 500, 7)), None]).tensors
    rows = trie.sids()[: BATCH * BEAMS].clone()
    for depth in range(LEVELS + 1):
        prefixes = rows.clone()
        prefixes[:, depth:] = -1
        nodes = trie_walk(trie.tensors, prefixes.to(DEVICE))
        logits = torch.randn(BATCH * BEAMS, tokens.num_columns, device=DEVICE)
        scores = torch.zeros(BATCH, BEAMS, device=DEVICE)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for chosen in (None, filters):
                trie_mask(logits.to(dtype), nodes, trie.tensors, tokens, chosen)
                for normalize in ("vocab", "level", "legal"):
                    trie_step(
                        logits.to(dtype), scores, nodes.view(BATCH, BEAMS), trie.tensors, tokens,
                        num_beams=BEAMS, normalize=normalize, filters=chosen,
                    )  # fmt: skip
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print(f"every kernel ran on {DEVICE}")


if __name__ == "__main__":
    main()
