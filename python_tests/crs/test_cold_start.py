import itertools

import pytest
import torch

from crs_fast.crs.cold_start import hold_out, place_items
from crs_fast.crs.dialogue import CrsDataset
from crs_fast.crs.score import named_items

from .tiny_system import DIALOGUE, ITEMS, dialogues


def test_held_out_items_are_in_no_training_turn():
    dataset = CrsDataset("t", ITEMS, {"train": tuple(dialogues(16)), "test": (DIALOGUE,)})
    cut, held = hold_out(dataset, 0.5, seed=1)
    assert len(held) == 2  # of i2, i3, i4, i5
    assert held <= {"i2", "i3", "i4", "i5"}
    assert not named_items(cut.splits["train"]) & held
    assert cut.splits["test"] == dataset.splits["test"]
    whole = {d.dialogue_id: d for d in dataset.splits["train"]}
    for dialogue in cut.splits["train"]:
        full = whole[dialogue.dialogue_id]
        assert full.turns[: len(dialogue.turns)] == dialogue.turns
        if len(dialogue.turns) < len(full.turns):
            assert set(full.turns[len(dialogue.turns)].item_ids()) & held
    with pytest.raises(ValueError, match="must lie in"):
        hold_out(dataset, 0.0)


def test_new_items_take_the_nearest_free_sid_and_move_nobody():
    generator = torch.Generator().manual_seed(0)
    books = torch.randn(2, 3, 4, generator=generator)
    x = torch.randn(5, 4, generator=generator)
    sums = {c: books[0, c[0]] + books[1, c[1]] for c in itertools.product(range(3), repeat=2)}
    codes = []
    for row in x:
        first = int((books[0] - row).square().sum(-1).argmin())
        second = int((books[1] - (row - books[0, first])).square().sum(-1).argmin())
        codes.append([first, second])
    taken = torch.tensor([codes[0], codes[1]]).unique(dim=0)
    placed = [tuple(row) for row in place_items(x, torch.tensor(codes), books, taken).tolist()]
    held = {tuple(row) for row in taken.tolist()}
    for row, code, sid in zip(x, codes, placed, strict=True):
        assert sid not in held
        free = [c for c in sums if c not in held and c[0] == code[0]]
        if free:  # under its own prefix, by distance
            assert sid == min(free, key=lambda c: float((sums[c] - row).square().sum()))
        held.add(sid)
    everything = torch.tensor(list(sums))
    with pytest.raises(ValueError, match="must leave one free"):
        place_items(x[:1], torch.tensor(codes[:1]), books, everything)
    assert place_items(x[:0], torch.tensor(codes)[:0], books, everything).shape == (0, 2)
