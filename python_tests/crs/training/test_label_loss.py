"""The loss without all logits, against the loss with them; and steps that wait for nothing."""

import logging
import math
import pickle
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from crs_fast.crs.control_tokens import new_tokens
from crs_fast.crs.sequence import Instance
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.label_loss import LabelLoss
from crs_fast.crs.training.lora import add_lora
from crs_fast.crs.training.packing import (
    IGNORE,
    CodeSwap,
    collate,
    collate_separate,
    note_labels,
    pack,
    separate,
    token_losses,
)
from crs_fast.crs.training.sid_loss import SidLoss
from crs_fast.crs.training.train import Preparation, train, train_instances
from crs_fast.decode.lm.head import LOGITS_AT_ONCE

from ..tiny_system import ITEMS, dialogues, system

SIZE = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=256,
)  # fmt: skip
MODELS = {
    "tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "untied": (LlamaConfig, {"tie_word_embeddings": False}),
    "bias": (PhiConfig, {"tie_word_embeddings": False}),
    "softcap": (Gemma2Config, {"head_dim": 16, "final_logit_softcapping": 2.0}),
    "divisor": (GraniteConfig, {"logits_scaling": 3.0}),
    "factor": (CohereConfig, {"logit_scale": 0.5}),
}


@pytest.fixture(scope="module")
def parts():
    return system()


@contextmanager
def at_once(logits):
    before, LOGITS_AT_ONCE.now = LOGITS_AT_ONCE.now, logits
    try:
        yield
    finally:
        LOGITS_AT_ONCE.now = before


def model_of(name, vocab_size):
    kind, shape = MODELS[name]
    torch.manual_seed(0)
    config = kind(vocab_size=vocab_size, **SIZE, **shape, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():  # logits that a cap bends
        weight.data += 0.3 * torch.randn_like(weight)
    return model.train()


def batch_of(builder, sid_loss=None, packed=True):
    instances = [i for d in dialogues(4) for i in builder.instances(d)]
    sequences = pack(instances) if packed else separate(instances)
    return Preparation(collate if packed else collate_separate, 0, sid_loss)([sequences])


def loss_and_gradients(model, batch, logits, sid_loss=None, autocast=False):
    model.zero_grad()
    torch.manual_seed(5)
    with at_once(logits), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, count = LabelLoss(sid_loss)(model, batch)
    (total / count).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(total.detach()), count, gradients


def assert_same(model, batch, sid_loss=None, autocast=False):
    """The loss by all logits and by those of three labels at a time."""
    size = len(model.get_output_embeddings().weight)
    wanted = loss_and_gradients(model, batch, None, sid_loss, autocast)
    with Softmaxes() as seen:
        got = loss_and_gradients(model, batch, 3 * size + 1, sid_loss, autocast)
    assert (got[0], got[1]) == (pytest.approx(wanted[0], rel=2e-3 if autocast else 1e-6), wanted[1])
    assert got[2].keys() == wanted[2].keys()
    tolerance = 2e-2 if autocast else 2e-6
    for name, gradient in wanted[2].items():
        apart = (got[2][name] - gradient).norm()
        assert apart <= tolerance * gradient.norm() + 1e-9, name
    assert wanted[1] > 6
    return max(seen.rows)


class Softmaxes(TorchDispatchMode):
    """Notes for how many labels at once the softmax is taken."""

    def __init__(self):
        super().__init__()
        self.rows = [0]

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten._log_softmax.default:
            self.rows.append(args[0].shape[0])
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("packed", [True, False])
def test_any_head_has_the_loss_and_gradients_of_all_logits(name, packed, parts):
    model = model_of(name, parts[0].config.vocab_size)
    assert assert_same(model, batch_of(parts[-1], packed=packed)) == 3


def test_under_autocast(parts):
    model = model_of("tied", parts[0].config.vocab_size)
    assert assert_same(model, batch_of(parts[-1]), autocast=True) == 3
    kept = model.get_input_embeddings().weight.grad
    assert kept.dtype == torch.float32


def test_weights_in_bfloat16(parts):
    model = model_of("untied", parts[0].config.vocab_size).bfloat16()
    wanted, got = (loss_and_gradients(model, batch_of(parts[-1]), n) for n in (None, 2000))
    assert got[0] == pytest.approx(wanted[0], rel=1e-2)
    for name, gradient in wanted[2].items():
        assert got[2][name].dtype == torch.bfloat16
        assert (got[2][name] - gradient).norm() <= 3e-2 * gradient.norm()


@pytest.mark.parametrize(("weight", "smoothing"), [(3.0, 0.0), (1.0, 0.3), (0.5, 0.7)])
def test_the_loss_on_sids(weight, smoothing, parts):
    sid_loss = SidLoss([parts[-1].item(i.item_id)[:-1] for i in ITEMS], weight, smoothing)
    model = model_of("tied", parts[0].config.vocab_size)
    batch = batch_of(parts[-1], sid_loss)
    assert 6 < len(batch["code_at"]) < len(batch["label_at"]) - 6
    assert_same(model, batch, sid_loss)


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_adapters(name, parts):
    model = model_of(name, parts[0].config.vocab_size)
    adapted = add_lora(model, new_tokens(parts[3], parts[4]), 4, dropout=0.2).train()
    for weight in adapted.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    assert_same(adapted, batch_of(parts[-1]))


def test_an_adapter_on_the_head(parts):
    model = model_of("untied", parts[0].config.vocab_size)
    config = LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False)
    assert assert_same(get_peft_model(model, config), batch_of(parts[-1])) == 3


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_hooks_on_the_weights_run_once_on_the_whole_gradient(name, parts):
    model = model_of(name, parts[0].config.vocab_size)
    weight, calls = model.get_output_embeddings().weight, []

    def halve(gradient):
        calls.append("halve")
        return gradient * 0.5

    def clip(gradient):
        calls.append("clip")
        return gradient.clamp(-0.01, 0.01)

    hooks = [weight.register_hook(halve), weight.register_hook(clip)]
    assert assert_same(model, batch_of(parts[-1])) == 3
    assert calls == ["halve", "clip"] * 2  # once with all logits and once without
    for hook in hooks:
        hook.remove()
    assert not weight._backward_hooks


class Doubled(LlamaForCausalLM):
    """Does with its logits what no config says."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class Headless(LlamaForCausalLM):
    """Computes its logits without a call of its head."""

    def forward(self, *args, **kwargs):
        kwargs.pop("use_cache", None)
        states = self.model(*args, **kwargs).last_hidden_state
        return CausalLMOutputWithPast(logits=states @ self.lm_head.weight.T)


class Bare(torch.nn.Module):
    """A model of no library."""

    def __init__(self, config):
        super().__init__()
        self.inner = LlamaForCausalLM(config)
        self.config = config

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def test_a_model_that_changes_its_logits_gets_all_of_them(parts):
    torch.manual_seed(0)
    model = Doubled(LlamaConfig(vocab_size=parts[0].config.vocab_size, **SIZE)).train()
    batch = batch_of(parts[-1])
    assert assert_same(model, batch) > 6
    with at_once(1000):
        total, _ = LabelLoss()(model, batch)
    wanted = token_losses(model, batch).sum()
    torch.testing.assert_close(total, wanted, rtol=1e-6, atol=0)


def without_labels(batch):
    empty = {**batch, "labels": torch.full_like(batch["labels"], IGNORE)}
    note_labels(empty)
    if "siblings" in empty:
        empty["code_at"] = empty["code_first"] = torch.zeros(0, dtype=torch.int64)
        empty["siblings"] = empty["siblings"][:0]
    return empty


@pytest.mark.parametrize("smoothing", [None, 0.3])
@pytest.mark.parametrize("is_first", [True, False])
def test_a_batch_without_labels_decides_nothing(is_first, smoothing, parts):
    sids = [parts[-1].item(i.item_id)[:-1] for i in ITEMS]
    sid_loss = None if smoothing is None else SidLoss(sids, 2.0, smoothing)
    model = model_of("tied", parts[0].config.vocab_size)
    batch, label_loss, forwards = batch_of(parts[-1], sid_loss), LabelLoss(sid_loss), []
    with at_once(1000), Softmaxes() as seen:
        if not is_first:
            label_loss(model, batch)
        model.register_forward_pre_hook(lambda *_: forwards.append(1))
        total, count = label_loss(model, without_labels(batch))
        assert (float(total.detach()), count, len(forwards)) == (0.0, 0, 1)
        total.backward()
        # Distributed training waits for the gradient of every parameter.
        assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
        seen.rows = [0]
        label_loss(model, batch)
    assert 0 < max(seen.rows) < len(batch["label_at"])


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LlamaForCausalLM, "some labels' logits at a time"),
        (Doubled, "all labels' logits at once, as the model's logits are not its head's"),
        (Headless, "all labels' logits at once, as the model does not call its head"),
        (Bare, "all labels' logits at once, as Bare is no whole model of transformers or PEFT"),
    ],
)
def test_the_choice_is_logged_once(kind, words, parts, caplog):
    model = kind(LlamaConfig(vocab_size=parts[0].config.vocab_size, **SIZE))
    batch, label_loss = batch_of(parts[-1]), LabelLoss()
    with caplog.at_level(logging.INFO, "crs_fast"), at_once(1000):
        for given in (without_labels(batch), batch, batch):
            label_loss(model, given)
    assert [record.message for record in caplog.records] == [f"train: the loss takes {words}"]


def test_without_gradients(parts):
    model, batch = model_of("tied", parts[0].config.vocab_size), batch_of(parts[-1])
    with torch.no_grad(), at_once(2000):
        total, _ = LabelLoss()(model, batch)
        assert float(total) == pytest.approx(float(token_losses(model, batch).sum()), rel=1e-5)
    assert not total.requires_grad


def test_a_second_backward_pass_is_refused(parts):
    model, batch = model_of("tied", parts[0].config.vocab_size), batch_of(parts[-1])
    with at_once(2000):
        total, _ = LabelLoss()(model, batch)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_batches_can_be_made_in_another_process(parts):
    sid_loss = SidLoss([parts[-1].item(i.item_id)[:-1] for i in ITEMS], 2.0, 0.1)
    preparation = Preparation(collate, 0, sid_loss)
    sequences = pack([i for d in dialogues(3) for i in parts[-1].instances(d)])
    sent = pickle.loads(pickle.dumps((preparation, sequences)))
    for one, other in zip(
        preparation([sequences]).items(), sent[0]([sent[1]]).items(), strict=True
    ):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])


class Waits(TorchDispatchMode):
    """Counts the calls for which the host would wait for a GPU: those whose results are numbers,
    or have a size that depends on values."""

    OPS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "equal")

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.overloadpacket.__name__ in self.OPS:
            self.calls.append(op)
        if "index" in op.overloadpacket.__name__ and len(args) > 1:
            indices = args[1] if isinstance(args[1], (tuple, list)) else [args[1]]
            if any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices):
                self.calls.append(op)
        return op(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(tmp_path, monkeypatch):
    """Longer runs wait no more often than short ones: nothing waits in a step. Batches are made
    outside, as other processes do it."""
    waits = {}
    preparation = _outside(Preparation.__call__)
    monkeypatch.setattr(Preparation, "__call__", preparation)
    for steps in (1, 3):
        model, tokenizer, trie, vocab, control, _ = system()
        config = TrainConfig(
            lora_rank=None, epochs=1, tokens_per_batch=1, logging_steps=100,
            sid_smoothing=0.1, sid_weight=2.0, code_noise=0.2, context_dropout=0.2,
        )  # fmt: skip
        with Waits() as mode, at_once(1000):
            result = train(
                (model, tokenizer), dialogues(steps), trie, vocab, control,
                output_dir=tmp_path / str(steps), config=config, progress=False,
            )  # fmt: skip
        assert result.steps >= steps
        waits[steps] = len(mode.calls)
    assert waits[1] == waits[3] > 0


def _outside(call):
    def made(self, samples):
        with torch.utils._python_dispatch._disable_current_modes():
            return call(self, samples)

    return made


def test_swapped_codes_are_those_of_the_level():
    ids = torch.tensor([[5, 9, 7, 9, 30]])
    batch = {"input_ids": ids.clone(), "labels": torch.ones_like(ids)}
    CodeSwap(1.0, [torch.tensor([9, 8]), torch.tensor([30])])(batch)
    assert batch["input_ids"][0, [0, 2, 4]].tolist() == [5, 7, 30]
    assert set(batch["input_ids"][0, [1, 3]].tolist()) <= {8, 9}


def test_a_label_in_the_first_column_counts(tmp_path):
    model = system()[0]
    config = TrainConfig(lora_rank=None, epochs=1, logging_steps=1)
    result = train_instances(
        model, [[Instance(0, None, (7,), (8, 9))]], new_rows=[], pad_id=0, output_dir=tmp_path,
        config=config, progress=False,
    )  # fmt: skip
    assert result.losses[0]["loss"] == pytest.approx(math.log(model.config.vocab_size), rel=0.2)
