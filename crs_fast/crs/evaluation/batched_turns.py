"""Every turn of many dialogues on one prefill a dialogue.

chain    contexts of one dialogue, each the beginning of the one before it (last turn first)
chunk    chains of like length; their longest contexts are prefilled together
batch    turns of a chunk of one kind and like length, each on a copy of its chain's keys and
         values up to where its own context ends
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.turn import TurnBatch, TurnCache

BATCH = 8192  # prompt tokens at once on a CPU, and on a GPU for every 10 GB of its memory
ROW = 256  # tokens: a batch has a row for each of its limit's, at most, for beams multiply rows
Chain = list[int]
T = TypeVar("T")


def batch_tokens(device: torch.device) -> int:
    """How many prompt tokens are read at once where nobody says."""
    if device.type != "cuda":
        return BATCH
    return BATCH * max(1, round(torch.cuda.get_device_properties(device).total_memory / 10e9))


def chains(contexts: Sequence[Sequence[int]], groups: Sequence[int]) -> list[Chain]:
    """Indices of all contexts, in runs of which each begins the one before it.

    Args:
        contexts: C token sequences, those of a group one after the other, each longer than the one
            before. One whose left was cut off begins no other and has a chain of its own.
        groups: which dialogue a context belongs to, [C]; equal ones stand together.
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
    """The chains (see `chains`) in chunks of like length that have, padded, at most `limit` tokens
    (one chain at least)."""
    return _together(chains(contexts, groups), lambda chain: len(contexts[chain[0]]), limit)


def walk(
    bundle: Bundle,
    contexts: Sequence[Sequence[int]],
    kinds: Sequence[bool],
    chunk: Sequence[Chain],
    limit: int,
) -> Iterator[tuple[list[int], TurnBatch]]:
    """Each context of a chunk once, in batches of at most `limit` tokens, and `limit` / 256 rows:
    the indices of a batch, and what answers for it.

    Args:
        kinds: contexts of one kind go together, bool [C].
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
    """Values of like size together, padded to the largest at most `limit` and `most` of them."""
    out: list[list[T]] = []
    for value in sorted(values, key=size):
        n = len(out[-1]) + 1 if out else 1
        if n == 1 or n * size(value) > limit or (most and n > most):
            out.append([])
        out[-1].append(value)
    return out
