"""TRL's side of `rollout` and `item_reward`, by a double of its trainer; where TRL is installed, by
the real one."""

from types import SimpleNamespace

import pytest
import torch

from crs_fast.integrations import trl
from crs_fast.trie import SidTrie, SidVocab
from python_tests.helpers import tiny_model
from python_tests.trie.formats.files import tokenizer_of

SIDS = [[0, 0], [0, 1], [1, 1], [1, 1], [2, 0]]
IDS = ["Heat", "Up", "Alien", "Aliens", "Big"]


def system(begin=True):
    tokenizer = tokenizer_of([])
    tokenizer.pad_token = tokenizer.eos_token
    vocab = SidVocab.extend(tokenizer, None, levels=2, codes=3)
    if not begin:
        vocab = SidVocab(vocab.token_ids)
    model = tiny_model("llama", len(tokenizer)).train()
    return model, tokenizer, SidTrie.from_sids(SIDS, IDS), vocab


def trainer_of(model, tokenizer, generations=4):
    """What `GRPOTrainer` shows to its `rollout_func`."""
    return SimpleNamespace(
        model=model,
        processing_class=tokenizer,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
        num_generations=generations,
        num_generations_eval=1,
        temperature=0.9,
    )


@pytest.mark.parametrize("how", ["beams", "sample"])
@pytest.mark.parametrize("begin", [True, False])
def test_rollout(how, begin):
    model, tokenizer, trie, vocab = system(begin)
    trainer, prompts = trainer_of(model, tokenizer, 5), ["a film", "film film a"]
    out = trl.rollout(trie, vocab, how)([p for p in prompts for _ in range(5)], trainer)
    assert model.training
    assert out.keys() == {"prompt_ids", "completion_ids", "logprobs", "item_ids"}
    assert {len(values) for values in out.values()} == {10}
    tail = [vocab.begin] if begin else []
    assert out["prompt_ids"][5] == [*tokenizer(prompts[1])["input_ids"], *tail]
    sids = vocab.decode(out["completion_ids"])
    assert out["item_ids"] == trie.items(sids)
    assert all(out["item_ids"])
    if how == "beams":
        assert len({tuple(sid) for sid in sids[:4].tolist()}) == 4  # all there are; then once more
        assert out["completion_ids"][4] == out["completion_ids"][0]
    model.eval()
    assert len(trl.rollout(trie, vocab, how)(prompts, trainer)["completion_ids"]) == 2


def test_rollout_under_mixed_precision(recwarn):
    """Accelerate wraps `forward` on the instance; bfloat16 logits would fail the tree's probe."""
    model, tokenizer, trie, vocab = system()
    model._original_forward = model.forward

    def forward(*args, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            return model._original_forward(*args, **kwargs)

    model.forward = forward
    out = trl.rollout(trie, vocab)(["a film"] * 4, trainer_of(model, tokenizer))
    assert len(out["item_ids"]) == 4
    assert model.forward is forward
    assert not [w for w in recwarn.list if "token tree" in str(w.message)]


def test_rollout_refuses():
    model, tokenizer, trie, vocab = system()
    with pytest.raises(ValueError, match="rollout: how must be one of"):
        trl.rollout(trie, vocab, "greedy")
    with pytest.raises(ValueError, match="prompts must repeat each one 4 times in a row"):
        trl.rollout(trie, vocab)(["a", "film"] * 4, trainer_of(model, tokenizer))


def test_item_reward():
    _, _, trie, vocab = system()
    reward = trl.item_reward(trie, vocab)
    rows = vocab.encode([[1, 1], [0, 1], [0, 2]]).tolist()
    columns = dict(completion_ids=rows, prompts=["x"] * 3, completions=[""] * 3)
    # Items that share a SID all count; a SID of no item earns nothing.
    assert reward(**columns, item_id=["Aliens", "Up", "Up"]) == [1.0, 1.0, 0.0]
    assert reward(**columns, item_id=[["Big", "Alien"], ["Big"], []]) == [1.0, 0.0, 0.0]
    assert reward.__name__ == "item_reward"
    graded = trl.item_reward(trie, vocab, "wanted", score=lambda items, wanted: len(items))
    assert graded(**columns, wanted=[0, 0, 0]) == [2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="must have a column 'item_id'"):
        reward(completion_ids=rows)


def test_the_real_trainer_learns_to_recommend_one_item(tmp_path):
    real, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    model, tokenizer, trie, vocab = system()
    rows = [{"prompt": "a film", "item_id": "Big"}] * 64
    config = real.GRPOConfig(
        output_dir=str(tmp_path), num_generations=8, per_device_train_batch_size=16, max_steps=25,
        learning_rate=3e-3, report_to=[], use_cpu=True, logging_steps=1, save_strategy="no", beta=0,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = real.GRPOTrainer(
        model,
        reward_funcs=trl.item_reward(trie, vocab),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        rollout_func=trl.rollout(trie, vocab),
    )
    trainer.train()
    rewards = [log["reward"] for log in trainer.state.log_history if "reward" in log]
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 1
