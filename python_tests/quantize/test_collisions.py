import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crs_fast import _native
from crs_fast.ops.codebook import residual_lookup
from crs_fast.ops.collisions import place_colliding
from crs_fast.ops.collisions import reference as reference_collisions
from crs_fast.quantize import add_disambiguation_level, resolve_collisions
from crs_fast.quantize.collisions import _colliding


def test_by_hand():
    # Level 0 at 0 and 10; level 1 at 0, 1 and 3. Items 0, 1, 2 share (0, 0), item 3 has (0, 1).
    books = torch.tensor([[[0.0], [10.0], [99.0]], [[0.0], [1.0], [3.0]]])
    x = torch.tensor([[0.3], [0.1], [-0.2], [1.0]])
    codes, _ = residual_lookup(x, books)
    assert codes.tolist() == [[0, 0], [0, 0], [0, 0], [0, 1]]
    # Confidence: item 1 (.01), item 2 (.04), item 0 (.09). Item 1 stays; item 2 takes the nearest
    # free, (0, 2); for item 0 nothing is free below 0, so up: 10 is nearer than 99, the residual
    # is -9.7, and 0 is the nearest codeword to that.
    assert resolve_collisions(x, codes, books).tolist() == [[1, 0], [0, 0], [0, 2], [0, 1]]


def test_residuals_are_recomputed_after_backing_up():
    books = torch.tensor([[[0.0], [4.0]], [[0.0], [-3.0]]])
    x = torch.tensor([[0.0], [0.1], [0.2]])
    # Item 2 (least confident) must go below codeword 4: its residual there, -3.8, is nearest to
    # -3; its old residual .2 would have chosen 0.
    assert resolve_collisions(x, [[0, 0]] * 3, books).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_backs_up_two_levels():
    books = torch.tensor([[[0.0], [5.0]], [[0.0], [1.0]], [[0.0], [0.5]]])
    x = torch.zeros(5, 1)
    sids = resolve_collisions(x, [[0, 0, 0]] * 5, books)
    assert sids.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1], [1, 0, 0]]


def test_a_sid_of_another_item_is_not_free():
    books = torch.tensor([[[0.0], [9.0]], [[0.0], [1.0]]])
    x = torch.tensor([[0.0], [0.0], [1.0], [0.5]])
    sids = resolve_collisions(x, [[0, 0], [0, 0], [0, 1], [0, 1]], books)
    # When group (0, 0) is handled, (0, 1) is still held by the second group.
    assert sids.tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_ties_go_to_the_lower_item_and_the_lower_code():
    books = torch.tensor([[[0.0], [1.0], [-1.0], [1.0]]])
    sids = resolve_collisions(torch.zeros(3, 1), [[0], [0], [0]], books)
    assert sids.tolist() == [[0], [1], [2]]


def test_every_sid_in_use_when_the_catalogue_fills_the_space():
    books = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(0))
    sids = resolve_collisions(torch.zeros(27, 2), torch.zeros(27, 3, dtype=torch.long), books)
    assert len(torch.unique(sids, dim=0)) == 27


def test_wide_sids_do_not_overflow():
    books = torch.zeros(9, 256, 1)
    books[:, :, 0] = torch.arange(256.0)
    codes = torch.full((3, 9), 255)
    sids = resolve_collisions(torch.full((3, 1), 9 * 255.0), codes, books)
    assert sids[:, -1].tolist() == [255, 254, 253]
    assert bool((sids[:, :-1] == 255).all())


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_properties(data):
    k, levels, dim = (data.draw(st.integers(*r)) for r in ((1, 4), (1, 4), (1, 3)))
    n = data.draw(st.integers(0, min(k**levels, 60)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    # Few distinct values: ties and identical rows are common.
    x = torch.from_numpy(rng.integers(-2, 3, (n, dim)).astype(np.float32))
    books = torch.from_numpy(rng.integers(-2, 3, (levels, k, dim)).astype(np.float32))
    codes, _ = residual_lookup(x, books)
    sids = resolve_collisions(x, codes, books)
    assert sids.dtype == torch.int64
    assert sids.shape == (n, levels)
    assert len({tuple(s) for s in sids.tolist()}) == n
    assert bool(((sids >= 0) & (sids < k)).all())
    assert torch.equal(sids, resolve_collisions(x.clone(), codes.clone(), books))
    held = [tuple(c) for c in codes.tolist()]
    for before, after in zip(held, map(tuple, sids.tolist()), strict=True):
        if held.count(before) == 1:
            assert before == after
    # Exactly one member of every group keeps its SID: the most confident one.
    assert {tuple(s) for s in sids.tolist()} >= set(held)
    # Resolved SIDs have no collisions left to move.
    assert torch.equal(resolve_collisions(x, sids, books), sids)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_native_equals_the_oracle_and_moves_nobody_else(data):
    k, levels, dim = (data.draw(st.integers(*r)) for r in ((1, 4), (1, 4), (1, 3)))
    space = k**levels
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    m = data.draw(st.integers(0, min(space, 40)))
    n = data.draw(st.integers(0, min(space - m, 40)))
    every = np.stack(np.unravel_index(rng.permutation(space)[:m], (k,) * levels), -1)
    occupied = every.reshape(m, levels).astype(np.int64)
    x = rng.integers(-2, 3, (n, dim)).astype(np.float64)
    books = rng.integers(-2, 3, (levels, k, dim)).astype(np.float64)
    codes = residual_lookup(torch.from_numpy(x), torch.from_numpy(books))[0].numpy()
    groups = _colliding(codes, occupied)
    want = reference_collisions.place_colliding(x, books, codes, groups, occupied)
    assert np.array_equal(place_colliding(x, books, codes, groups, occupied), want)
    sids = resolve_collisions(x, codes, books, occupied=occupied)
    assert np.array_equal(sids.numpy(), want)
    held = {tuple(sid) for sid in occupied.tolist()}
    given = [tuple(sid) for sid in sids.tolist()]
    assert len(set(given)) == n
    assert not held & set(given)
    before = [tuple(c) for c in codes.tolist()]
    for old, new in zip(before, given, strict=True):
        if before.count(old) == 1 and old not in held:
            assert old == new


def test_new_items_join_a_frozen_catalogue():
    books = torch.tensor([[[0.0], [10.0]], [[0.0], [1.0]]])
    # (0, 0) is taken, so the one new item encoded there takes the nearest free, (0, 1).
    assert resolve_collisions([[0.1]], [[0, 0]], books, occupied=[[0, 0]]).tolist() == [[0, 1]]
    # With (0, 1) taken too it leaves the first codeword: 0.1 - 10 is nearest to 0.
    taken = [[0, 0], [0, 1]]
    assert resolve_collisions([[0.1]], [[0, 0]], books, occupied=taken).tolist() == [[1, 0]]
    with pytest.raises(ValueError, match=r"at most K .* 1 items"):
        resolve_collisions([[0.1]] * 2, [[0, 0]] * 2, books, occupied=[*taken, [1, 1]])
    with pytest.raises(ValueError, match=r"occupied must be int \[M, 2\]"):
        resolve_collisions([[0.1]], [[0, 0]], books, occupied=[[0]])
    with pytest.raises(ValueError, match="occupied must lie in"):
        resolve_collisions([[0.1]], [[0, 0]], books, occupied=[[0, 2]])


def test_disambiguation_level():
    codes = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2], [0, 1]])
    sids = add_disambiguation_level(codes)
    assert sids.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [1, 2, 2], [0, 1, 0]]
    joined = add_disambiguation_level(codes[:3], occupied=sids[[0, 3, 4]])
    assert joined.tolist() == [[1, 2, 3], [0, 0, 0], [1, 2, 4]]
    assert add_disambiguation_level(codes[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="codes must be int"):
        add_disambiguation_level(codes.float())
    with pytest.raises(ValueError, match=r"occupied must be int \[n, 3\]"):
        add_disambiguation_level(codes, occupied=codes)


@pytest.mark.parametrize(
    ("x", "codes", "books", "match"),
    [
        (torch.zeros(3, 1), torch.zeros(3, 1).long(), torch.zeros(1, 2, 1), "at most K .* 2 items"),
        (torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(1, 4, 1), "codes must be int"),
        (torch.zeros(2, 1), torch.zeros(3, 1).long(), torch.zeros(1, 4, 1), "x must have shape"),
        (torch.zeros(3, 1), torch.zeros(3, 2).long(), torch.zeros(1, 4, 1), "codebooks must have"),
        (torch.zeros(3, 1), torch.full((3, 1), 4), torch.zeros(1, 4, 1), "codes must lie in"),
        (torch.full((3, 1), torch.nan), torch.zeros(3, 1).long(), torch.zeros(1, 4, 1), "finite"),
    ],
)
def test_bad_input(x, codes, books, match):
    with pytest.raises(ValueError, match=f"resolve_collisions: .*{match}"):
        resolve_collisions(x, codes, books)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"x": np.zeros((2, 1), np.float32)}, r"x must be float64 \[N, D\]"),
        ({"sids": np.zeros((2, 1), np.int32)}, r"sids must be int64 \[N, L\]"),
        ({"sids": np.full((2, 1), 4)}, r"sids must lie in 0 \.\. 3 \(got 4 \.\. 4\)"),
        ({"occupied": np.full((1, 1), -1)}, r"occupied must lie in 0 \.\. 3"),
        ({"groups": [np.array([0, 2])]}, r"groups must lie in 0 \.\. 1"),
        ({"groups": [np.array([], np.int64)]}, "groups must be int64 .n., not empty"),
        ({"occupied": np.arange(3)[:, None]}, r"at most K \*\* L = 4 items \(got 5\)"),
    ],
)
def test_the_op_refuses_bad_arrays_with_and_without_a_kernel(change, match, native, monkeypatch):
    if not native:
        monkeypatch.setattr(_native, "load", lambda: None)
    arguments = {
        "x": np.zeros((2, 1)),
        "books": np.zeros((1, 4, 1)),
        "sids": np.zeros((2, 1), np.int64),
        "groups": [np.array([0, 1])],
        "occupied": np.empty((0, 1), np.int64),
    }
    with pytest.raises(ValueError, match=f"place_colliding: .*{match}"):
        place_colliding(**{**arguments, **change})
