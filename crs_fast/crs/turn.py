"""One recommender turn for a batch of contexts, on one prefill: mode, item, words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from crs_fast.crs.bundle import Bundle
from crs_fast.decode import Prompt, RecommendOutput, SidLogitsProcessor, grow_beams, left_pad
from crs_fast.trie import ItemFilter


class TurnBatch:
    """Contexts ending in `Assistant:`, prefilled once; every question about the turn that follows
    is answered from that cache.

    Args:
        bundle: model, tokenizer, trie.
        contexts: token ids of each context, see `SequenceBuilder.context`.
    """

    @torch.no_grad()
    def __init__(self, bundle: Bundle, contexts: Sequence[Sequence[int]]) -> None:
        self.bundle = bundle
        self.pad = bundle.builder.eos
        ids, mask = self._left_padded(contexts)
        self.prompt = Prompt(bundle.model, ids, mask)
        control = bundle.control
        pair = self.prompt.logits(ids.new_tensor([control.chat, control.rec])).float()
        self.rec_probability = pair.softmax(1)[:, 1]  # [B]: of REC against CHAT

    def _left_padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = left_pad(rows, self.pad)
        device = self.bundle.model.device
        return ids.to(device), mask.to(device)

    @torch.no_grad()
    def rank(
        self,
        rows: Sequence[int] | None = None,
        *,
        num_beams: int = 50,
        normalize: str = "vocab",
        filters: ItemFilter | None = None,
    ) -> RecommendOutput:
        """Items for some rows (default all), as if their mode were REC."""
        everyone = list(range(self.prompt.ids.shape[0]))
        prompt = self.prompt.select(everyone if rows is None else list(rows))
        opening = self.bundle.builder.prefix("rec")
        length = prompt.length
        try:
            prompt.append(prompt.ids.new_tensor(opening).expand(prompt.ids.shape[0], -1))
            return grow_beams(
                prompt,
                self.bundle.trie.to(prompt.ids.device),
                self.bundle.vocab,
                num_beams=num_beams,
                normalize=normalize,
                filters=filters,
            )
        finally:
            prompt.crop(length)

    @torch.no_grad()
    def write(
        self,
        prefixes: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
    ) -> list[list[int]]:
        """The words after each row's prefix (`SequenceBuilder.prefix`), without end-of-sequence.

        SIDs in the text are constrained to the catalogue. One that is open when `max_new_tokens`
        is reached is finished first, so a reply never ends inside an item. Spends the prefill:
        call it last.
        """
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        bundle, prompt = self.bundle, self.prompt
        ids, mask = self._left_padded(prefixes)
        ids = torch.cat([prompt.ids, ids], 1)
        mask = torch.cat([prompt.mask, mask], 1)
        start, control = ids.shape[1], bundle.control
        sampling: dict[str, Any] = (
            dict(do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
            if do_sample
            else dict(do_sample=False)
        )
        config = GenerationConfig(
            max_new_tokens=max_new_tokens + bundle.vocab.num_levels + 1,
            eos_token_id=bundle.builder.eos,
            pad_token_id=self.pad,
            suppress_tokens=[control.resp, control.chat, control.rec],
            **sampling,
        )
        out = bundle.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask.long(),
            past_key_values=prompt.cache,
            generation_config=config,
            logits_processor=LogitsProcessorList(
                [SidLogitsProcessor(bundle.trie.to(ids.device), bundle.vocab)]
            ),
            stopping_criteria=StoppingCriteriaList(
                [_LongEnough(start + max_new_tokens, bundle.builder.begin, bundle.builder.end)]
            ),
        )
        return [self._until_eos(row) for row in out[:, start:].tolist()]

    def _until_eos(self, tokens: list[int]) -> list[int]:
        eos = self.bundle.builder.eos
        return tokens[: tokens.index(eos)] if eos in tokens else tokens


class _LongEnough:
    """Stops a row at `length` columns, or as soon after as its open SID is closed."""

    def __init__(self, length: int, begin: int, end: int) -> None:
        self.length, self.begin, self.end = length, begin, end

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] < self.length:
            return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        position = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        last_begin = ((input_ids == self.begin) * position).amax(1)
        last_end = ((input_ids == self.end) * position).amax(1)
        return last_begin <= last_end
