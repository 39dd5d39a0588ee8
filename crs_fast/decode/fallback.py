"""Hugging Face beam search with the trie as a constraint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from crs_fast.ops import trie_mask_
from crs_fast.trie import Grammar

from .lm.prompt import left_pad
from .lm.stand_in import acts_outside, input_device
from .search_request import SearchRequest

# Scores below this are of beams that were never real: Hugging Face marks them with -1e9.
LOST = -1e8


class SequentialBeams(NamedTuple):
    """Beams that were decoded one after the other.

    codes int64 [B, M, L]: -1 where a SID has ended
    scores float32 [B, M]: sums of log-probs, -inf for invalid beams
    not_numbers: requests after whose prompt logits were NaN or infinite
    """

    codes: torch.Tensor
    scores: torch.Tensor
    not_numbers: set[int]


class BeamScores:
    """A logits processor that turns beam search's log-probs into `recommend`'s gains: -inf on
    illegal tokens, the rest normalised as asked, and 0 for `filler`, which stands for "this SID is
    whole and waits".

    Unlike with `SidLogitsProcessor`, a row that has left the catalogue is no error here: where
    there are more beams than items, its scores are -inf already, whatever follows.

    Args:
        prompt_length: the length of the prompts, right after which the SIDs begin.
        filler: a token that stands for no code of the catalogue.

    not_numbers: requests that had a row of NaN or infinite log-probs
    """

    def __init__(self, request: SearchRequest, prompt_length: int, filler: int) -> None:
        self.trie, self.filters = request.trie.tensors, request.bitmaps
        tokens = request.vocabulary.tensors(request.trie.device)
        self.tokens = tokens._replace(
            terminator=filler, num_columns=max(tokens.num_columns, filler + 1)
        )
        # No text follows here, whatever the vocabulary says: a whole SID waits for longer ones.
        self.grammar = Grammar(
            request.trie, request.vocabulary, prompt_length, (), filler, text_follows=False
        )
        self.start, self.filler, self.num_beams = prompt_length, filler, request.num_beams
        self.not_numbers: set[int] = set()
        self.normalize, self.temperature = request.normalize, request.temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nodes = self.grammar.read(input_ids).nodes
        highest = scores.amax(1)
        wrong = (nodes >= 0) & (highest.isnan() | (highest == float("inf")))
        if bool(wrong.any()):
            self.not_numbers.update((wrong.nonzero()[:, 0] // self.num_beams).tolist())
        penalty = trie_mask_(torch.zeros_like(scores), nodes, self.trie, self.tokens, self.filters)
        gains = self._normalized(scores / self.temperature, penalty, input_ids.shape[1])
        gains[:, self.filler] = 0.0
        gains = (gains + penalty).nan_to_num(nan=float("-inf"), neginf=float("-inf"))
        gains = gains.masked_fill((nodes < 0)[:, None], float("-inf"))
        # A row that can't go on waits at a score that marks it, since -inf everywhere can't be
        # drawn from.
        is_dead = (gains == float("-inf")).all(1)
        gains[:, self.filler] = torch.where(is_dead, 10 * LOST, gains[:, self.filler])
        return gains

    def _normalized(self, scores: torch.Tensor, penalty: torch.Tensor, length: int) -> torch.Tensor:
        if self.normalize == "vocab" and self.temperature == 1.0:
            return scores.clone()  # log-probs already, or what the caller's processors made of them
        pool = scores
        if self.normalize == "level":
            column = self.tokens.column
            column = column[min(length - self.start, column.shape[0] - 1)]
            pool = scores[:, column[column >= 0]]
        elif self.normalize == "legal":
            pool = scores + penalty
            pool[:, self.filler] = float("-inf")
        return scores - pool.logsumexp(1, keepdim=True)


@torch.no_grad()
def beams_by_generate(
    model: Any, rows: Sequence[torch.Tensor], request: SearchRequest
) -> SequentialBeams:
    """Beams by `generate` and the model's cache: every prompt is prefilled once per beam.

    Args:
        model: a `stand_in`.
        rows: the prompts, int64 [n] each.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    trie, vocab, num_beams = request.trie, request.vocabulary, request.num_beams
    filler = vocab.unused_token(trie.level_codes)
    ids, mask = left_pad([row.tolist() for row in rows], filler)
    device = input_device(model)
    config = GenerationConfig(
        max_new_tokens=trie.num_levels,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=filler,
        return_dict_in_generate=True,
        output_scores=True,
        use_cache=True,
    )
    scores = BeamScores(request, ids.shape[1], filler)
    base = model.get_base_model() if acts_outside(model) else model
    with device:  # some of its tensors take torch's default device
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.long().to(device),
            generation_config=config,
            logits_processor=LogitsProcessorList([scores]),
            # One beam would be greedy search, which has neither log-probs nor their sums.
            custom_generate=type(base)._beam_search,
        )
    shape = (len(rows), num_beams)
    tokens = out.sequences[:, -trie.num_levels :].view(*shape, -1)
    codes = vocab.decode(tokens.masked_fill(tokens == filler, -1))
    totals = out.sequences_scores.view(shape)
    nothing = tokens[..., 0] == filler  # no item is allowed at all
    totals = totals.masked_fill(~(totals >= LOST) | nothing, float("-inf"))
    return SequentialBeams(codes.to(trie.device), totals.to(trie.device), scores.not_numbers)
