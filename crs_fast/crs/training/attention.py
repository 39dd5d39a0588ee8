"""Which of PyTorch's attention kernels read dialogues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Inside (or in a function decorated by it), attention runs on kernels that take any shape.

    cuDNN's, which PyTorch prefers on Hopper, are planned anew for each (0.2 to 0.3 s, and as much
    again for the gradient), and a batch of dialogues seldom has the shape of another.
    """
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel(others):
        yield
