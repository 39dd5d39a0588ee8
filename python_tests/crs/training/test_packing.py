import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crs_fast.crs.sequence import Instance, SequenceBuilder
from crs_fast.crs.training.packing import (
    IGNORE,
    CodeSwap,
    Packed,
    batches,
    collate,
    collate_separate,
    drop_context,
    next_token_loss,
    note_labels,
    pack,
    packing_is_exact,
    separate,
    tree_mask,
)

from ..tiny_system import DIALOGUE, SIDS, dialogues, system


def make(architecture, vocab_size):
    from transformers import (
        BloomConfig,
        BloomForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    torch.manual_seed(0)
    deep = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
    )
    if architecture == "llama":
        return LlamaForCausalLM(LlamaConfig(**deep))
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**deep))
    if architecture == "bloom":
        return BloomForCausalLM(
            BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=vocab_size)
        )
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=32,
            n_layer=2,
            n_head=2,
            vocab_size=vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def loss_and_gradients(model, packs, together, per_batch=2):
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for at in range(0, len(packs), per_batch):
        loss, n = next_token_loss(model, together(packs[at : at + per_batch]))
        total, count = total + loss, count + n
    (total / count).backward()
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    return total.item(), count, gradients


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("max_length", [768, 60])
def test_packed_equals_separate(architecture, attention, max_length):
    _, tokenizer, _, vocab, control, _ = system()
    sids = {f"i{n}": codes for n, codes in enumerate(SIDS)}
    builder = SequenceBuilder(tokenizer, vocab, control, sids, max_length)
    model = make(architecture, len(tokenizer))
    model.set_attn_implementation(attention)
    instances = [*builder.instances(DIALOGUE), *builder.instances(dialogues(1)[0])]
    packs = pack(instances)
    if max_length == 60:
        assert 2 < len(packs) < len(instances)
    else:
        assert len(packs) == 2
    together = loss_and_gradients(model, packs, collate)
    apart = loss_and_gradients(model, separate(instances), collate_separate)
    assert together[1] == apart[1] == sum(len(i.response) for i in instances)
    assert together[0] == pytest.approx(apart[0], rel=1e-5)
    assert together[2].keys() == apart[2].keys()
    for name, gradient in apart[2].items():
        torch.testing.assert_close(together[2][name], gradient, rtol=1e-5, atol=1e-5)


def test_labels_that_were_noted_are_not_looked_for():
    _, tokenizer, _, vocab, control, _ = system()
    builder = SequenceBuilder(tokenizer, vocab, control, {f"i{n}": c for n, c in enumerate(SIDS)})
    model, batch = make("llama", len(tokenizer)), collate(pack(builder.instances(DIALOGUE)))
    expected = next_token_loss(model, batch)
    assert "label_at" not in batch
    note_labels(batch)
    assert next_token_loss(model, batch) == expected
    batch["label_at"] = batch["label_at"][1:]
    assert next_token_loss(model, batch)[1] == expected[1] - 1


def test_separate_equals_the_models_own_loss():
    model, *_, builder = system()
    for instance in builder.instances(DIALOGUE):
        ids = torch.tensor([[*instance.context, *instance.response]])
        labels = ids.clone()
        labels[:, : len(instance.context)] = IGNORE
        loss, count = next_token_loss(model, collate_separate(separate([instance])))
        assert model(ids, labels=labels).loss.item() == pytest.approx(loss.item() / count, rel=1e-5)


@pytest.mark.parametrize("named", [None, torch.nn.Identity()])
def test_a_head_that_is_not_the_module_it_says(named, monkeypatch):
    model, *_, builder = system()
    packs = pack(builder.instances(DIALOGUE))
    expected = loss_and_gradients(model, packs, collate)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: named)
    found = loss_and_gradients(model, packs, collate)
    assert found[:2] == (pytest.approx(expected[0]), expected[1])


def test_packing_is_exact_tells():
    model, tokenizer, *_, builder = system()
    instances = builder.instances(DIALOGUE)
    assert packing_is_exact(model, instances, 768)
    assert not packing_is_exact(make("bloom", len(tokenizer)), instances, 768)
    windowed = make("llama", len(tokenizer))
    windowed.config.sliding_window = 64
    assert not packing_is_exact(windowed, instances, 768)


def test_pack_saves_tokens_and_keeps_every_instance():
    *_, builder = system()
    instances = builder.instances(DIALOGUE)
    (packed,) = pack(instances)
    assert len(packed) == len(instances[-1].context) - 1 + sum(len(i.response) for i in instances)
    assert len(packed) < sum(len(i.context) + len(i.response) - 1 for i in instances)
    small = pack(instances, max_tokens=len(packed) - 1)
    assert len(small) > 1
    assert sorted(r for p in small for _, r in p.branches) == sorted(i.response for i in instances)
    with pytest.raises(ValueError, match="must have a context and a response"):
        pack([Instance(0, None, (), (1,))])


def test_layout_by_hand():
    batch = collate([Packed((5, 6, 7, 8), [(4, (1, 2)), (2, (3, 4))]), Packed((5,), [(1, (9,))])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 1, 6, 3], [0, 0, 0, 0, 0, 0, 5]]
    assert batch["labels"].tolist()[0] == [IGNORE] * 3 + [1, 2, 3, 4]
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 3, 4, 1, 2]
    mask = tree_mask(batch["branch"], batch["visible"], batch["position_ids"])[:, 0].int().tolist()
    assert mask[0] == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 1, 1],
    ]
    assert mask[1] == torch.eye(7, dtype=torch.int).tolist()


def test_batches_hold_every_pack_once_within_the_limit():
    packs = [Packed(tuple(range(1, 2 + n % 9)), [(1, (7,) * (1 + n % 5))]) for n in range(50)]
    groups = batches(packs, 32, list(range(50)))
    assert sorted(id(p) for g in groups for p in g) == sorted(map(id, packs))
    assert all(len(g) * max(map(len, g)) <= 32 for g in groups)
    assert len(batches(packs, 1, list(range(50)))) == 50


def test_dropped_context_leaves_the_responses_whole():
    instances = system()[-1].instances(DIALOGUE)
    batch = collate(pack(instances), 0)
    before = {name: value.clone() for name, value in batch.items()}
    torch.manual_seed(0)
    drop_context(batch, 0.5, 7)
    changed = batch["input_ids"] != before["input_ids"]
    trunk = before["labels"] == IGNORE
    assert not changed[~trunk].any()
    assert 0.3 < float(changed[trunk].float().mean()) < 0.7
    assert batch["input_ids"][changed].eq(7).all()
    assert all(torch.equal(batch[n], before[n]) for n in before if n != "input_ids")


def test_a_code_swap_touches_fed_codes_of_responses_only():
    _, _, _, vocab, _, builder = system()
    batch = collate(pack(builder.instances(DIALOGUE)))
    before = {k: v.clone() for k, v in batch.items()}
    torch.manual_seed(0)
    CodeSwap(1.0, vocab.token_ids)(batch)
    changed = batch["input_ids"] != before["input_ids"]
    assert changed.any()
    assert not (changed & (before["labels"] == IGNORE)).any()
    for level in vocab.token_ids:
        assert torch.equal(
            torch.isin(batch["input_ids"], level), torch.isin(before["input_ids"], level)
        )
    assert torch.equal(batch["labels"], before["labels"])
    CodeSwap(0.0, vocab.token_ids)(before)
    assert torch.equal(before["input_ids"], collate(pack(builder.instances(DIALOGUE)))["input_ids"])


class TableOps(TorchDispatchMode):
    """Counts sorts and copies, of which a copy to a GPU would wait for it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op.overloadpacket.__name__ in ("sort", "_to_copy")
        return op(*args, **(kwargs or {}))


def test_a_code_swap_sorts_and_copies_its_codes_once():
    """Batches are on the device of a model that moved since; a meta tensor stands in for it."""
    swap = CodeSwap(0.5, [torch.tensor([9, 8]), torch.tensor([30])])
    batch = {name: torch.ones(2, 7, dtype=int, device="meta") for name in ("input_ids", "labels")}
    with TableOps() as first:
        swap(batch)
    with TableOps() as second:
        swap(batch)
    assert (first.count, second.count) == (2, 0)
