"""Constrained beam search with beams as a token tree over one shared prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from crs_fast._arguments import check_kind
from crs_fast.trie import ItemFilter, SidTrie, Vocabulary
from crs_fast.trie.terminated import Terminator
from crs_fast.trie.typed import TypedVocab, as_catalogue

from .attempt import Attempts, give_up
from .graph import GraphShape, search_in_graph
from .lm.capability import capability, rope_limit, sliding_window
from .lm.model_state import ModelState
from .lm.prompt import PaddedBatch, Prompt, checked_inputs, pad_right
from .lm.recordings import can_record
from .lm.stand_in import unwrapped
from .lm.tree_model import TreeModel
from .output import Beams, RecommendOutput, refuse_not_numbers
from .search import search
from .search_plan import SearchPlan
from .search_request import SearchRequest
from .sequential import PLAIN, sequential_beams
from .typed_prompts import without_begins

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: SidTrie | Mapping[int, SidTrie],
    vocab: Vocabulary | Mapping[int, Vocabulary] | None = None,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
    cuda_graph: bool = False,
    compile_layers: bool = False,
    by: str = "sid",
    terminator: Terminator | None = None,
) -> RecommendOutput:
    """The best items after a prompt, by beam search over the catalogue's semantic IDs.

        cache = prefill(prompt)                                    # once per request
        for level: beams = trie_step(head(hidden), beams)          # legal children only
                   hidden = forward(one token per beam, seeing the prompt and its own ancestors)

    Two kinds of calls get Hugging Face beam search with the same constraint, without `cuda_graph`
    and `compile_layers`: those of a model that can't hold a token tree (see `lm.capability`), and
    those whose prompt and SID together are longer than the model's attention window. A warning
    says so once.

    Args:
        model: any decoder-only `AutoModelForCausalLM`, PEFT adapters included.
        input_ids: int64 [B, P]; the SID begins right after it (end it with `<BOI>`).
        attention_mask: [B, P], 1 at real tokens; None means all ones. Left or right padding.
        trie: the catalogue, on the model's device, or one for each begin token (see
            `typed_catalogue`). Prompts that end with begin tokens get items of these types, all
            others items of all types; the begin token's log-prob is part of the score.
        vocab: which token stands for which code; None means codes are token ids.
        num_beams: M.
        normalize: "vocab" scores by log-softmax over the whole vocabulary (Hugging Face's beams in
            its order), "level" over the level's codes, "legal" over the legal children; the last
            two compute the logits of the level's codes only.
        temperature: divides the logits.
        filters: one filter per prompt (or one for all).
        cuda_graph: record prefill and steps in a CUDA graph on the first call of a shape (batch,
            prompt rounded up, beams, ...) and replay it from then on, also after another
            `TrieSlot.load` (see `crs_fast.decode.graph`).
        compile_layers: run the model's decoder layers compiled by `torch.compile`, which takes
            seconds on the first calls (see `lm.compiled_layers`). Where a model does not allow one
            of these two, the call does without it and a warning says so once.
        by: what `num_beams` counts in `items`. "sid" lists all items of the M best SIDs, which are
            more than M where items share a SID; "item" the best M of them. SIDs and scores are
            the same.
        terminator: a token that follows each SID, such as a line break or the end of the sequence,
            or several in order, such as both. Their log-probs are part of the score, at the cost of
            a forward pass for each, as in Hugging Face beam search that is made to write them. None
            scores the SID alone. With `normalize` "level" and "legal" it changes no score where all
            SIDs have one length.

    Returns:
        `RecommendOutput`. Ties go to the lower parent, then the lower code.

    Raises:
        ValueError: an encoder-decoder, bad shapes or types of input, `num_beams` < 1, an unknown
            `normalize` or `by`, a temperature that is not above 0, a vocabulary that lacks codes of
            the trie or names tokens that the model lacks, filters of another catalogue or number.
    """
    ids, mask = checked_inputs("recommend", input_ids, attention_mask)
    trie, vocab = as_catalogue(trie, vocab)
    if isinstance(vocab, TypedVocab):
        ids, mask, filters = without_begins(ids, mask, trie, vocab, filters)
    request = SearchRequest(
        trie=trie,
        vocab=vocab,
        batch=ids.shape[0],
        num_beams=num_beams,
        normalize=normalize,
        temperature=temperature,
        filters=filters,
        cuda_graph=cuda_graph,
        compile_layers=compile_layers,
        by=by,
        terminator=terminator,
    )
    return answer(model, ids, mask, request)


def answer(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, request: SearchRequest
) -> RecommendOutput:
    """`recommend` for inputs that are checked: ids int64 and mask bool [B, P].

    Raises:
        ValueError: an encoder-decoder, or a vocabulary that names tokens that the model lacks.
    """
    if request.ending:
        out = answer(model, ids, mask, request.terminated())
        levels, moved = request.trie.num_levels, len(request.ending)
        sids = (out.sids[..., :levels] - moved).clamp(min=-1)
        ranks = None if out.ranks is None else out.ranks[..., :levels]
        return replace(out, sids=sids, ranks=ranks)
    with request.trie.reading():
        return _answer(unwrapped(model), ids, mask, request)


def _answer(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, request: SearchRequest
) -> RecommendOutput:
    if model.config.is_encoder_decoder:
        raise ValueError(
            "recommend: model must be decoder-only "
            f"(got an encoder-decoder, {type(model).__name__})"
        )
    ids, shortest, longest = _checked_tokens(model, ids, mask)
    longest += request.trie.num_levels
    if _changes_rope(model, shortest, longest):
        return sequential_beams(model, ids, mask, request, PLAIN)
    attention = _tree_attention(model, longest)
    if attention is None:
        return sequential_beams(model, ids, mask, request)
    return _output(request, _search(model, attention, pad_right(ids, mask), request))


def _search(
    model: PreTrainedModel, attention: str, prompts: PaddedBatch, request: SearchRequest
) -> Beams:
    """The beams, by the fastest engine that the request asks for and the model allows."""
    state = ModelState.of(model)
    attempts = Attempts(state)

    def in_graph(compiled: bool) -> Beams | None:
        shape = GraphShape.of(model, prompts, request, compiled)
        return attempts.run(
            "cuda_graph", shape, lambda: search_in_graph(model, attention, shape, prompts, request)
        )

    def without_graph(compiled: bool) -> Beams:
        lm = TreeModel(model, attention, compiled)
        plan = SearchPlan.of(request, lm.head.streams)
        return search(Prompt.of(lm, prompts, request.tree_size), plan)

    cuda_graph, compile_layers = request.cuda_graph, request.compile_layers
    if cuda_graph and not can_record(model.device):
        give_up(state, "cuda_graph", f"the model must be on a CUDA device (got {model.device})")
        cuda_graph = False

    beams = None
    if cuda_graph and compile_layers:
        beams = in_graph(compiled=True)
    if beams is None and cuda_graph:
        beams = in_graph(compiled=False)
    if beams is None and compile_layers:
        beams = attempts.run("compile_layers", None, lambda: without_graph(compiled=True))
    if beams is None:
        beams = without_graph(compiled=False)
    attempts.remember()
    return beams


def _output(request: SearchRequest, beams: Beams) -> RecommendOutput:
    refuse_not_numbers(beams.not_numbers.nonzero()[:, 0].tolist())
    return RecommendOutput.of(
        request.trie, beams.sids, beams.nodes, beams.scores, request.filters, request.most_items,
        beams.ranks(),
    )  # fmt: skip


def _checked_tokens(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, int, int]:
    """ids [B, P] that the model can embed, padding included, and the number of tokens of the
    shortest and the longest prompt. Waits for the device once.

    Raises:
        ValueError: a token that the model lacks.
    """
    ids = ids.masked_fill(~mask, 0)
    lengths = mask.sum(1)
    facts = torch.stack([ids.min(), ids.max(), lengths.min(), lengths.max()])
    lowest, highest, shortest, longest = facts.tolist()
    num_tokens = getattr(model.get_input_embeddings(), "num_embeddings", highest + 1)
    if lowest < 0 or highest >= num_tokens:
        raise ValueError(
            f"recommend: input_ids must lie in 0 .. {num_tokens - 1}, the tokens of the model "
            f"(got {lowest} .. {highest})"
        )
    return ids, shortest, longest


def _changes_rope(model: PreTrainedModel, shortest: int, longest: int) -> bool:
    """Whether the model's RoPE gives sequences between these lengths other frequencies, so that no
    cache is right, which a warning says once per model."""
    kind, limit = rope_limit(model) or ("", longest)
    if longest <= limit or (kind == "longrope" and shortest > limit):
        return False
    give_up(
        ModelState.of(model),
        "the token tree",
        f"the model's {kind} RoPE changes with the length from {limit} tokens on; plain forward "
        "passes without a cache are used instead",
    )
    return True


def _tree_attention(model: PreTrainedModel, longest: int) -> str | None:
    """The attention by which SIDs are decoded as a token tree (see `capability`) where prompt and
    SID have at most so many tokens; None where they can't be, which a warning says once per
    model."""
    attention, window = capability(model).attention, sliding_window(model)
    if attention is None or window is None or longest <= window:
        return attention
    reason = f"prompt and SID are longer than the model's attention window of {window} tokens"
    give_up(
        ModelState.of(model),
        "the token tree",
        f"{reason}; Hugging Face beam search is used instead",
    )
    return None


class BeamTree:
    """Beams grown behind a prompt that is cached already. They stay in its cache, so that decoding
    can go on from one of them (`keep`); `Prompt.crop` drops them.

    Args:
        prompt: grown in place.
        trie, vocab, num_beams, normalize, temperature, filters: as in `recommend`.

    output: the beams as items
    beams: their tokens, and where these stand in the tree

    Raises:
        ValueError: `prompt` is no `Prompt`; and as `recommend`.
    """

    @torch.no_grad()
    def __init__(
        self,
        prompt: Prompt,
        trie: SidTrie,
        vocab: Vocabulary | None,
        num_beams: int = 50,
        normalize: str = "vocab",
        temperature: float = 1.0,
        filters: ItemFilter | None = None,
    ) -> None:
        check_kind("BeamTree: prompt", prompt, Prompt, "a Prompt")
        request = SearchRequest(
            trie=trie,
            vocab=vocab,
            batch=prompt.ids.shape[0],
            num_beams=num_beams,
            normalize=normalize,
            temperature=temperature,
            filters=filters,
        )
        with trie.reading():
            plan = SearchPlan.of(request, prompt.lm.head.streams)
            self.prompt, self.beams = prompt, search(prompt, plan)
            self.output = _output(request, self.beams)

    def keep(self, beams: torch.Tensor) -> None:
        """Make one beam of each request, int64 [B], the next part of the prompt, and drop the
        others. The token of its last level is not in the cache yet: feed that next. A SID that
        ended before leaves positions that hold no token."""
        rows = torch.arange(beams.shape[0], device=beams.device)
        is_token = self.output.sids[rows, beams, :-1] >= 0
        self.prompt.keep(
            self.beams.tokens[rows, beams], is_token, self.beams.tree_positions[rows, beams]
        )
