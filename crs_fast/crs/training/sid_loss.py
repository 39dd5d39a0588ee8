"""Two changes of the loss on semantic IDs: a weight, and label smoothing among sibling codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

IGNORE = -100


class SidLoss:
    """The loss of each label of a batch, changed at the codes of items.

        siblings(code) = the codes that follow the same prefix in some SID, itself included
        loss(code) = weight * ((1 - smoothing) * nll(code) + smoothing * mean of nll(siblings))
        loss(any other label) = nll(label)

    Codes are told apart by where they stand: after the begin token, along the SID of an item.

    Args:
        sids: the tokens of each item, the begin token first and the end token left out.
        weight: factor of the loss on codes.
        smoothing: share of the probability that the codes below one prefix have in common.
    """

    def __init__(self, sids: Iterable[Sequence[int]], weight: float, smoothing: float) -> None:
        self.weight, self.smoothing = weight, smoothing
        following: dict[tuple[int, ...], set[int]] = {}
        for sid in sids:
            for depth in range(1, len(sid)):
                following.setdefault(tuple(sid[:depth]), set()).add(sid[depth])
        self._next = {prefix: sorted(codes) for prefix, codes in following.items()}
        self._begins = {prefix[0] for prefix in following if len(prefix) == 1}

    def note(self, batch: dict[str, torch.Tensor]) -> None:
        """Add `code_at`, int64 [m], the codes' places among the n labels of a batch; `siblings`,
        int64 [m, K], padded by -1; and `code_first`, int64 [n], the places of all labels, codes
        first. Call it where the batch is made, on the CPU."""
        labels = batch["labels"]
        labels = labels[labels != IGNORE]
        places, siblings = self._codes(labels.tolist())
        batch["code_at"] = torch.tensor(places, dtype=torch.int64)
        is_text = torch.ones(labels.shape, dtype=torch.bool).index_fill(0, batch["code_at"], False)
        batch["code_first"] = torch.cat([batch["code_at"], is_text.nonzero()[:, 0]])
        widest = max(map(len, siblings), default=1)
        padded = [[*codes, *[-1] * (widest - len(codes))] for codes in siblings]
        batch["siblings"] = torch.tensor(padded, dtype=torch.int64).view(len(places), widest)

    def _codes(self, labels: list[int]) -> tuple[list[int], list[list[int]]]:
        """Where codes stand in the labels, and the siblings of each."""
        places, siblings = [], []
        prefix: tuple[int, ...] = ()
        for place, label in enumerate(labels):
            codes = self._next.get(prefix, [])
            if label in codes:
                places.append(place)
                siblings.append(codes)
                prefix += (label,)
            else:
                prefix = (label,) if label in self._begins else ()
        return places, siblings

    def __call__(
        self, logits: torch.Tensor, labels: torch.Tensor, batch: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Losses in nats, [n], of float logits [n, V] at labels [n] of a batch that `note` saw."""
        losses = F.cross_entropy(logits, labels, reduction="none")
        at, siblings = batch["code_at"], batch["siblings"]
        changed = self._of_codes(logits[at], labels[at], losses[at], siblings)
        return losses.index_copy(0, at, changed)

    def of_first(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        losses: torch.Tensor,
        siblings: torch.Tensor,
    ) -> torch.Tensor:
        """Losses [n] of labels [n] whose first ones are codes with siblings [m, K]. `losses` [n]
        are their cross-entropies, from float logits [n, V]."""
        m = len(siblings)
        return torch.cat([self._of_codes(logits[:m], labels[:m], losses[:m], siblings), losses[m:]])

    def _of_codes(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        losses: torch.Tensor,
        siblings: torch.Tensor,
    ) -> torch.Tensor:
        if not self.smoothing:
            return self.weight * losses
        normalizers = losses[:, None] + logits.gather(1, labels[:, None])
        of_siblings = normalizers - logits.gather(1, siblings.clamp(min=0))  # [m, K]
        is_one = siblings >= 0
        mean = of_siblings.masked_fill(~is_one, 0).sum(1) / is_one.sum(1)
        return self.weight * ((1 - self.smoothing) * losses + self.smoothing * mean)
