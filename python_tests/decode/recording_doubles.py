"""Stand-ins for CUDA graphs: what tells of operators that a graph can't hold, and a recorder."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NoWaiting(TorchDispatchMode):
    """What a CUDA graph can't hold: reading a value back, shapes that depend on values, tensors
    made of Python lists."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique2",
                            "lift_fresh", "is_nonzero"), name  # fmt: skip
        return function(*args, **(kwargs or {}))


@contextmanager
def capturing():
    """transformers and our ops leave out checks of values while a stream is recorded."""
    with (
        mock.patch("torch.cuda.is_current_stream_capturing", return_value=True),
        mock.patch("crs_fast.ops.checked._are_readable", return_value=False),
    ):
        yield


class Tape(NoWaiting):
    """A CUDA graph on the CPU: the operators of one run, each with the tensors that it read and
    those that it wrote. Replaying runs the same operators on the same tensors, and no Python."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            new = function(*args, **kwargs)
            for kept, made in zip(tree_leaves(result), tree_leaves(new), strict=True):
                # A view, or what was changed in place, is there already.
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != made.data_ptr():
                    kept.copy_(made)


def record_on_tape(run, place):
    """As `crs_fast.decode.lm.recordings.record`, warm-up and all."""
    run()
    run()
    tape = Tape()
    with capturing(), tape:
        result = run()
    for number in tree_leaves(result):
        number.fill_(torch.nan)  # recording computes nothing

    def replay():
        tape.replay()
        return result

    return replay
