"""Looking numbers up among many: the native pass against a dictionary, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crs_fast.ops import number_find
from crs_fast.ops.number_find import reference

ENDS = [-(2**63), -(2**31), -1, 0, 2**31 - 1, 2**31, 2**63 - 1]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 5000, 200_000])
def test_finds_each_number_and_no_other(dtype, count):
    """Several chunks; wanted numbers repeat, and some are not there."""
    generator = torch.Generator().manual_seed(count)
    numbers = torch.randperm(2 * count, generator=generator)[:count].to(dtype)
    wanted = torch.randint(-5, 2 * count + 5, (3000,), generator=generator)
    got = number_find(numbers, wanted)
    assert torch.equal(got, reference.number_find(numbers, wanted))


def test_numbers_that_agree_in_32_bits_are_told_apart():
    apart = torch.tensor([n + (k << 32) for n in (0, 7, -1) for k in range(-3, 4)])
    numbers = torch.tensor(sorted({*apart.tolist(), *ENDS}))
    assert number_find(numbers, numbers.flip(0)).tolist() == [*range(len(numbers))][::-1]
    assert number_find(numbers[::2], numbers)[1::2].tolist() == [-1] * (len(numbers) // 2)


@given(st.lists(st.integers(-9, 9), unique=True), st.lists(st.integers(-9, 9)))
def test_agrees_with_a_dictionary(numbers, wanted):
    places = {number: place for place, number in enumerate(numbers)}
    args = torch.tensor(numbers, dtype=torch.int32), torch.tensor(wanted, dtype=torch.int64)
    assert number_find(*args).tolist() == [places.get(number, -1) for number in wanted]


def test_other_tensors_are_refused():
    for numbers, wanted, message in (
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), "numbers must be int32 or int64"),
        (torch.arange(2), torch.arange(2, dtype=torch.int32), "wanted must be int64"),
        (torch.arange(4).view(2, 2), torch.arange(2), "numbers must be"),
    ):
        with pytest.raises(ValueError, match=f"number_find: {message}"):
            number_find(numbers, wanted)
