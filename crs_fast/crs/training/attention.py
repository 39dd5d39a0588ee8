"""Chooses PyTorch's attention kernels for training on dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Inside this context, or in a function decorated with it, attention runs without cuDNN's
    kernels.

    PyTorch prefers cuDNN's kernels on Hopper, but they are planned again for each new shape (0.2 to
    0.3 s, and as much again for the gradient), and batches of dialogues seldom have the same shape.
    """
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(kernels):
        yield
