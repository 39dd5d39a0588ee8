"""The one owner of `torch.ops.crs_fast` among the ops, and how an op gets into it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("crs_fast", "DEF")

# GNU OpenMP, which torch's kernels and ours run on, loses its threads in a forked child and waits
# for them for ever. A child therefore starts with one thread, as a DataLoader's workers do.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an op that runs on the CPU and on CUDA.

    Args:
        schema: such as "trie_walk(Tensor codes, ...) -> Tensor".
        run: the op.
        fake: the shapes and dtypes of its results, for tracing (`torch.compile`).
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, run, device)
    torch.library.register_fake(f"crs_fast::{name}", fake, lib=LIBRARY)
