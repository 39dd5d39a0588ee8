"""The tokens that say what a response is: its mode, and where its words begin.

A mode is "chat" or "rec", or a finer way of one of them, such as "rec:explain".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crs_fast.trie import Vocabulary
from crs_fast.trie.sid_vocab import add_special_tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTROL = ("<RESP>", "<MODE=CHAT>", "<MODE=REC>")
CHAT = "chat"
REC = "rec"
MODES = (CHAT, REC)


def split_mode(mode: str) -> tuple[str, str]:
    """ "rec:explain" -> "rec" and "explain"; the intent of "rec" is ""."""
    coarse, _, intent = mode.partition(":")
    return coarse, intent


def likelier_mode(rec_probability: float) -> str:
    """REC above 0.5, else CHAT."""
    return REC if rec_probability > 0.5 else CHAT


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Token ids of `<RESP>`, `<MODE=CHAT>` and `<MODE=REC>`, and of finer modes by their names:
    `fine["rec:explain"]` is `<MODE=REC:explain>`."""

    resp: int
    chat: int
    rec: int
    fine: dict[str, int] = field(default_factory=dict)

    @classmethod
    def extend(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        fine: Sequence[str] = (),
    ) -> ControlTokens:
        """Add the control tokens to a tokenizer, and rows for them to a model (both in place).

        Raises:
            ValueError: a finer mode that is neither "chat:<intent>" nor "rec:<intent>".
        """
        parts = [split_mode(mode) for mode in fine]
        if odd := [m for m, (c, i) in zip(fine, parts, strict=True) if c not in MODES or not i]:
            raise ValueError(
                "ControlTokens.extend: fine must hold names 'chat:<intent>' or 'rec:<intent>' "
                f"(got {odd[0]!r})"
            )
        names = [f"<MODE={coarse.upper()}:{intent}>" for coarse, intent in parts]
        resp, chat, rec, *rest = add_special_tokens(tokenizer, model, (*CONTROL, *names))
        return cls(resp, chat, rec, dict(zip(fine, rest, strict=True)))

    @property
    def modes(self) -> dict[str, int]:
        """Every mode's token by its name, "chat" and "rec" first."""
        return {CHAT: self.chat, REC: self.rec, **self.fine}

    @property
    def tokens(self) -> list[int]:
        """All control tokens."""
        return [self.resp, *self.modes.values()]

    def rec_probability(self, logits: torch.Tensor) -> torch.Tensor:
        """How likely REC is in all its ways together, against CHAT in all of its.

        Args:
            logits: [n, M], of the tokens of `modes`.

        Returns:
            float32 [n].
        """
        ways = [at for at, mode in enumerate(self.modes) if split_mode(mode)[0] == REC]
        return logits.float().softmax(1)[:, ways].sum(1)

    def likeliest_intents(self, logits: torch.Tensor) -> list[str | None]:
        """The likeliest intent of each row, under CHAT and REC together; ties go to the first by
        name. None where there are no finer modes.

        Args:
            logits: [n, M], of the tokens of `modes`.
        """
        if not self.fine:
            return [None] * len(logits)
        ways: dict[str, list[int]] = {}
        for at, mode in enumerate(self.modes):
            if intent := split_mode(mode)[1]:
                ways.setdefault(intent, []).append(at)
        names = sorted(ways)
        chances = logits.float().softmax(1)
        sums = chances.new_zeros(len(chances), len(names))  # [n, I]
        for column, name in enumerate(names):
            sums[:, column] = chances[:, ways[name]].sum(1)
        return [names[i] for i in sums.argmax(1).tolist()]


def new_tokens(vocab: Vocabulary, control: ControlTokens) -> list[int]:
    """Ids of every token added for SIDs and modes, sorted."""
    frame = [token for token in (vocab.begin, vocab.end) if token is not None]
    return sorted({*vocab.code_tokens().tolist(), *frame, *control.tokens})
