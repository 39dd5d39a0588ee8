"""Several processes on one experiment, as `torchrun` starts them: all train, the first one writes.

Imports accelerate where there is more than one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch


def join_processes() -> None:
    """Meet the other processes, each on a device of its own. The first one answers a test split
    while the others wait, so nobody is given up on for a day."""
    if several_processes() and not torch.distributed.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))


def several_processes() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def wait_for_all() -> None:
    if several_processes():
        torch.distributed.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others do, so that they find what it
    wrote."""
    if not first_process():
        wait_for_all()
    yield
    if first_process():
        wait_for_all()
