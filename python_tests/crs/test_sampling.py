"""How words are chosen: Hugging Face's warpers are the oracle."""

import pytest
import torch

from crs_fast.crs.sampling import GREEDY, Sampling, choose


def warped(scores, way):
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    scores = TemperatureLogitsWarper(way.temperature)(None, scores)
    return TopPLogitsWarper(way.top_p)(None, scores) if way.top_p < 1 else scores


@pytest.mark.parametrize("way", [Sampling(True), Sampling(True, 0.7), Sampling(True, 1.5, 0.6)])
def test_draws_have_hugging_faces_distribution(way):
    scores = torch.randn(1, 7, generator=torch.Generator().manual_seed(0)) * 2
    scores[0, 3] = -torch.inf
    expected = warped(scores, way).softmax(1)[0]
    generator = torch.Generator().manual_seed(1)
    rows = 4000
    drawn = choose(scores.expand(rows, -1), [way] * rows, [generator] * rows)
    counts = drawn.bincount(minlength=7) / rows
    assert torch.allclose(counts, expected, atol=0.03)
    assert not bool(counts[expected == 0].any())


def test_each_row_has_its_own_way_and_its_own_numbers():
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    sampled = Sampling(True, 3.0)

    def draw(ways, seeds):
        generators = [None if s is None else torch.Generator().manual_seed(s) for s in seeds]
        return choose(scores, ways, generators).tolist()

    first = draw([GREEDY, sampled, GREEDY, sampled], [None, 1, None, 2])
    second = draw([sampled, sampled, GREEDY, sampled], [5, 1, None, 2])
    greedy = scores.argmax(1).tolist()
    assert first[1:] == second[1:]
    assert [first[0], first[2]] == [greedy[0], greedy[2]]


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.01}])
def test_bad_ways(wrong):
    with pytest.raises(ValueError, match=f"Sampling: {next(iter(wrong))} must be above 0"):
        Sampling(True, **wrong)
