"""Chooses PyTorch's attention kernels for sequences of any shape."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda

# PyTorch's switch is one for all threads: the first one in turns it, the last one out turns it
# back.
_lock = threading.Lock()
_inside = 0
_was_enabled = False


@contextmanager
def attention_of_any_shape() -> Iterator[None]:
    """Inside this context, or in a function decorated with it, attention runs without cuDNN's
    kernels, unless the caller has switched off all others.

    PyTorch prefers cuDNN's kernels on Hopper, but they are planned again for each new shape (0.2 to
    0.3 s, and as much again for the gradient), and dialogues seldom have the same shape.
    """
    global _inside, _was_enabled
    with _lock:
        if _inside == 0:
            _was_enabled = cuda.cudnn_sdp_enabled()
            others = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()
            if any(others) or cuda.math_sdp_enabled():
                cuda.enable_cudnn_sdp(False)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cuda.enable_cudnn_sdp(_was_enabled)
