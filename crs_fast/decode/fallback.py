"""Hugging Face beam search with the trie as a constraint, for models that can't hold a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from crs_fast.ops import trie_mask_, trie_walk
from crs_fast.trie import Grammar

from .lm.prompt import left_pad
from .output import RecommendOutput
from .search_request import SearchRequest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Scores below this are of beams that were never real: Hugging Face marks them with -1e9.
LOST = -1e8


class BeamScores:
    """A logits processor that turns beam search's log-probs into `recommend`'s gains: -inf on
    illegal tokens, the rest normalised as asked, and 0 for `filler`, which stands for "this SID is
    whole and waits".

    Unlike with `SidLogitsProcessor`, a row that has left the catalogue is no error here: where
    there are more beams than items, its scores are -inf already, whatever follows.

    Args:
        prompt_length: the length of the prompts, right after which the SIDs begin.
        filler: a token that stands for no code of the catalogue.
    """

    def __init__(self, request: SearchRequest, prompt_length: int, filler: int) -> None:
        self.trie, self.filters = request.trie.tensors, request.bitmaps
        tokens = request.vocabulary.tensors(request.trie.device)
        self.tokens = tokens._replace(
            terminator=filler, num_columns=max(tokens.num_columns, filler + 1)
        )
        # No text follows here, whatever the vocabulary says: a whole SID waits for longer ones.
        self.grammar = Grammar(
            request.trie, request.vocabulary, prompt_length, None, filler, text_follows=False
        )
        self.start, self.filler = prompt_length, filler
        self.normalize, self.temperature = request.normalize, request.temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        nodes = self.grammar.read(input_ids).nodes
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
def generate_beams(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    request: SearchRequest,
    **kwargs: Any,
) -> RecommendOutput:
    """`recommend` by `model.generate`: every prompt is prefilled once a beam.

    Args:
        ids, mask: int64 and bool [B, P]; padding on either side.
        kwargs: more arguments of `model.generate`.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    trie, vocab, num_beams = request.trie, request.vocabulary, request.num_beams
    filler = vocab.unused_token(trie.level_codes)
    ids, mask = left_pad(
        [row[seen].tolist() for row, seen in zip(ids.cpu(), mask.cpu(), strict=True)], filler
    )
    levels = trie.num_levels
    config = GenerationConfig(
        max_new_tokens=levels,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=filler,
        return_dict_in_generate=True,
        output_scores=True,
        # Recurrent states are not reordered with the beams before transformers 5.
        use_cache=not getattr(model, "_is_stateful", False),
    )
    scores = BeamScores(request, ids.shape[1], filler)
    out = model.generate(  # type: ignore[operator]
        input_ids=ids.to(model.device),
        attention_mask=mask.long().to(model.device),
        generation_config=config,
        logits_processor=LogitsProcessorList([scores]),
        # One beam would be greedy search, which has neither log-probs nor their sums.
        custom_generate=type(model)._beam_search,  # type: ignore[attr-defined]
        **kwargs,
    )
    shape = (ids.shape[0], num_beams)
    tokens = out.sequences[:, ids.shape[1] :].view(*shape, -1)
    codes = vocab.decode(tokens.masked_fill(tokens == filler, -1))
    totals = out.sequences_scores.view(shape)
    nothing = tokens[..., 0] == filler  # no item is allowed at all
    totals = totals.masked_fill(~(totals >= LOST) | nothing, float("-inf"))
    codes, totals = codes.to(trie.device), totals.to(trie.device)
    nodes = trie_walk(trie.tensors, codes.flatten(0, 1)).view(shape)
    return RecommendOutput.of(trie, codes, nodes, totals, request.filters, request.most_items)
