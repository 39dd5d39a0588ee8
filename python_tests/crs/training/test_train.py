import json
import shutil
from dataclasses import replace

import pytest
import torch

from crs_fast.crs.control_tokens import new_tokens
from crs_fast.crs.data.dialogue import SEEKER, CrsDataset, Dialogue, Turn
from crs_fast.crs.training.config import TrainConfig
from crs_fast.crs.training.embedding_init import freeze_old_rows, init_sid_rows
from crs_fast.crs.training.packing import collate, next_token_loss, pack, packing_is_exact
from crs_fast.crs.training.train import train

from ..tiny_system import ITEMS, SIDS, dialogues, system

FULL = TrainConfig(
    epochs=2, learning_rate=3e-3, tokens_per_batch=400, lora_rank=None, logging_steps=1
)


def run(parts, folder, config=FULL, data=None, **more):
    model, tokenizer, trie, vocab, control, _ = parts
    data = dialogues(16) if data is None else data
    return train(
        (model, tokenizer),
        data,
        trie,
        vocab,
        control,
        output_dir=folder,
        config=config,
        progress=False,
        **more,
    )


def mean_loss(model, builder, data):
    packs = [p for d in data for p in pack(builder.instances(d))]
    with torch.no_grad():
        total, count = next_token_loss(model.eval(), collate(packs))
    return float(total) / count


def test_full_tuning_learns_and_writes_the_curve(tmp_path):
    parts = system()
    before = mean_loss(parts[0], parts[-1], dialogues(16))
    dataset = CrsDataset("tiny", ITEMS, {"train": tuple(dialogues(16))})
    result = run(parts, tmp_path, replace(FULL, epochs=4), dataset)
    assert mean_loss(result.model, parts[-1], dialogues(16)) < before - 1.0
    lines = [
        json.loads(line) for line in (tmp_path / "training/loss.jsonl").read_text().splitlines()
    ]
    assert lines == result.losses
    assert [line["step"] for line in lines] == list(range(1, result.steps + 1))
    assert {"loss", "learning_rate", "seconds"} <= lines[0].keys()
    assert (tmp_path / "training/loss.png").read_bytes()[:4] == b"\x89PNG"
    packs = [p for d in dialogues(16) for p in pack(parts[-1].instances(d))]
    assert result.tokens == 4 * sum(map(len, packs))
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)
    assert lines[-1]["learning_rate"] < 0.05 * max(line["learning_rate"] for line in lines)


def test_first_logged_loss_is_the_mean_over_labels(tmp_path):
    parts = system()
    config = replace(FULL, tokens_per_batch=10**6, epochs=1)
    expected = mean_loss(parts[0], parts[-1], dialogues(8))
    result = run(parts, tmp_path, config, dialogues(8))
    assert result.losses[0]["loss"] == pytest.approx(expected, rel=1e-3)


def test_accumulation_weighs_labels_not_batches(tmp_path):
    losses = []
    for accumulate, tokens in ((1, 10**6), (10**3, 150)):
        config = replace(FULL, epochs=1, accumulate=accumulate, tokens_per_batch=tokens)
        result = run(system(), tmp_path / str(tokens), config, dialogues(8))
        assert result.steps == 1
        losses.append([p.detach().clone() for p in result.model.parameters()])
    for one, many in zip(*losses, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_lora_trains_new_rows_only(tmp_path, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer, trie, vocab, control, builder = system()
    if not tied:
        config = LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    new = torch.tensor(new_tokens(vocab, control))
    old = torch.ones(model.config.vocab_size, dtype=torch.bool)
    old[new] = False
    embeddings = {"in": model.get_input_embeddings(), "out": model.get_output_embeddings()}
    start = {name: module.weight.detach().clone() for name, module in embeddings.items()}
    layer = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    before = mean_loss(model, builder, dialogues(16))
    instances = [i for d in dialogues(16) for i in builder.instances(d)]
    read = {token for i in instances for token in (*i.context, *i.response)}
    result = run(
        (model, tokenizer, trie, vocab, control, builder), tmp_path, replace(FULL, lora_rank=4)
    )
    after = result.model
    assert not any("lora" in name for name, _ in after.named_parameters())
    ends = {"in": after.get_input_embeddings().weight, "out": after.get_output_embeddings().weight}
    for name, weight in ends.items():
        assert torch.equal(weight[old], start[name][old])
        moved = (weight != start[name]).any(1)
        assert moved[sorted(read & set(new.tolist()))].all()
    assert (ends["in"] is ends["out"]) == tied
    assert not torch.equal(after.model.layers[0].mlp.up_proj.weight, layer)
    assert mean_loss(after, builder, dialogues(16)) < before


@pytest.mark.parametrize("rank", [None, 4])
def test_resume_equals_an_uninterrupted_run(tmp_path, rank):
    config = replace(
        FULL, lora_rank=rank, lora_dropout=0.2, save_steps=3, epochs=3, embedding_lr_ratio=4
    )
    whole = run(system(), tmp_path, config)
    checkpoints = sorted((tmp_path / "training").glob("checkpoint-*"))
    assert whole.steps > 6
    first = min(checkpoints, key=lambda p: int(p.name.split("-")[1]))
    for other in checkpoints:
        if other != first:
            shutil.rmtree(other)
    # Another seed for the start: everything must come from the checkpoint.
    again = run(system(), tmp_path, config, resume=True)
    assert 0 < again.tokens < whole.tokens
    assert [x["loss"] for x in again.losses] == [x["loss"] for x in whole.losses]
    for (name, one), two in zip(
        whole.model.named_parameters(), again.model.parameters(), strict=True
    ):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("rank", [None, 4])
@pytest.mark.parametrize("minutes", [None, 0.5 / 60])
def test_a_training_that_is_over_takes_no_further_step(tmp_path, rank, minutes):
    epochs = 10_000 if minutes else 1.4  # a last step in the middle of an epoch
    config = replace(FULL, lora_rank=rank, save_steps=10**6, epochs=epochs, max_minutes=minutes)
    whole = run(system(), tmp_path, config)
    again = run(system(), tmp_path, config, resume=True)
    assert (again.tokens, again.steps) == (0, whole.steps)
    assert again.losses == whole.losses
    for one, two in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(two, one, rtol=0, atol=1e-6)
    if not minutes:
        longer = run(system(), tmp_path, replace(config, epochs=2), resume=True)
        assert longer.steps > whole.steps


def test_resume_without_a_checkpoint_starts(tmp_path):
    assert run(system(), tmp_path, replace(FULL, epochs=1), resume=True).steps > 0


def test_time_limit_stops_cleanly_at_a_low_rate(tmp_path):
    config = replace(FULL, epochs=10_000, max_minutes=1.5 / 60)
    result = run(system(), tmp_path, config)
    assert 1.0 < result.seconds < 6.0
    assert result.losses[-1]["step"] == result.steps
    rates = [entry["learning_rate"] for entry in result.losses]
    assert rates[-1] < 0.2 * max(rates)


def test_no_time_limit_with_several_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"max_minutes must be None .* \(got 1\)"):
        run(system(), tmp_path, replace(FULL, max_minutes=1))


def test_packing_is_judged_by_a_dialogue_of_several_turns(tmp_path, monkeypatch):
    """Alone, an instance is packed as it stands, and any model could read it."""
    tried = []

    def judge(model, instances, max_length):
        tried.append(len(instances))
        return packing_is_exact(model, instances, max_length)

    monkeypatch.setattr("crs_fast.crs.training.train.packing_is_exact", judge)
    first = dialogues(1)[0]
    short = replace(first, turns=first.turns[:2])
    run(system(), tmp_path, replace(FULL, epochs=1), [short, *dialogues(4)])
    assert tried[0] > 1


def test_unpacked_training_reads_more_tokens(tmp_path):
    config = replace(FULL, epochs=1)
    packed = run(system(), tmp_path / "a", config)
    apart = run(system(), tmp_path / "b", replace(config, packed=False))
    assert apart.tokens > packed.tokens


def test_bf16_autocast_runs_on_the_cpu(tmp_path):
    result = run(system(), tmp_path, replace(FULL, epochs=1, bf16=True, lora_rank=4))
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.losses[-1]["loss"] < result.losses[0]["loss"] + 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embeddings": "nwe"}, r"embeddings must be 'all' or 'new' \(got 'nwe'\)"),
        ({"max_minutes": 0}, r"max_minutes must be above 0 \(got 0\)"),
        ({"max_minutes": -1.0}, "max_minutes must be above 0"),
        ({"epochs": 0}, "epochs must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"lora_rank": -1}, "lora_rank must be at least 1"),
        ({"save_steps": -1}, "save_steps must be at least 0"),
        ({"code_noise": 1.5}, r"code_noise must be in \[0, 1\]"),
        ({"context_dropout": 1.0}, r"context_dropout must be in \[0, 1\)"),
        ({"embeddings": "new", "weight_decay": 0.1, "lora_rank": None}, "weight_decay must be 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"TrainConfig: {message}"):
        TrainConfig(**settings)


def test_nothing_to_train_on(tmp_path):
    silent = Dialogue("d", (Turn(SEEKER, "anyone?"),))
    with pytest.raises(ValueError, match="must hold a recommender turn"):
        run(system(), tmp_path, data=[silent])
    with pytest.raises(ValueError, match="train: dataset must have a split 'train'"):
        run(system(), tmp_path, data=CrsDataset("t", ITEMS, {"test": (silent,)}))


@pytest.mark.parametrize("tied", [True, False])
def test_init_sid_rows(tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, _, _, vocab, control, _ = system()
    if not tied:
        model = LlamaForCausalLM(
            LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
        )
    new = new_tokens(vocab, control)
    weights = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    before = [w.detach().clone() for w in weights]
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(8, 16, generator=generator)
    # Codes 0 and 1 of level 0 stand for like items, 2 for unlike ones.
    codes = torch.tensor(
        [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [2, 0, 0], [2, 1, 0], [2, 2, 1], [2, 3, -1]]
    )
    embeddings[:4] = embeddings[0] + 0.1 * torch.randn(4, 16, generator=generator)
    init_sid_rows(model, vocab, control, embeddings, codes, seed=1)
    for weight, old in zip(weights, before, strict=True):
        keep = torch.ones(len(weight), dtype=torch.bool)
        keep[new] = False
        assert torch.equal(weight[keep], old[keep])
        a, b, c = (weight[i].detach() for i in vocab.token_ids[0][:3])
        assert (a - b).norm() < 0.5 * (a - c).norm()
        assert 0.2 < weight[new].std() / weight[keep].std() < 2
        assert torch.isfinite(weight).all()
    again, _, _, vocab, control, _ = system()
    init_sid_rows(again, vocab, control, embeddings, codes, seed=1)
    if tied:
        assert torch.equal(again.get_input_embeddings().weight, weights[0])
    with pytest.raises(ValueError, match="must have the same N"):
        init_sid_rows(model, vocab, control, embeddings, SIDS[:3])


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_can_stay_while_all_else_trains(tmp_path, tied):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, tokenizer, trie, vocab, control, builder = system()
    if not tied:
        model = LlamaForCausalLM(
            LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
        )
    new = new_tokens(vocab, control)
    old = torch.ones(model.config.vocab_size, dtype=torch.bool)
    old[new] = False
    start = {k: v.detach().clone() for k, v in model.named_parameters()}
    run(
        (model, tokenizer, trie, vocab, control, builder), tmp_path, replace(FULL, embeddings="new")
    )
    for name, value in model.named_parameters():
        if "embed" in name or "lm_head" in name:
            assert torch.equal(value[old], start[name][old])
            assert not torch.equal(value[new], start[name][new])
        else:
            assert not torch.equal(value, start[name])
        assert not value._backward_hooks


def test_old_rows_stay_in_a_model_that_moves_afterwards():
    """`Trainer` moves the model when the hooks are there already; a meta tensor is on another
    device, as one on a GPU is."""
    model = system()[0]
    hooks = freeze_old_rows(model, [2, 5])
    weight = model.get_input_embeddings().weight
    (keep_new,) = weight._backward_hooks.values()
    assert keep_new(torch.ones_like(weight, device="meta")).device.type == "meta"
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("rank", [None, 4])
def test_rows_learn_at_a_rate_of_their_own(tmp_path, rank):
    """Adam's first step is the learning rate in every coordinate that has a gradient."""
    moved = {}
    for ratio in (1, 10):
        torch.manual_seed(0)
        parts = system()
        start = {k: v.detach().clone() for k, v in parts[0].named_parameters()}
        config = replace(
            FULL, max_tokens=1, lora_rank=rank, lora_dropout=0.0, embedding_lr_ratio=ratio
        )
        result = run(parts, tmp_path / str(ratio), config)
        assert result.steps == 1
        moved[ratio] = {k: v.detach() - start[k] for k, v in result.model.named_parameters()}
    for name, slow in moved[1].items():
        rows = "embed" in name or "lm_head" in name
        torch.testing.assert_close(
            moved[10][name], slow * (10 if rows else 1), rtol=1e-2, atol=1e-6
        )
        assert not rows or slow.any()


def test_a_budget_in_tokens(tmp_path):
    result = run(system(), tmp_path, replace(FULL, max_tokens=3000))
    assert abs(result.tokens - 3000) <= FULL.tokens_per_batch
    assert result.losses[-1]["tokens"] == result.tokens


def test_a_model_trained_in_bf16_answers_in_its_own_dtype(tmp_path):
    """Accelerate leaves autocast around the forward pass of what it trained."""
    parts = system()
    model = run(parts, tmp_path, replace(FULL, epochs=1, bf16=True), dialogues(4)).model
    fresh = system()[0]
    fresh.load_state_dict(model.state_dict())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted = fresh.eval()(ids).logits
        assert torch.equal(model(ids).logits, wanted)
        assert torch.equal(model(ids, return_dict=False)[0], wanted)  # its own decorators stay
