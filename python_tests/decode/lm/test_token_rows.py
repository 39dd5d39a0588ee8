"""Rows that join, grow and leave: their logits are those of plain forward passes of each alone."""

import pytest
import torch

from crs_fast.decode import Prompt, TreeModel, capability, right_pad
from crs_fast.decode.lm.kept_tokens import KeptTokens, resumed
from crs_fast.decode.lm.token_rows import TokenRows
from python_tests.helpers import tiny_model

VOCAB = 40


def expected(model, tokens):
    return model(torch.tensor([tokens]), use_cache=False).logits[0, -1]


def check(model, rows, hidden, sequences):
    for got, tokens in zip(rows.lm.head(hidden), sequences, strict=True):
        torch.testing.assert_close(got, expected(model, tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["tree", "mask"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "neox"])
@torch.no_grad()
def test_rows_are_as_each_sequence_alone(kind, attention, monkeypatch):
    """Two prompts join one after the other, one of them padded; memory that was never written is
    poisoned."""
    model = tiny_model(kind, VOCAB)
    assert capability(model).attention == "tree"
    generator = torch.Generator().manual_seed(0)
    empty = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = empty(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)

    def draw(n):
        return torch.randint(VOCAB, (n,), generator=generator).tolist()

    def prompt(*lengths):
        sequences = [draw(n) for n in lengths]
        ids, mask = right_pad(sequences, 0)
        return Prompt(model, ids, mask, room=2), sequences

    rows = TokenRows(TreeModel(model, attention))
    first, sequences = prompt(9, 4, 6)
    lent = [layer.keys.clone() for layer in first.cache.layers]
    rows.join(first)

    def feed():
        nonlocal sequences
        tokens = draw(len(sequences))
        sequences = [[*s, t] for s, t in zip(sequences, tokens, strict=True)]
        check(model, rows, rows.feed(torch.tensor(tokens)), sequences)

    feed()
    feed()
    second, more = prompt(3, 14)
    rows.join(second)
    sequences += more
    feed()
    for gone in ([0], [2, 1], [1]):
        order = rows.leave(gone)
        sequences = [sequences[row] for row in order]
        assert len(rows) == len(sequences)
        feed()
    third, more = prompt(5)
    rows.join(third)
    sequences += more
    for _ in range(8):
        feed()
    assert rows.leave(range(len(rows))) == []
    rows.join(prompt(5)[0])
    assert len(rows) == 1
    for row, length in enumerate((9, 4, 6)):
        for before, layer in zip(lent, first.cache.layers, strict=True):
            assert torch.equal(before[row, :, :length], layer.keys[row, :, :length])


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@torch.no_grad()
def test_a_kept_sequence_goes_on_in_another_batch(kind):
    model = tiny_model(kind, VOCAB)
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randint(VOCAB, (3, 12), generator=generator).tolist()
    prompt = Prompt(model, *right_pad([a[:7], b[:3]], 0))
    kept = [KeptTokens.of(prompt, row) for row in (0, 1)]
    assert [one.ids for one in kept] == [a[:7], b[:3]]
    assert kept[0].nbytes == sum(2 * layer.keys[0, :, :7].nbytes for layer in prompt.cache.layers)
    view = KeptTokens.of(prompt, 0, is_copied=False)
    for (keys, _), layer, (copied, _) in zip(
        view.layers, prompt.cache.layers, kept[0].layers, strict=True
    ):
        assert torch.equal(keys, copied)
        assert keys.data_ptr() == layer.keys.data_ptr()
    del prompt, view
    again = resumed(TreeModel(model), [(kept[1], 3), None, (kept[0], 5)], room=4)
    rest = [b[3:9], c[:2], a[5:12]]
    again.append(*right_pad(rest, 0))
    for got, tokens in zip(again.logits(), (b[:9], c[:2], a[:12]), strict=True):
        torch.testing.assert_close(got, expected(model, tokens), atol=2e-4, rtol=1e-4)
