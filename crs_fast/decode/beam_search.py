"""Token-tree beams as a decoding loop of `model.generate`."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch

from crs_fast.trie import ItemFilter, SidTrie, Vocabulary
from crs_fast.trie.terminated import Terminator

from .fallback import LOST, BeamScores
from .lm.prompt import checked_inputs
from .recommend import answer
from .search_request import SearchRequest

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

# What `generate` hands over that changes nothing here: position ids are compared with the mask, and
# the cache is fresh and of a kind that is not used.
_EXPECTED = {"attention_mask", "cache_position", "logits_to_keep", "past_key_values",
             "position_ids", "use_cache"}  # fmt: skip


@torch.no_grad()
def beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    synced_gpus: bool = False,
    trie: SidTrie | None = None,
    vocab: Vocabulary | None = None,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
    cuda_graph: bool = False,
    compile_layers: bool = False,
    terminator: Terminator | None = None,
    **model_kwargs: Any,
) -> Any:
    """`model.generate(**inputs, custom_generate=crs_fast.beam_search, num_beams=50,
    num_return_sequences=50, trie=trie, vocab=vocab)`: the beams of `recommend`, as `generate`
    returns them.

    The SID begins right after the prompt. Sampling that the model's own generation config asks for
    (Qwen-Instruct's does) is left out: beams are what was called for. A call that asks for what a
    token tree can't do gets Hugging Face beam search with the same constraint, and a warning says
    so: logits processors (penalties, banned words, minimum lengths), sampling, stopping criteria
    beyond length and end-of-sequence, a cache that holds something, per-step outputs, position ids
    of the caller's own, model arguments the tree doesn't know, and whatever replaces the model's
    `prepare_inputs_for_generation` (PEFT's prompt, prefix and P-tuning).

    Args:
        trie, vocab, normalize, temperature, filters, cuda_graph, compile_layers, terminator: as in
            `recommend`; the generation config's own temperature is ignored, as by Hugging Face beam
            search.

    Returns:
        int64 [B * R, P + L], best first, or with `return_dict_in_generate` Hugging Face's
        `GenerateBeamDecoderOnlyOutput`: with `beam_indices` [B * R, L], which beam of the step
        before each code continues (-1 behind a SID's end, None where beams could not be traced),
        and with `output_scores` `sequences_scores` [B * R], log-prob sums over
        (SID length) ** `length_penalty`. A terminator's T tokens follow each SID and count in its
        length: [B * R, P + L + T]. Ragged SIDs end in padding; invalid rows (fewer
        items than beams) are padding after the prompt, their scores -inf.

    Raises:
        ValueError: no model, no trie, no input_ids, a maximum length that leaves no room for a
            SID, a streamer, or beam groups.
    """
    for name, value, attribute, must_be in (
        ("model", model, "generation_config", "a model of transformers"),
        ("input_ids", input_ids, "shape", "a tensor [B, P]"),
        ("generation_config", generation_config, "num_return_sequences", "a GenerationConfig"),
    ):
        if not hasattr(value, attribute):
            raise ValueError(f"beam_search: {name} must be {must_be} (got {type(value).__name__})")
    if trie is None:
        raise ValueError("beam_search: trie must be given (got None)")
    if model_kwargs.pop("streamer", None) is not None:
        raise ValueError(
            "beam_search: streamer must be None: which beam is best is known at the end only "
            "(got a streamer)"
        )
    if (getattr(generation_config, "num_beam_groups", None) or 1) > 1:
        raise ValueError(
            "beam_search: num_beam_groups must be 1: diverse beam search has no token tree "
            f"(got {generation_config.num_beam_groups})"
        )
    length = input_ids.shape[1]
    if length == 0:
        raise ValueError(
            "beam_search: input_ids must be given, beside inputs_embeds too "
            "(got inputs_embeds alone)"
        )
    if generation_config.do_sample and model.generation_config.do_sample:
        logits_processor, generation_config = _without_sampling(logits_processor, generation_config)
    num_beams = generation_config.num_beams
    # How often `generate` has repeated each prompt.
    copies = max(num_beams, generation_config.num_return_sequences)
    prompts = input_ids[::copies]
    request = SearchRequest(
        trie=trie,
        vocab=vocab,
        batch=prompts.shape[0],
        num_beams=num_beams,
        normalize=normalize,
        temperature=temperature,
        filters=filters,
        cuda_graph=cuda_graph,
        compile_layers=compile_layers,
        terminator=terminator,
    )
    needed = trie.num_levels + len(request.ending)
    if generation_config.max_length is not None and generation_config.max_length < length + needed:
        raise ValueError(
            f"beam_search: max_new_tokens must be at least {needed}, the trie's {trie.num_levels} "
            f"levels{' and the terminator' if request.ending else ''} "
            f"(got {generation_config.max_length - length})"
        )
    request = request.terminated()
    reason = _beyond_the_tree(
        model, logits_processor, stopping_criteria, generation_config, model_kwargs
    )
    ranks: torch.Tensor | None
    if reason:
        warnings.warn(
            f"crs_fast.beam_search can't grow a tree with {reason}; Hugging Face beam search with "
            "the same constraint is used instead",
            stacklevel=2,
        )
        tokens, scores, ranks = _hugging_face(
            model, input_ids, logits_processor, stopping_criteria, generation_config, request,
            model_kwargs,
        )  # fmt: skip
    else:
        mask = model_kwargs.get("attention_mask")
        prompts, prompt_mask = checked_inputs(
            "beam_search", prompts, None if mask is None else mask[::copies]
        )
        out = answer(model, prompts, prompt_mask, request)
        tokens, scores, ranks = request.vocabulary.encode(out.sids), out.scores, out.ranks
    return _ranked(prompts, tokens.to(input_ids.device), scores, ranks, generation_config)


def _without_sampling(
    logits_processor: Any, config: GenerationConfig
) -> tuple[list[Any], GenerationConfig]:
    """The processors without those of sampling, and the config with it turned off."""
    kept = [p for p in logits_processor if not type(p).__name__.endswith("Warper")]
    config = copy.deepcopy(config)
    config.do_sample = False
    return kept, config


def _ranked(
    prompts: torch.Tensor,
    tokens: torch.Tensor,
    scores: torch.Tensor,
    ranks: torch.Tensor | None,
    config: GenerationConfig,
) -> Any:
    """What `generate` returns: prompts int64 [B, P] and their best beams' tokens int64 [B, M, L].

    Args:
        tokens: -1 where a SID has ended.
        scores: sums of log-probs, float [B, M].
        ranks: int64 [B, M, L], as in `RecommendOutput`, or None.
    """
    returned = config.num_return_sequences
    # A score is divided by the length of its own SID, so beams of unequal length may change places.
    scores = scores / (tokens >= 0).sum(2).clamp(min=1) ** config.length_penalty
    order = scores.sort(dim=1, descending=True, stable=True).indices[:, :returned]
    scores = scores.gather(1, order).flatten()
    places = order[..., None].expand(-1, -1, tokens.shape[2])
    tokens = tokens.gather(1, places).flatten(0, 1)
    indices = None
    if ranks is not None:
        # Hugging Face counts beams through the whole batch.
        first = torch.arange(ranks.shape[0], device=ranks.device)[:, None, None] * config.num_beams
        indices = (ranks + first).gather(1, places).flatten(0, 1).masked_fill(tokens < 0, -1)
    tokens = tokens.masked_fill(tokens < 0, _pad(config))
    sequences = torch.cat([prompts.repeat_interleave(returned, 0), tokens], 1)
    if not config.return_dict_in_generate:
        return sequences
    from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,  # type: ignore[arg-type]
        sequences_scores=scores if config.output_scores else None,
        beam_indices=indices,
    )


def _beyond_the_tree(
    model: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    config: Any,
    model_kwargs: dict[str, Any],
) -> str:
    """What of this call a token tree can't do, in words; "" where there is nothing."""
    from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

    if config.do_sample:
        return "do_sample=True"
    if "prepare_inputs_for_generation" in vars(model):
        return "a prepare_inputs_for_generation of its own (soft prompts of PEFT)"
    position_ids = model_kwargs.get("position_ids")
    if position_ids is not None and not _are_counted(
        position_ids, model_kwargs.get("attention_mask")
    ):
        return "position ids of the caller's own"
    if logits_processor:
        return f"logits processors ({', '.join(type(p).__name__ for p in logits_processor)})"
    others = [
        c for c in stopping_criteria if not isinstance(c, (EosTokenCriteria, MaxLengthCriteria))
    ]
    if others:
        return f"stopping criteria ({', '.join(type(c).__name__ for c in others)})"
    for name in ("output_attentions", "output_hidden_states", "output_logits"):
        if getattr(config, name, False):
            return f"{name}=True"
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length() > 0:
        return "a cache that holds something"
    extra = sorted(k for k, v in model_kwargs.items() if v is not None and k not in _EXPECTED)
    return f"model arguments ({', '.join(extra)})" if extra else ""


def _are_counted(position_ids: torch.Tensor, mask: torch.Tensor | None) -> bool:
    """Whether position ids [..., P] count the tokens of each row, which is what the tree does."""
    if mask is None:
        mask = torch.ones_like(position_ids)
    if position_ids.shape != mask.shape:
        return False
    return bool((((mask.cumsum(1) - 1) == position_ids) | (mask == 0)).all())


def _hugging_face(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    request: SearchRequest,
    model_kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens int64 [B, M, L] (-1 where a SID has ended), sums of log-probs [B, M] and ranks int64
    [B, M, L] (see `RecommendOutput`) by Hugging Face's own loop, with the constraint after
    penalties and the caller's processors and before top-k and its like, which would otherwise cut
    legal tokens away."""
    from transformers import LogitsProcessorList, StoppingCriteriaList
    from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

    length, trie = input_ids.shape[1], request.trie
    filler = request.vocabulary.unused_token(trie.level_codes)
    config = copy.deepcopy(generation_config)
    config.max_length = length + trie.num_levels
    config.return_dict_in_generate = config.output_scores = True
    config.length_penalty, config.num_return_sequences = 0.0, request.num_beams
    config._eos_token_tensor = None  # a SID ends with its last level, nothing else ends a row
    constraint = BeamScores(request, length, filler)
    names = [type(processor).__name__ for processor in logits_processor]
    warpers = (i for i, name in enumerate(names) if name.endswith(("Warper", "Normalization")))
    first_warper = next(warpers, len(names))
    processors = [
        *logits_processor[:first_warper], constraint, *logits_processor[first_warper:]
    ]  # fmt: skip
    others = [
        c for c in stopping_criteria if not isinstance(c, (EosTokenCriteria, MaxLengthCriteria))
    ]
    out = model._beam_search(
        input_ids,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(config.max_length), *others]),
        generation_config=config,
        **model_kwargs,
    )
    shape = request.batch, request.num_beams
    tokens = out.sequences[:, length:].view(*shape, -1)
    if tokens.shape[2] == 0:  # no beam was ever real
        tokens = tokens.new_full((*shape, trie.num_levels), filler)
    scores = out.sequences_scores.view(shape)
    # Beams that were never real, and those of a filter that allows no item at all.
    lost = ~(scores >= LOST) | (tokens[..., 0] == filler)
    tokens = tokens.masked_fill((tokens == filler) | lost[..., None], -1)
    ranks = out.beam_indices % request.num_beams  # [B * M, at most L]
    missing = tokens.shape[2] - ranks.shape[1]
    ranks = torch.nn.functional.pad(ranks, (0, missing)).view(tokens.shape)
    return tokens, scores.masked_fill(lost, float("-inf")), ranks


def _pad(config: Any) -> int:
    """The token that fills the end of a row: padding, else end-of-sequence, else -1."""
    for token in (config._pad_token_tensor, config._eos_token_tensor):
        if token is not None:
            return int(token.reshape(-1)[0])
    return -1
