"""Dialogues as token sequences (GCRS, arXiv 2605.21987, section 3; SIDs stand for items).

    User: hi, something like <BOI><a_1><b_7><EOI>?
    Assistant: sure, any year?
    User: the nineties
    Assistant:<MODE=REC><BOI><a_1><b_2><EOI><RESP> you may like <BOI><a_1><b_2><EOI><eos>

Everything up to the last `Assistant:` is the context; what follows is the response. Only the
response carries a mode and a target. Past turns are plain utterances, so a context only grows, and
the next turn can reuse the cache of this context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from crs_fast.crs.control_tokens import CHAT, REC, ControlTokens, split_mode
from crs_fast.crs.data.dialogue import RECOMMENDER, SEEKER, Dialogue, Turn
from crs_fast.crs.text_tokens import TextTokens
from crs_fast.trie import SidTrie, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABELS = {SEEKER: "User:", RECOMMENDER: "Assistant:"}


def trie_sids(trie: SidTrie, vocab: Vocabulary | None = None) -> dict[str, list[int]]:
    """The codes of every item of a trie without padding, in the trie's item order. In a trie of
    titles each title ends in `vocab.end`, which is left out too."""
    sids = trie.sids()
    if vocab is not None and vocab.end is not None:
        sids = sids.masked_fill(vocab.encode(sids) == vocab.end, -1)
    ids = trie.item_ids.tolist()
    return {str(i): [c for c in row if c >= 0] for i, row in zip(ids, sids.tolist(), strict=True)}


@dataclass(frozen=True, slots=True)
class Instance:
    """One training instance. The loss is taken on `response`. `item_id` is the target, or None for
    a reply without items."""

    turn_index: int
    item_id: str | None
    context: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which parts a response has. With all three it is GCRS. With `words` alone the model is an
    ordinary language model that names items inside its text; with `item` alone it recommends
    without words."""

    mode: bool = True
    item: bool = True
    words: bool = True


GCRS = Layout()


def _line(text: str) -> str:
    # With a line break inside an utterance, a user could write turns of the other role.
    return text.replace("\r", " ").replace("\n", " ")


def _items_of(codes: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], list[str]]:
    """The items of each SID, in the catalogue's order."""
    items: dict[tuple[int, ...], list[str]] = {}
    for item_id, tokens in codes.items():
        items.setdefault(tokens, []).append(item_id)
    return items


class SequenceBuilder:
    """Converts turns to token ids, and token ids back to text and items.

    Args:
        tokenizer: a tokenizer that has the tokens of `vocab` and `control`. Typed text never
            becomes one of them (see `TextTokens`), so nobody can type an item or a mode.
        vocab: the tokens of codes; `begin` and `end` must be set.
        control: ids of the control tokens.
        sids: the codes of every item of the catalogue; -1, which pads a shorter SID, is left out.
        max_length: the most tokens that context and response may have together.
        layout: the parts of a response.

    Raises:
        ValueError: `vocab` has no begin or no end, the tokenizer has no end-of-sequence token, or
            `max_length` is too small for a SID and a reply.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab: Vocabulary,
        control: ControlTokens,
        sids: Mapping[str, Sequence[int]],
        max_length: int = 768,
        layout: Layout = GCRS,
    ) -> None:
        if not vocab.begins or vocab.end is None:
            raise ValueError("SequenceBuilder: vocab must have begin and end (got None)")
        eos = tokenizer.eos_token_id if vocab.eos is None else vocab.eos
        if eos is None:
            raise ValueError("SequenceBuilder: tokenizer must have an eos_token (got None)")
        self.tokenizer, self.vocab, self.control = tokenizer, vocab, control
        self.max_length, self.layout = max_length, layout
        self.eos: int = int(eos)
        self.begins, self.end = frozenset(vocab.begins), vocab.end
        # What stands before the codes of a SID; a begin token that is a code is one of them.
        self._before_codes = [] if vocab.opens_with_code else list(vocab.begins)
        self._sid_tokens = {*self.begins, self.end, *vocab.code_tokens().tolist()}
        self._codes = self._code_tokens(sids)
        self._items = _items_of(self._codes)
        self._may_name: Callable[[str], bool] | None = None
        reserved = {self.eos, *control.tokens, *self._sid_tokens}
        self._pieces = TextTokens(tokenizer, reserved)
        self._labels = {role: self.text(label) for role, label in LABELS.items()}
        self._newline = self.text("\n")
        shortest = len(self.prompt) + vocab.num_levels + 8
        if max_length < shortest:
            raise ValueError(
                f"SequenceBuilder: max_length must be at least {shortest} (got {max_length})"
            )

    def _code_tokens(self, sids: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        levels = self.vocab.num_levels
        if any(len(codes) > levels for codes in sids.values()):
            raise ValueError(f"SequenceBuilder: sids must have at most {levels} levels")
        rows = [[*map(int, codes), *[-1] * (levels - len(codes))] for codes in sids.values()]
        if not rows:
            return {}
        tokens = self.vocab.encode(rows).tolist()
        return {
            item_id: tuple(token for token in row if token >= 0)
            for item_id, row in zip(sids, tokens, strict=True)
        }

    def changed(
        self, add: Mapping[str, Sequence[int]], remove: Iterable[str] = ()
    ) -> SequenceBuilder:
        """The same builder without some items and with others, whose codes are in `add`."""
        other = copy.copy(self)
        gone = set(remove)
        kept = {item_id: codes for item_id, codes in self._codes.items() if item_id not in gone}
        other._codes = {**kept, **self._code_tokens(add)}
        other._items = _items_of(other._codes)
        return other

    def naming(self, may_name: Callable[[str], bool]) -> SequenceBuilder:
        """The same builder for the reply to one request: of items that share a SID, it names the
        first one for which `may_name(item_id)` is true, and none if there is none."""
        other = copy.copy(self)
        other._may_name = may_name
        return other

    def with_layout(self, layout: Layout) -> SequenceBuilder:
        """The same builder for another layout."""
        other = copy.copy(self)
        other.layout = layout
        return other

    @property
    def begin(self) -> int:
        """The token that opens a SID, of a catalogue of one type."""
        (begin,) = self.begins
        return begin

    @property
    def prompt(self) -> list[int]:
        """The token ids of `Assistant:`, with which every context ends."""
        return self._labels[RECOMMENDER]

    def text(self, text: str) -> list[int]:
        """Token ids of plain text. Special tokens typed into it (`<BOI>`, `<a_1>`, `<RESP>`, the
        end-of-sequence token) stay text."""
        return self._texts([text])[0]

    def _texts(self, texts: list[str]) -> list[list[int]]:
        """`text` of many, in one call of the tokenizer: a call costs more than a line."""
        return self._pieces.encode(texts)

    def item(self, item_id: str) -> list[int]:
        """`[begin, codes..., end]`.

        Raises:
            ValueError: the item is not in the catalogue.
        """
        if item_id not in self._codes:
            raise ValueError(
                f"SequenceBuilder.item: item_id must be in the catalogue (got {item_id!r})"
            )
        return [*self._before_codes, *self._codes[item_id], self.end]

    def item_of(self, tokens: Sequence[int]) -> str | None:
        """The item whose `[begin, codes..., end]` these tokens are, or None. If several items share
        their codes, it is the first of them that may be named (see `naming`)."""
        whole = len(tokens) > 2 and tokens[0] in self.begins and tokens[-1] == self.end
        codes = tokens[len(self._before_codes) : -1]
        items = self._items.get(tuple(codes), []) if whole else []
        if len(items) > 1 and self._may_name is not None:
            items = list(filter(self._may_name, items))
        return items[0] if items else None

    def utterance(self, turn: Turn) -> list[int]:
        """The turn's text after one space, with SIDs in place of the mentions whose position in the
        text is known. Mentions of items outside the catalogue stay text; line breaks become
        spaces."""
        return self._utterances([turn])[0]

    def _utterances(self, turns: Sequence[Turn]) -> list[list[int]]:
        """`utterance` of many turns, with one call of the tokenizer."""
        parts = [self._parts(turn) for turn in turns]
        lines = iter(self._texts([p for of_turn in parts for p in of_turn if isinstance(p, str)]))
        return [
            list(chain.from_iterable(next(lines) if isinstance(p, str) else p for p in of_turn))
            for of_turn in parts
        ]

    def _parts(self, turn: Turn) -> list[str | list[int]]:
        """The parts of an utterance: text, the tokens of a SID, text, and so on; it begins and ends
        with text."""
        parts: list[str | list[int]] = []
        text = " "
        for piece, item_id in turn.pieces():
            if item_id is None or item_id not in self._codes:
                text += piece
                continue
            parts += [_line(text), self.item(item_id)]
            text = ""
        return [*parts, _line(text)]

    def turns(self, turns: Sequence[Turn]) -> list[list[int]]:
        """The token ids of each past turn: role label, utterance, line break."""
        return list(map(self._past, turns, self._utterances(turns)))

    def _past(self, turn: Turn, utterance: list[int]) -> list[int]:
        return [*self._labels[turn.role], *utterance, *self._newline]

    def context(self, turns: Sequence[Turn], reserve: int = 0) -> list[int]:
        """All of `turns`, then the prompt `Assistant:`. The left end is cut off, never inside a
        SID, so that `reserve` more tokens fit into `max_length`.

        Raises:
            ValueError: `reserve` leaves no room for the prompt.
        """
        return self.contexts(turns, [len(turns)], reserve)[0]

    def contexts(
        self, turns: Sequence[Turn], ends: Sequence[int], reserve: int = 0
    ) -> list[list[int]]:
        """`context(turns[:end], reserve)` for each end; every turn is tokenized once."""
        budget = self.max_length - reserve
        if budget < len(self.prompt):
            raise ValueError(
                f"SequenceBuilder.context: reserve must be at most "
                f"{self.max_length - len(self.prompt)} (got {reserve})"
            )
        past = self.turns(turns[: max(ends, default=0)])
        return [self._cut_left([*self._last(past[:end]), *self.prompt], budget) for end in ends]

    def _last(self, past: Sequence[list[int]]) -> list[int]:
        """The end of the past, at least all that a context can hold: a long dialogue is not put
        together anew for every turn. An item is far shorter than what is kept, so that a cut in
        the part that a context holds still sees whether it is inside one."""
        kept: list[list[int]] = []
        length = 0
        for tokens in reversed(past):
            kept.append(tokens)
            length += len(tokens)
            if length >= 2 * self.max_length:
                break
        return list(chain.from_iterable(reversed(kept)))

    def prefix(self, mode: str, item_id: str | None = None) -> list[int]:
        """The token ids with which a response begins.

        This is `<MODE=CHAT><RESP>` or `<MODE=REC><BOI>SID<EOI><RESP>`; or, for mode "rec" without
        an item, `<MODE=REC><BOI>`, from where an item is searched. Parts that the layout lacks are
        left out; without the item part the search starts in the words. A finer mode takes the place
        of its coarse one.

        Raises:
            ValueError: the mode is unknown, or an item is given with mode "chat".
        """
        modes, (coarse, _) = self.control.modes, split_mode(mode)
        if mode not in modes or (coarse == CHAT and item_id is not None):
            raise ValueError(
                "SequenceBuilder.prefix: mode must be 'chat' (without an item) or 'rec' "
                f"(got mode={mode!r}, item_id={item_id!r})"
            )
        layout = self.layout
        opening = [modes[mode]] if layout.mode else []
        words = [self.control.resp] if layout.words and (layout.mode or layout.item) else []
        if coarse == REC and item_id is None:
            return [*opening, *([] if layout.item else words), *self._before_codes]
        item = self.item(item_id) if layout.item and item_id is not None else []
        return [*opening, *item, *words]

    def response(self, turn: Turn, item_id: str | None = None) -> list[int]:
        """A recommender turn as the model should write it, with its mode and its target. The mode
        is the finer one of the turn's intent if there is a token for it. A response that does not
        fit into `max_length` is cut off at its right end."""
        return self._response(turn, self.utterance(turn), item_id)

    def _response(self, turn: Turn, utterance: list[int], item_id: str | None) -> list[int]:
        mode = CHAT if item_id is None else REC
        fine = f"{mode}:{turn.intent}"
        prefix = self.prefix(fine if fine in self.control.fine else mode, item_id)
        budget = self.max_length - len(self.prompt)
        words = utterance if self.layout.words else []
        return self._cut_right([*prefix, *words, self.eos], budget)

    def instances(self, dialogue: Dialogue) -> list[Instance]:
        """The training instances of a dialogue: one per distinct item of each recommender turn
        (also of items whose position in the text is unknown), and one per recommender turn without
        items. A layout without the item has one instance per turn; a layout without words has none
        for turns that recommend nothing."""
        out: list[Instance] = []
        past: list[list[int]] = []
        utterances = self._utterances(dialogue.turns)
        for index, (turn, utterance) in enumerate(zip(dialogue.turns, utterances, strict=True)):
            if turn.role == RECOMMENDER:
                targets: list[str | None] = [*turn.item_ids()]
                if not self.layout.item:
                    targets = targets[:1]
                if self.layout.words:
                    targets = targets or [None]
                before = [*self._last(past), *self.prompt] if targets else []
                for item_id in targets:
                    response = self._response(turn, utterance, item_id)
                    context = self._cut_left(before, self.max_length - len(response))
                    out.append(Instance(index, item_id, tuple(context), tuple(response)))
            past.append(self._past(turn, utterance))
        return out

    def _cut_left(self, tokens: list[int], budget: int) -> list[int]:
        start = max(len(tokens) - budget, 0)
        while start < len(tokens) and self._inside(tokens, start):
            start += 1
        return tokens[start:]

    def _cut_right(self, tokens: list[int], budget: int) -> list[int]:
        stop = min(budget, len(tokens))
        while 0 < stop < len(tokens) and self._inside(tokens, stop):
            stop -= 1
        return tokens[:stop]

    def _inside(self, tokens: list[int], at: int) -> bool:
        """Whether a cut before `tokens[at]` would split an item, one that begins further left and
        has not ended there."""
        for token in reversed(tokens[:at]):
            if token == self.end or token in self.begins:
                return token != self.end
        return False

    def decode(self, token_ids: Sequence[int], titles: Mapping[str, str]) -> str:
        """The text of these tokens, with a title in place of each whole SID. Special tokens and
        fragments of SIDs that are no item are left out. White space at both ends is stripped.

        Args:
            token_ids: the tokens that the model wrote after `<RESP>`.
            titles: the text to show for each item; an item without an entry is shown by its id.
        """
        return self.decode_part(token_ids, titles).strip()

    def decode_part(self, token_ids: Sequence[int], titles: Mapping[str, str]) -> str:
        """`decode` of a part of a reply, with the white space at its ends."""
        parts = [
            tokens if item_id is None else titles.get(item_id, item_id)
            for tokens, item_id in self._segments(token_ids)
        ]
        return self._pieces.decode(parts)

    def sid_fragments(self, token_ids: Sequence[int]) -> tuple[list[str], int]:
        """The items that whole SIDs name, in order, and the number of runs of SID tokens (begin,
        end, codes) that are no item."""
        items: list[str] = []
        invalid = 0
        for tokens, item_id in self._segments(token_ids):
            if item_id is not None:
                items.append(item_id)
            elif not tokens:
                invalid += 1
        return items, invalid

    def _segments(self, token_ids: Sequence[int]) -> Iterator[tuple[list[int], str | None]]:
        """Yield (tokens, None) for text, (tokens, item id) for an item, and ([], None) for a run of
        SID tokens that is no item."""
        tokens = [int(token) for token in token_ids]
        at = 0
        while at < len(tokens):
            stop = self._item_end(tokens, at)
            if stop is not None:
                yield tokens[at:stop], self.item_of(tokens[at:stop])
                at = stop
                continue
            stop = at + 1
            if tokens[at] not in self._sid_tokens:
                while stop < len(tokens) and tokens[stop] not in self._sid_tokens:
                    stop += 1
                yield tokens[at:stop], None
            else:
                while stop < len(tokens) and tokens[stop] in self._sid_tokens - self.begins:
                    stop += 1
                    if tokens[stop - 1] == self.end:
                        break
                yield [], None
            at = stop

    def _item_end(self, tokens: list[int], at: int) -> int | None:
        """The end of the item that begins at `at`, or None if none begins there. The tokens of a
        title are also ordinary words, so only the whole run shows that it is an item."""
        if tokens[at] not in self.begins or self.end not in tokens[at:]:
            return None
        stop = tokens.index(self.end, at) + 1
        return stop if self.item_of(tokens[at:stop]) is not None else None
