"""The one owner of `torch.ops.crs_fast` among the ops, and how an op gets into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("crs_fast", "DEF")


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
