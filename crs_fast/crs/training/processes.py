"""Several processes in one training run, as `torchrun` starts them: all train, the first one
writes.

It imports accelerate only if there are several processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch


def join_processes() -> None:
    """Connect to the other processes, each of which has its own device. The others wait while the
    first one answers a test split, so the timeout is a day."""
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
    """The first process runs the block before the others do, so that they find what it wrote."""
    if not first_process():
        wait_for_all()
    yield
    if first_process():
        wait_for_all()
