"""Reads every turn of many dialogues with one prefill per dialogue.

chain    contexts of one dialogue, last turn first; each is the beginning of the one before it
chunk    chains of similar length, whose longest contexts are prefilled together
batch    turns of a chunk, of one kind and of similar length; each has a copy of its chain's keys
         and values, up to the end of its own context
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.turn import TurnBatch, TurnCache

BATCH = 8192  # prompt tokens per batch on a CPU, and on a GPU per 10 GB of its memory
ROW = 256  # a batch has at most limit / ROW turns, because a search multiplies them by its beams
Chain = list[int]
T = TypeVar("T")


def batch_tokens(device: torch.device) -> int:
    """The default number of prompt tokens per batch on a device."""
    if device.type != "cuda":
        return BATCH
    return BATCH * max(1, round(torch.cuda.get_device_properties(device).total_memory / 10e9))


def chains(contexts: Sequence[Sequence[int]], groups: Sequence[int]) -> list[Chain]:
    """The indices of all contexts in chains, in which each context is the beginning of the one
    before it.

    Args:
        contexts: C token sequences. Those of a dialogue are adjacent, and each is longer than the
            one before. A context that was cut off at its left end has a chain of its own.
        groups: the dialogue of each context, [C]; contexts of one dialogue are adjacent.
    """
    out: list[Chain] = []
    for _, members in itertools.groupby(range(len(contexts)), key=groups.__getitem__):
        chain: Chain = []
        for i in reversed(list(members)):
            if not chain or contexts[chain[-1]][: len(contexts[i])] != contexts[i]:
                chain = []
                out.append(chain)
            chain.append(i)
    return out


def chunks(
    contexts: Sequence[Sequence[int]], groups: Sequence[int], limit: int
) -> list[list[Chain]]:
    """The chains (see `chains`) in chunks of similar length. A padded chunk has at most `limit`
    tokens, but at least one chain."""
    return _together(chains(contexts, groups), lambda chain: len(contexts[chain[0]]), limit)


def walk(
    bundle: Bundle,
    contexts: Sequence[Sequence[int]],
    kinds: Sequence[bool],
    chunk: Sequence[Chain],
    limit: int,
) -> Iterator[tuple[list[int], TurnBatch]]:
    """Yield the contexts of a chunk in batches of at most `limit` tokens and `limit` / `ROW` turns:
    the indices of a batch, and its `TurnBatch`.

    Args:
        kinds: bool [C]; a batch holds only contexts of one kind.
    """
    trunk = TurnCache.of(bundle, [contexts[chain[0]] for chain in chunk])
    row = {i: r for r, chain in enumerate(chunk) for i in chain}
    for kind in (False, True):
        alike = [i for i in row if kinds[i] == kind]
        for batch in _together(alike, lambda i: len(contexts[i]), limit, limit // ROW or None):
            branch = trunk.branch([row[i] for i in batch])
            yield batch, TurnBatch(bundle, [contexts[i] for i in batch], branch)


def _together(
    values: Iterable[T], size: Callable[[T], int], limit: int, most: int | None = None
) -> list[list[T]]:
    """Group values of similar size. A group holds at most `most` values, and padded to its largest
    value it has at most the size `limit`."""
    out: list[list[T]] = []
    for value in sorted(values, key=size):
        n = len(out[-1]) + 1 if out else 1
        if n == 1 or n * size(value) > limit or (most and n > most):
            out.append([])
        out[-1].append(value)
    return out
