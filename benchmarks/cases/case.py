"""What a benchmark case is, and what the cases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from crs_fast.trie import SidTrie, SidVocab

Ways = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Case:
    """`make(size, device)` checks that the ways agree, then returns what the work is and the ways
    to do it, the baseline first. Sizes are "toy" (CI) and "full" (docs/benchmarks.md's)."""

    name: str
    make: Callable[[str, str], tuple[str, Ways]]
    devices: tuple[str, ...] = ("cpu",)


def catalogue(items: int, levels: int, codes: int, words: int) -> tuple[SidTrie, SidVocab]:
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(codes, (items, levels), generator=generator)
    vocab = SidVocab(words + torch.arange(levels * codes).view(levels, codes))
    return SidTrie.from_sids(sids), vocab


def check_equal(case: str, a: torch.Tensor, b: torch.Tensor) -> None:
    if not torch.equal(a.cpu(), b.cpu()):
        raise AssertionError(f"{case}: the ways disagree, nothing was timed")
