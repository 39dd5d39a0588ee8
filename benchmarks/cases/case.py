"""What a benchmark case is, and what the cases share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from crs_fast.trie import SidTrie, SidVocab

Methods = dict[str, Callable[[], Any]]  # a method's name -> one call of it


@dataclass(frozen=True)
class Case:
    """`make(size, device)` checks that the methods agree, then returns a description of the
    workload and the methods, the baseline first. Sizes are "toy" (CI) and "full" (the tables of
    docs/benchmarks.md). `times` names the parts of the code that are timed, as fingerprint.py
    does. `requests`: how many requests one call answers; the table then has requests per second.
    `claims`: what others publish of the same workload, with their machine. It stands below the
    table and never in it, since nobody measured it here. Beside the timed calls run `spinning`
    processes that want a core each. `counts_memory`: memory is counted on the CPU too, where that
    slows a call down."""

    name: str
    make: Callable[[str, str], tuple[str, Methods]]
    times: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu",)
    requests: int = 0
    claims: str = ""
    spinning: int = 0
    counts_memory: bool = False


def catalogue(items: int, levels: int, codes: int, words: int) -> tuple[SidTrie, SidVocab]:
    """A trie of random SIDs, and a vocabulary whose codes follow `words` text tokens."""
    generator = torch.Generator().manual_seed(0)
    sids = torch.randint(codes, (items, levels), generator=generator)
    vocab = SidVocab(words + torch.arange(levels * codes).view(levels, codes))
    return SidTrie.from_sids(sids), vocab


def check_equal(case: str, a: torch.Tensor, b: torch.Tensor) -> None:
    if not torch.equal(a.cpu(), b.cpu()):
        raise AssertionError(f"{case}: the methods disagree, nothing was timed")
