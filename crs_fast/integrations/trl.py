"""TRL: rollouts over a catalogue for `GRPOTrainer(rollout_func=…)`, and a reward of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from crs_fast.decode.lm.prompt import left_pad
from crs_fast.decode.recommend import recommend
from crs_fast.decode.sample import sample
from crs_fast.trie import SidTrie, Vocabulary, find_items

_HOW = ("beams", "sample")


def rollout(
    trie: SidTrie, vocab: Vocabulary, how: str = "sample"
) -> Callable[[list[Any], Any], dict[str, list[Any]]]:
    """A `rollout_func` for TRL's `GRPOTrainer`: `num_generations` completions of each prompt, each
    one whole SID of the catalogue, all of them behind one prefill.

    A prompt ends where the SID begins; `vocab.begin`, where there is one and the prompt does not
    end with it, is added to it. TRL hands every prompt over `num_generations` times.

    Args:
        trie, vocab: as in `recommend`.
        how: "sample" draws with the trainer's temperature, with replacement; "beams" takes the best
            SIDs, all of them different, the best ones once more where there are too few; of their
            log-probs only the sums are known, so each token gets an equal share.

    Returns:
        The function: `prompt_ids`, `completion_ids` and `logprobs`, those of the constrained
        policy (see `ops.trie_logprob`), and `item_ids`, for reward functions: the items that each
        completion names.

    Raises:
        ValueError: an unknown `how`; in the function, prompts that are not repeated as TRL does.
    """
    if how not in _HOW:
        raise ValueError(f"rollout: how must be one of {_HOW} (got {how!r})")

    def rollout_func(prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        model = trainer.accelerator.unwrap_model(trainer.model)
        count = trainer.num_generations if model.training else trainer.num_generations_eval
        unique = prompts[::count]
        if [prompt for prompt in unique for _ in range(count)] != list(prompts):
            raise ValueError(
                f"rollout: prompts must repeat each one {count} times in a row (got others)"
            )
        rows = [_prompt_ids(trainer.processing_class, prompt, vocab.begin) for prompt in unique]
        pad = trainer.processing_class.pad_token_id
        ids, mask = (t.to(model.device) for t in left_pad(rows, 0 if pad is None else pad))
        with _decoding(model):
            tokens, logprobs = _completions(
                model, ids, mask, trie, vocab, how, count, float(trainer.temperature)
            )
        completions = tokens.flatten(0, 1).tolist()
        named = find_items(completions, trie, vocab)
        return {
            "prompt_ids": [row for row in rows for _ in range(count)],
            "completion_ids": completions,
            "logprobs": logprobs.flatten(0, 1).tolist(),
            "item_ids": [[item for one in row for item in one.item_ids] for row in named],
        }

    return rollout_func


@contextmanager
def _decoding(model: Any) -> Iterator[None]:
    """The model in eval mode and in its own precision. Accelerate's mixed precision replaces
    `forward` on the instance, but not the layers, so that the two would disagree."""
    was_training, wrapped = model.training, model.__dict__.get("forward")
    original = model.__dict__.get("_original_forward")
    model.eval()
    if wrapped is not None and original is not None:
        model.forward = original
    try:
        yield
    finally:
        model.train(was_training)
        if wrapped is not None:
            model.forward = wrapped


def _completions(
    model: Any,
    ids: torch.Tensor,
    mask: torch.Tensor,
    trie: SidTrie,
    vocab: Vocabulary,
    how: str,
    count: int,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [B, M, L] and log-probs float32 [B, M, L]."""
    if how == "sample":
        drawn = sample(
            model, ids, mask, trie=trie, vocab=vocab, num_samples=count, temperature=temperature
        )
        return drawn.tokens, drawn.logprobs
    out = recommend(
        model, ids, mask, trie=trie, vocab=vocab, num_beams=count, normalize="legal",
        temperature=temperature,
    )  # fmt: skip
    if int(out.num_valid.min()) == 0:
        raise ValueError("rollout: trie must hold an item (got none)")
    # Too few SIDs: the best ones once more.
    which = torch.arange(count, device=ids.device)[None] % out.num_valid[:, None]  # [B, M]
    sids = out.sids.gather(1, which[..., None].expand(-1, -1, out.sids.shape[2]))
    scores = out.scores.gather(1, which)
    levels = sids.shape[2]
    return vocab.encode(sids), (scores / levels)[..., None].expand(-1, -1, levels)


def _prompt_ids(processing_class: Any, prompt: Any, begin: int | None) -> list[int]:
    """A prompt, text or messages, as token ids that end where the SID begins."""
    if isinstance(prompt, str):
        ids = list(processing_class(prompt)["input_ids"])
    else:
        ids = list(
            processing_class.apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
        )
    if begin is not None and (not ids or ids[-1] != begin):
        ids.append(begin)
    return ids


def item_reward(
    trie: SidTrie,
    vocab: Vocabulary,
    target: str = "item_id",
    score: Callable[[Sequence[int | str], Any], float] | None = None,
) -> Callable[..., list[float]]:
    """A reward function of TRL that reads items from `completion_ids`. Texts would not do: special
    tokens are missing in them.

    Args:
        trie, vocab: as in `find_items`.
        target: the data set's column that says what should have been recommended: one item id, or
            a list of them.
        score: from the items that a completion names, in order, and the target to a reward. None
            means 1.0 where any of the items is a target, else 0.0; items that share a SID all
            count.

    Returns:
        The function, named `item_reward`.
    """

    def item_reward(completion_ids: list[list[int]], **columns: list[Any]) -> list[float]:
        if target not in columns:
            raise ValueError(f"item_reward: the data set must have a column {target!r} (got none)")
        rewards = []
        rows = find_items(completion_ids, trie, vocab)
        for named, wanted in zip(rows, columns[target], strict=True):
            items = [item for one in named for item in one.item_ids]
            rewards.append(float((score or _any_hit)(items, wanted)))
        return rewards

    return item_reward


def _any_hit(items: Sequence[int | str], wanted: Any) -> float:
    targets = set(wanted) if isinstance(wanted, (list, tuple, set)) else {wanted}
    return float(bool(targets.intersection(items)))
