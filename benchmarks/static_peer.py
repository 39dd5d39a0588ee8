"""STATIC (youtube/static-constraint-decoding), timed from the checkout in `STATIC_DIR`.

One step of its own beam-search harness (`sparse_transition_torch`), with its own functions; nothing
of it is copied into this project but the order of its calls.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch


def available() -> bool:
    return bool(os.environ.get("STATIC_DIR"))


def _module(name: str) -> Any:
    import importlib

    folder = os.environ["STATIC_DIR"]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(f"static_decoding.{name}")


def order(sids: np.ndarray) -> np.ndarray:
    """Row numbers in lexicographic order, as STATIC's own benchmarks find it."""
    return np.lexsort([sids[:, i] for i in range(sids.shape[1] - 1, -1, -1)])


def sort(sids: np.ndarray) -> np.ndarray:
    return sids[order(sids)]


def build(sids: np.ndarray, codes: int) -> tuple[Any, ...]:
    return _module("csr_utils").build_static_index(sort(sids), codes, dense_lookup_layers=2)


class Step:
    """One step at one depth; depth 1 is its dense level, from depth 2 on it walks the CSR."""

    def __init__(self, index: tuple[Any, ...], codes: int, device: str) -> None:
        csr, indptr, self.branches, _, dense_mask, dense_states = index
        self.codes, self.device = codes, torch.device(device)
        # int32 as in its benchmark; its index is that much smaller.
        self.csr = torch.tensor(csr, dtype=torch.int32, device=device)
        self.indptr = torch.tensor(indptr, dtype=torch.int64, device=device)
        self.dense_mask = torch.tensor(dense_mask, device=device)
        self.dense_states = torch.tensor(dense_states, dtype=torch.int32, device=device)
        decoding = _module("decoding_pt")
        self.sparse, self.gather_beams = (
            decoding.generate_and_apply_logprobs_mask,
            decoding._gather_beams,
        )

    def states(self, prefixes: torch.Tensor) -> torch.Tensor:
        """Its state after each prefix int64 [R, depth], depth at least 1."""
        prefixes = prefixes.to(self.device)
        if prefixes.shape[1] == 1:
            return prefixes[:, 0] + 1
        state = self.dense_states[prefixes[:, 0], prefixes[:, 1]].long()
        for code in prefixes[:, 2:].unbind(1):
            begin, end = self.indptr[state], self.indptr[state + 1]
            width = int((end - begin).max())
            at = (begin[:, None] + torch.arange(width, device=self.device)).clamp(
                max=self.csr.shape[0] - 1
            )
            hit = (self.csr[at][..., 0] == code[:, None]) & (at < end[:, None])
            state = self.csr[at.gather(1, hit.int().argmax(1, keepdim=True))][:, 0, 1].long()
        return state

    @torch.inference_mode()
    def __call__(
        self, logits: torch.Tensor, scores: torch.Tensor, states: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        batch, beams = scores.shape
        logprobs = torch.nn.functional.log_softmax(logits, dim=-1)
        if depth == 1:
            parents = states - 1
            masked = torch.where(
                self.dense_mask[parents],
                logprobs,
                torch.tensor(-float("inf"), device=self.device),
            )
            gains, tokens = torch.topk(masked, beams, dim=-1)
            following = self.dense_states[parents.unsqueeze(1), tokens]
            limit = beams
        else:
            limit = self.branches[depth]
            gains, tokens, following = self.sparse(
                logprobs, states, self.csr, self.indptr, limit, self.codes, self.device
            )
        total = (scores.unsqueeze(2) + gains.view(batch, beams, limit)).view(batch, beams * limit)
        best, at = torch.topk(total, beams, dim=-1)
        return (
            best,
            self.gather_beams(following.view(batch, beams * limit), at),
            at // limit,
            self.gather_beams(tokens.view(batch, beams * limit), at),
        )
