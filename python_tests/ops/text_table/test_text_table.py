"""Looking texts up among many: the native table against a dictionary, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from crs_fast import _native
from crs_fast.ops import text_find, text_table


def packed(texts):
    """uint8 bytes and int64 offsets of some bytes objects."""
    offsets = torch.tensor([0, *map(len, texts)], dtype=torch.int64).cumsum(0)
    flat = torch.tensor(list(b"".join(texts)), dtype=torch.uint8)
    return flat, offsets


@pytest.fixture(params=["native", "reference"])
def _kernel(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(_native, "load", lambda: None)


# Alike up to the last byte, zeros at the end, every length around a word of 8 bytes.
ALIKE = [b"", b"\0", b"\0\0", b"a", b"a\0", *[b"x" * n for n in range(1, 40)], b"x" * 999]


@pytest.mark.usefixtures("_kernel")
def test_finds_each_text_and_no_other():
    texts = ALIKE + [f"id {n}".encode() for n in range(3000)]
    text, offsets = packed(texts)
    table, repeated = text_table(text, offsets)
    assert repeated == -1
    wanted = [*reversed(texts), b"x" * 41, b"id 3000", b"a\0\0", b"b"]
    positions = text_find(text, offsets, table, *packed(wanted))
    assert positions.tolist() == [*range(len(texts))][::-1] + [-1] * 4


@pytest.mark.usefixtures("_kernel")
def test_says_which_text_stands_twice():
    texts = [b"a", b"b", b"c", b"b", b"a"]
    text, offsets = packed(texts)
    table, repeated = text_table(text, offsets)
    assert repeated == 3
    assert text_find(text, offsets, table, *packed([b"a", b"b", b"c"])).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("_kernel")
def test_nothing_to_find():
    text, offsets = packed([])
    table, repeated = text_table(text, offsets)
    assert repeated == -1
    assert text_find(text, offsets, table, *packed([b"a", b""])).tolist() == [-1, -1]
    assert text_find(text, offsets, table, *packed([])).tolist() == []


@given(st.lists(st.binary(max_size=20), unique=True), st.lists(st.binary(max_size=20)))
def test_agrees_with_a_dictionary(texts, wanted):
    text, offsets = packed(texts)
    table, _ = text_table(text, offsets)
    expected = [texts.index(one) if one in texts else -1 for one in wanted]
    assert text_find(text, offsets, table, *packed(wanted)).tolist() == expected


@pytest.mark.usefixtures("_kernel")
def test_bad_tensors_are_refused():
    text, offsets = packed([b"ab", b"c"])
    table, _ = text_table(text, offsets)
    for bad_text, bad_offsets in [
        (text.int(), offsets),
        (text, offsets.int()),
        (text, offsets[:0]),
        (text, torch.tensor([0, 4])),
        (text, torch.tensor([-1, 3])),
        (text, torch.tensor([0, 3, 2])),
        (text[None], offsets),
    ]:
        with pytest.raises(ValueError, match="text_table: "):
            text_table(bad_text, bad_offsets)
        with pytest.raises(ValueError, match="text_find: wanted"):
            text_find(text, offsets, table, bad_text, bad_offsets)
    with pytest.raises(ValueError, match="text_find: table"):
        text_find(text, offsets, table[:1], text, offsets)
