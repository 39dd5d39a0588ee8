"""Replacing ranges of an array: the native runs against lists, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crs_fast.ops import splice
from crs_fast.ops.splice import reference


def tensors(begin, end, bounds):
    return [torch.tensor(one, dtype=torch.int64) for one in (begin, end, bounds)]


@st.composite
def ranges(draw):
    """A size, ascending ranges of it, and bounds of what is added."""
    size = draw(st.integers(0, 40))
    count = draw(st.integers(0, 6))
    edges = sorted(draw(st.lists(st.integers(0, size), min_size=2 * count, max_size=2 * count)))
    bounds = [0]
    for length in draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)):
        bounds.append(bounds[-1] + length)
    return size, edges[::2], edges[1::2], bounds


@given(ranges(), st.sampled_from([torch.uint8, torch.int32, torch.int64]))
def test_agrees_with_lists(drawn, dtype):
    size, begin, end, bounds = drawn
    values, added = list(range(size)), list(range(100, 100 + bounds[-1]))
    expected, last = [], 0
    for i, (first, stop) in enumerate(zip(begin, end, strict=True)):
        expected += values[last:first] + added[bounds[i] : bounds[i + 1]]
        last = stop
    expected += values[last:]
    begin, end, bounds = tensors(begin, end, bounds)
    given_ = torch.tensor(values, dtype=dtype), begin, end, torch.tensor(added, dtype=dtype), bounds
    assert splice(*given_).tolist() == expected
    assert reference.splice(*given_, None).tolist() == expected
    if dtype == torch.int64:
        shift = torch.arange(len(begin) + 1) * 1000
        assert torch.equal(splice(*given_, shift), reference.splice(*given_, shift))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [1, 3, 2000])
def test_many_blocks(dtype, count):
    """Results of several blocks, with additions that are longer than one, too."""
    generator = torch.Generator().manual_seed(count)
    size = 700_000
    edges = torch.randint(size, (2 * count,), generator=generator).sort().values
    lengths = torch.randint(600_000 // count, (count,), generator=generator)
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    values = torch.randint(200, (size,), generator=generator).to(dtype)
    added = torch.randint(200, (int(bounds[-1]),), generator=generator).to(dtype)
    shift = torch.arange(count + 1) if dtype == torch.int64 else None
    args = values, edges[::2], edges[1::2], added, bounds, shift
    assert torch.equal(splice(*args), reference.splice(*args))


def test_other_arguments_are_refused():
    values = torch.arange(4)
    for begin, end, bounds, message in (
        ([1, 0], [2, 1], [0, 0, 0], "begin and end must be ranges of the 4 values"),
        ([1, 2], [3, 3], [0, 0, 0], "begin and end"),
        ([-1], [1], [0, 0], "begin and end"),
        ([4], [5], [0, 0], "begin and end"),
        ([2], [1], [0, 0], "begin and end"),
        ([1], [1], [0, 2], "bounds must ascend from 0 to the 0 added values"),
        ([1], [1], [1, 0], "bounds"),
        ([1], [1], [0], "bounds must be int64 \\[2\\]"),
        ([1], [1, 2], [0, 0], "end must be int64 \\[1\\]"),
    ):
        with pytest.raises(ValueError, match=f"splice: {message}"):
            splice(values, *tensors(begin, end, bounds)[:2], values[:0], torch.tensor(bounds))
    one = tensors([0], [0], [0, 0])
    with pytest.raises(ValueError, match=r"splice: added must be int64"):
        splice(values, *one[:2], torch.zeros(0), one[2])
    with pytest.raises(ValueError, match=r"splice: values must be int64"):
        splice(values.int(), *one[:2], values[:0].int(), one[2], torch.zeros(2, dtype=torch.int64))
