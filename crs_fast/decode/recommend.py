"""Constrained beam search with beams as a token tree over one shared prompt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from crs_fast.trie import ItemFilter, SidTrie, Vocabulary

from .lm.prompt import Prompt, checked_inputs, pad_right
from .lm.tree_model import TreeModel
from .output import RecommendOutput
from .search import Beams, SearchPlan, SearchRequest, search

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: SidTrie,
    vocab: Vocabulary | None = None,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
    cuda_graph: bool = False,
    compile_layers: bool = False,
) -> RecommendOutput:
    """The best items after a prompt, by beam search over the catalogue's semantic IDs.

        cache = prefill(prompt)                                    # once a request
        for level: beams = trie_step(head(hidden), beams)          # legal children only
                   hidden = forward(one token a beam, seeing the prompt and its own ancestors)

    A model that can't hold a token tree (see `lm.capability`), or a prompt that with
    its SID is longer than the model's attention window, gets Hugging Face beam search with the
    same constraint, without `cuda_graph` and `compile_layers`; a warning says so once.

    Args:
        model: any decoder-only `AutoModelForCausalLM`, PEFT adapters included.
        input_ids: int64 [B, P]; the SID begins right after it (end it with `<BOI>`).
        attention_mask: [B, P], 1 at real tokens; None means all ones. Left or right padding.
        trie: the catalogue, on the model's device.
        vocab: which token stands for which code; None means codes are token ids.
        num_beams: M.
        normalize: "vocab" scores by log-softmax over the whole vocabulary (Hugging Face's beams in
            its order), "level" over the level's codes, "legal" over the legal children; the last
            two compute only the level's rows of the LM head.
        temperature: divides the logits.
        filters: one filter a request (or one for all).
        cuda_graph: record prefill and steps as a CUDA graph on the first call of a shape (batch,
            prompt rounded up, beams, ...) and replay it from then on, also after another
            `TrieSlot.load` (see `crs_fast.decode.graph`).
        compile_layers: run the model's decoder layers compiled by `torch.compile`, which takes
            seconds on the first calls (see `lm.regions`). Where a model allows one of
            these two not, the call does without and a warning says so once.

    Returns:
        `RecommendOutput`. Ties go to the lower parent, then the lower code.

    Raises:
        ValueError: an encoder-decoder, bad shapes or types of input, `num_beams` < 1, an unknown
            `normalize`, a temperature that is not above 0, a vocabulary that lacks codes of the
            trie or names tokens that the model lacks, filters of another catalogue or number.
    """
    from .attempt import attempt
    from .fallback import generate_beams
    from .graph import replayed

    ids, mask = checked_inputs("recommend", input_ids, attention_mask)
    request = SearchRequest(trie, vocab, ids.shape[0], num_beams, normalize, temperature, filters)
    if model.config.is_encoder_decoder:
        raise ValueError(
            "recommend: model must be decoder-only "
            f"(got an encoder-decoder, {type(model).__name__})"
        )
    attention = _tree_attention(model, mask, trie.num_levels)
    if attention is None:
        return generate_beams(model, ids, mask, request)

    def eagerly(compiled: bool = False) -> Beams:
        lm = TreeModel(model, attention, compiled)
        return search(Prompt.of(lm, *pad_right(ids, mask), request.room), SearchPlan.of(request))

    way: Callable[[], Beams] = eagerly
    if compile_layers:
        run = partial(eagerly, compiled=True)
        way = partial(attempt, model, "compile_layers", None, run, way)
    if cuda_graph:
        way = partial(replayed, model, ids, mask, request, way)
    if cuda_graph and compile_layers:
        way = partial(replayed, model, ids, mask, request, way, compiled=True)
    return request.items(way())


def _tree_attention(model: PreTrainedModel, mask: torch.Tensor, levels: int) -> str | None:
    """`capability`'s attention for prompts of this mask bool [B, P]; None, with one warning a
    model, where SIDs behind them can't be a token tree."""
    from .attempt import give_up
    from .lm.capability import capability, sliding_window

    attention, window = capability(model).attention, sliding_window(model)
    if attention is None or window is None or int(mask.sum(1).max()) + levels <= window:
        return attention
    reason = f"prompt and SID are longer than the model's attention window of {window} tokens"
    give_up(model, "the token tree", f"{reason}; Hugging Face beam search is used instead")
    return None


class BeamTree:
    """Beams grown behind a prompt that is cached already. They stay in its cache, so that decoding
    can go on from one of them (`keep`); `Prompt.crop` drops them.

    Args:
        prompt: grown in place.
        trie, vocab, num_beams, normalize, temperature, filters: as in `recommend`.

    output: the beams as items
    beams: where they stand in the tree
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
        batch = prompt.ids.shape[0]
        request = SearchRequest(trie, vocab, batch, num_beams, normalize, temperature, filters)
        self.prompt, self.beams = prompt, search(prompt, SearchPlan.of(request))
        self.output = request.items(self.beams)

    def keep(self, beams: torch.Tensor) -> None:
        """Make one beam of each request, int64 [B], the next columns of the prompt, and drop the
        rest. Its last level's token is not among them: feed that next. A SID that ended before
        leaves columns that hold no token."""
        rows = torch.arange(beams.shape[0], device=beams.device)
        fed = self.output.sids[rows, beams, :-1] >= 0
        tokens, slots = self.beams.tokens[rows, beams], self.beams.slots[rows, beams]
        self.prompt.keep(tokens, fed, slots)
