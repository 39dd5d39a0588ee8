import pytest
import torch

from benchmarks.recommendation.cold_start import hold_out
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.crs.evaluation.score import named_items
from crs_fast.crs.training import pipeline
from crs_fast.crs.training.pipeline import SidConfig, make_catalogue
from crs_fast.quantize import build_sids
from python_tests.crs.tiny_system import DIALOGUE, ITEMS, dialogues


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


@pytest.mark.parametrize("held", [("i6",), ("i1", "i4", "i6", "i7")])
def test_items_held_out_take_free_sids_and_move_nobody(held, monkeypatch):
    """Three levels of two codes for eight items: not one SID is left over."""
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pipeline, "encode_texts", lambda *args, **kw: x)
    config = SidConfig(levels=3, codes=2, method="rqkmeans")
    catalogue = make_catalogue(CrsDataset("t", ITEMS, {}), config, held=held)
    assert len(catalogue.sids.unique(dim=0)) == 8
    rest = torch.tensor([item.item_id not in held for item in ITEMS])
    alone = build_sids(x[rest], config.levels, config.codes, config.method)[1]
    assert torch.equal(catalogue.sids[rest], alone)
