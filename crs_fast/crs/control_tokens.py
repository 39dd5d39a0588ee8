"""The control tokens of a response: its mode, and `<RESP>`, where its words begin.

A mode is "chat" or "rec", or one of these with an intent, such as "rec:explain".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crs_fast._arguments import all_of_kind, check_kind, is_integer
from crs_fast.trie import Vocabulary
from crs_fast.trie.sid_vocab import add_special_tokens, check_tokenizer, token_id

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTROL = ("<RESP>", "<MODE=CHAT>", "<MODE=REC>")
CHAT = "chat"
REC = "rec"
MODES = (CHAT, REC)


def split_mode(mode: str) -> tuple[str, str]:
    """Split "rec:explain" into "rec" and "explain"; the intent of "rec" is ""."""
    coarse, _, intent = mode.partition(":")
    return coarse, intent


def likelier_mode(rec_probability: float) -> str:
    """REC if its probability is above 0.5, else CHAT."""
    return REC if rec_probability > 0.5 else CHAT


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """The token ids of `<RESP>`, `<MODE=CHAT>` and `<MODE=REC>`, and of finer modes by name:
    `fine["rec:explain"]` is the id of `<MODE=REC:explain>`.

    Raises:
        ValueError: what is no token id, one token for two of them, or a finer mode that is neither
            "chat:<intent>" nor "rec:<intent>".
    """

    resp: int
    chat: int
    rec: int
    fine: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kind("ControlTokens: fine", self.fine, Mapping, "a mapping of modes to token ids")
        _check_fine("ControlTokens", self.fine)
        named = [("resp", self.resp), ("chat", self.chat), ("rec", self.rec)]
        named += [(f"fine[{mode!r}]", token) for mode, token in self.fine.items()]
        names: dict[int, str] = {}
        for name, token in named:
            if not is_integer(token, 0):
                raise ValueError(f"ControlTokens: {name} must be a token id (got {token!r})")
            if token in names:
                raise ValueError(
                    f"ControlTokens: {name} must be a token of its own (got {token}, which is "
                    f"{names[token]} too)"
                )
            names[token] = name

    @classmethod
    def extend(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel | None = None,
        fine: Sequence[str] = (),
    ) -> ControlTokens:
        """Add the control tokens to a tokenizer, and their embedding rows to a model, both in
        place.

        Raises:
            ValueError: a finer mode is neither "chat:<intent>" nor "rec:<intent>"; no tokenizer or
                no model.
        """
        check_tokenizer("ControlTokens.extend", tokenizer, model)
        fine = all_of_kind("ControlTokens.extend: fine", fine, str, "names of modes")
        _check_fine("ControlTokens.extend", fine)
        parts = [split_mode(mode) for mode in fine]
        names = [f"<MODE={coarse.upper()}:{intent}>" for coarse, intent in parts]
        resp, chat, rec, *rest = add_special_tokens(tokenizer, model, (*CONTROL, *names))
        return cls(resp, chat, rec, dict(zip(fine, rest, strict=True)))

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ControlTokens:
        """The control tokens that a tokenizer has already.

        Raises:
            ValueError: it lacks one, or is no tokenizer.
        """
        check_tokenizer("ControlTokens.of", tokenizer)
        ids = {name: token_id(tokenizer, name) for name in CONTROL}
        lacking = [name for name, number in ids.items() if number is None]
        if lacking:
            raise ValueError(
                f"ControlTokens.of: tokenizer must have the tokens {', '.join(CONTROL)} "
                f"(got none for {lacking[0]}); `extend` adds them before training"
            )
        resp, chat, rec = (number for number in ids.values() if number is not None)
        return cls(resp, chat, rec)

    @property
    def modes(self) -> dict[str, int]:
        """The token id of every mode by its name; "chat" and "rec" come first."""
        return {CHAT: self.chat, REC: self.rec, **self.fine}

    @property
    def tokens(self) -> list[int]:
        """The ids of all control tokens."""
        return [self.resp, *self.modes.values()]

    def rec_probability(self, logits: torch.Tensor) -> torch.Tensor:
        """The probability of REC against CHAT, each with all its intents together.

        Args:
            logits: [n, M], the logits of the tokens in `modes`.

        Returns:
            float32 [n].
        """
        rec_modes = [at for at, mode in enumerate(self.modes) if split_mode(mode)[0] == REC]
        return logits.float().softmax(1)[:, rec_modes].sum(1)

    def likeliest_intents(self, logits: torch.Tensor) -> list[str | None]:
        """The likeliest intent per context, with CHAT and REC taken together; ties go to the first
        name in alphabetical order. All are None if there are no finer modes.

        Args:
            logits: [n, M], the logits of the tokens in `modes`.
        """
        if not self.fine:
            return [None] * len(logits)
        modes_of: dict[str, list[int]] = {}
        for at, mode in enumerate(self.modes):
            if intent := split_mode(mode)[1]:
                modes_of.setdefault(intent, []).append(at)
        intents = sorted(modes_of)
        probabilities = logits.float().softmax(1)
        sums = probabilities.new_zeros(len(probabilities), len(intents))  # [n, I]
        for i, intent in enumerate(intents):
            sums[:, i] = probabilities[:, modes_of[intent]].sum(1)
        return [intents[i] for i in sums.argmax(1).tolist()]


def _check_fine(op: str, fine: Iterable[str]) -> None:
    for mode in fine:
        coarse, intent = split_mode(mode) if isinstance(mode, str) else ("", "")
        if coarse not in MODES or not intent:
            raise ValueError(
                f"{op}: fine must hold names 'chat:<intent>' or 'rec:<intent>' (got {mode!r})"
            )


def new_tokens(vocab: Vocabulary, control: ControlTokens) -> list[int]:
    """The ids of all tokens that were added for SIDs and modes, sorted."""
    frame = [*vocab.begins, *([] if vocab.end is None else [vocab.end])]
    return sorted({*vocab.code_tokens().tolist(), *frame, *control.tokens})
