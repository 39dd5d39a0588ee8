"""Constrained beam search with beams as a token tree over one shared prompt."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from crs_fast.ops import TokenTensors, trie_step
from crs_fast.trie import ItemFilter, SidTrie, SidVocab

from .output import RecommendOutput
from .processor import token_tensors
from .prompt import Prompt, checked_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def recommend(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    trie: SidTrie,
    vocab: SidVocab | None = None,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
    cuda_graph: bool = False,
) -> RecommendOutput:
    """The best items after a prompt, by beam search over the catalogue's semantic IDs.

        cache = prefill(prompt)                                    # once a request
        for level: beams = trie_step(head(hidden), beams)          # legal children only
                   hidden = forward(one token a beam, seeing the prompt and its own ancestors)

    A model that can't hold a token tree (see `crs_fast.decode.capability`), or a prompt that with
    its SID is longer than the model's attention window, gets Hugging Face beam search with the
    same constraint.

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
        cuda_graph: replay the steps as a CUDA graph. Not written yet: ignored with a warning.

    Returns:
        `RecommendOutput`. Ties go to the lower parent, then the lower code.

    Raises:
        ValueError: bad shapes, `num_beams` < 1, or a vocabulary that lacks codes of the trie.
    """
    from .capability import capability, sliding_window
    from .fallback import generate_beams

    _check_beams(num_beams)
    if cuda_graph:
        warnings.warn("recommend: cuda_graph is ignored, the call runs eagerly", stacklevel=3)
    ids, mask = checked_inputs(input_ids, attention_mask)
    window = sliding_window(model)
    too_long = window is not None and int(mask.sum(1).max()) + trie.num_levels > window
    if too_long or capability(model).attention is None:
        return generate_beams(
            model, ids, mask, trie, vocab, num_beams, normalize, temperature, filters
        )
    return grow_beams(
        Prompt(model, ids, mask, room=num_beams * (trie.num_levels - 1)),
        trie,
        vocab,
        num_beams=num_beams,
        normalize=normalize,
        temperature=temperature,
        filters=filters,
    )


@torch.no_grad()
def grow_beams(
    prompt: Prompt,
    trie: SidTrie,
    vocab: SidVocab | None,
    *,
    num_beams: int = 50,
    normalize: str = "vocab",
    temperature: float = 1.0,
    filters: ItemFilter | None = None,
) -> RecommendOutput:
    """`recommend` after a prompt that is cached already; leaves the prompt as it was."""
    try:
        tree = BeamTree(prompt, trie, vocab, num_beams, normalize, temperature, filters)
        return tree.output
    finally:
        prompt.crop()


class BeamTree:
    """Beams as slots behind the prompt: each sees the prompt and its own ancestors, so nothing is
    reordered or copied when beams are.

    output: the beams
    tokens, slots int64 [B, M, L - 1]: of each beam, the LM tokens fed so far and where they stand
        behind the prompt; the last level's token is not fed
    """

    @torch.no_grad()
    def __init__(
        self,
        prompt: Prompt,
        trie: SidTrie,
        vocab: SidVocab | None,
        num_beams: int = 50,
        normalize: str = "vocab",
        temperature: float = 1.0,
        filters: ItemFilter | None = None,
    ) -> None:
        _check_beams(num_beams)
        self.prompt = prompt
        tokens = token_tensors(trie, vocab)
        bitmaps = None if filters is None else one_each(filters, prompt.ids.shape[0], trie).tensors
        batch, device = prompt.ids.shape[0], prompt.ids.device
        scores = torch.zeros(batch, 1, device=device)
        nodes = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        sids = nodes.new_empty(batch, 1, 0)
        self.slots, self.tokens = sids, sids
        hidden = prompt.hidden  # [B * M, H]
        for level in range(trie.num_levels):
            logits, columns = _scored(prompt, hidden, tokens, level, normalize)
            scores, nodes, parents, codes = trie_step(
                logits, scores, nodes, trie.tensors, columns, num_beams, normalize, temperature,
                bitmaps,
            )  # fmt: skip
            sids = torch.cat([_of_parents(sids, parents), codes[..., None]], 2)  # [B, M, l + 1]
            if level + 1 < trie.num_levels:
                # A beam that waits or is dead feeds any token: nothing reads what comes of it.
                fed = tokens.column[level][codes.clamp(min=0)].clamp(min=0)
                hidden = self._grow(fed, parents, level).flatten(0, 1)
        self.slots, self.tokens = (
            _of_parents(self.slots, parents),
            _of_parents(self.tokens, parents),
        )
        self.output = RecommendOutput.of(trie, sids, scores, filters)

    def keep(self, beams: torch.Tensor) -> None:
        """Make one beam of each request, int64 [B], the next columns of the prompt, and drop the
        rest. Its last level's token is not among them: feed that next. A SID that ended before
        leaves columns that hold no token."""
        rows = torch.arange(beams.shape[0], device=beams.device)
        fed = self.output.sids[rows, beams, :-1] >= 0
        self.prompt.keep(self.tokens[rows, beams], fed, self.slots[rows, beams])

    def _grow(self, ids: torch.Tensor, parents: torch.Tensor, depth: int) -> torch.Tensor:
        """One more token a beam, ids and parents [B, M]: hidden states [B, M, H]."""
        from .tree_view import TreeState

        prompt = self.prompt
        own = depth * ids.shape[1] + torch.arange(ids.shape[1], device=ids.device)
        own = own.expand(ids.shape)[..., None]
        self.slots = torch.cat([_of_parents(self.slots, parents), own], 2)
        self.tokens = torch.cat([_of_parents(self.tokens, parents), ids[..., None]], 2)
        positions = (prompt.mask.sum(1, keepdim=True) + depth).expand(ids.shape)
        return prompt.grow(ids, positions, TreeState(self.slots, prompt.length, prompt.visible))


def _scored(
    prompt: Prompt, hidden: torch.Tensor, tokens: TokenTensors, level: int, normalize: str
) -> tuple[torch.Tensor, TokenTensors]:
    """Logits of hidden [R, H] and where codes stand among them: the whole vocabulary [R, V] only
    where its sum is asked for, else the level's codes [R, C]."""
    if normalize == "vocab":
        return prompt.lm.head(hidden), tokens
    column = tokens.column[level]
    there = torch.where(column >= 0, torch.arange(column.numel(), device=column.device), -1)
    # Each level's row alike: only this level's is read.
    few = tokens._replace(
        column=there.expand(tokens.column.shape[0], -1),
        denied=tokens.denied[:0],
        terminator=-1,
        num_columns=column.numel(),
    )
    return prompt.lm.head(hidden, column.clamp(min=0)), few


def _of_parents(values: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """values [B, M, n] of each beam's parent [B, M']: [B, M', n]."""
    return values.gather(1, parents[..., None].expand(-1, -1, values.shape[2]))


def one_each(filters: ItemFilter, batch: int, trie: SidTrie) -> ItemFilter:
    """One filter a request, on the trie's device."""
    if filters.num_requests == 1 and batch > 1:
        filters = ItemFilter.stack([filters] * batch)
    return filters.over(trie)


def _check_beams(num_beams: int) -> None:
    if num_beams < 1:
        raise ValueError(f"recommend: num_beams must be at least 1 (got {num_beams})")
