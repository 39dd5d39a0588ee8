"""The trie as a logits processor: the drop-in for `model.generate`."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from crs_fast.ops import LEAVE, trie_mask, trie_mask_
from crs_fast.ops.host import check_integer
from crs_fast.ops.trie.nodes import allowed, continues, unpack
from crs_fast.trie import Grammar, ItemFilter, SidTrie, Vocabulary
from crs_fast.trie.sid_trie import check_sid_trie
from crs_fast.trie.terminated import Terminator, checked_terminator, with_terminator
from crs_fast.trie.typed import as_catalogue

from .begin_watch import BeginWatch
from .begins import Begins
from .dead_beams import check_live_beams, dead_beams

if TYPE_CHECKING:
    from transformers import LogitsProcessor
else:

    class LogitsProcessor:
        """Stands for the class of this name of transformers, which is loaded with the first
        processor, so that this file can be imported without it."""


# What to do with a row that has left the catalogue.
ON_ILLEGAL = ("raise", "free")
# Generation rules that Hugging Face applies before a caller's processors, and that forbid tokens.
_RULES = (
    "no_repeat_ngram_size, bad_words_ids, suppress_tokens, min_new_tokens, forced_eos_token_id or "
    "prefix_allowed_tokens_fn"
)


class SidLogitsProcessor(LogitsProcessor):
    """Lets `model.generate` write only semantic IDs (SIDs) that exist.

    With `vocab.begin` set, constrains after each unclosed `<BOI>` and frees after `<EOI>`. In free
    text, code tokens and `<EOI>` are masked, so that it holds no fake item, and so is `<BOI>` where
    the row's filter allows nothing. With `prompt_length` given, a SID begins right after the
    prompt, and `<BOI>`, where there is one, opens the later ones. After a whole SID comes
    `terminator`, else `end`, else end-of-sequence; its log-prob counts, as Hugging Face counts it.
    The mask is read from `input_ids` alone (see `Grammar`), so beam search, sampling, greedy search
    and rows in different states all work. Costs one host synchronisation for each step, to report
    the errors below.

    Other rules of the call can leave a row no token: `generate` would then write an item that does
    not exist, so it is an error here. To keep items out, use `filters`, which never leads to a dead
    end. Beam sampling fills up with dead beams where fewer continuations are drawn than there are
    beams. They are skipped while live beams can take their places, and are an error at the last
    code if it is not sure that all of them will.

    A `generate` call in which no row ever held `<BOI>` was not constrained, and a warning says so
    once.

    Args:
        trie: the catalogue, or one for each begin token (see `typed_catalogue`).
        vocab: which token stands for which code; None means codes are token ids.
        filters: one filter per request; row r of R takes filter r // (R / requests).
        prompt_length: length of the (padded) prompt in tokens, the same for every row.
        eos_token_id: forced after a whole SID where `vocab.end` is None; default `vocab.eos`.
        terminator: the token forced after a whole SID in place of these, such as a line break, or
            several in order. Text goes on after them only where the last one is `vocab.end`.
        on_illegal: what becomes of a row whose open SID is no allowed item's prefix, or that needs
            an end token where none is set. "raise" (default: in a `generate` call it is the
            caller's mistake) refuses the whole batch. "free" is for servers: the row's scores stay
            as they are, a warning says so, and the other rows go on. A row whose legal tokens all
            have a score of -inf or NaN then chooses among them evenly.
        inplace: write into `scores` and return it, which spares a new tensor, nearly all of the
            cost. `generate` looks at its own scores afterwards only with `output_logits` (except
            in beam search), so it is right in every other call.

    Raises:
        ValueError: neither `vocab.begin` nor `prompt_length` says where the SID begins, the
            vocabulary lacks codes of the trie, the terminator stands for one of them, or an unknown
            `on_illegal`. While decoding: a trie on another device than the tokens; with "raise", a
            row whose open SID is no prefix in the catalogue (or of no allowed item), or that needs
            an end token where none is set, or whose legal tokens' scores are all -inf, or NaN;
            fewer live beams than must be returned.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> SidLogitsProcessor:
        # A real subclass from the first instance on.
        if not TYPE_CHECKING and LogitsProcessor in SidLogitsProcessor.__bases__:
            import transformers

            SidLogitsProcessor.__bases__ = (transformers.LogitsProcessor,)
        return super().__new__(cls)

    def __init__(
        self,
        trie: SidTrie | Mapping[int, SidTrie],
        vocab: Vocabulary | Mapping[int, Vocabulary] | None = None,
        filters: ItemFilter | None = None,
        prompt_length: int | None = None,
        eos_token_id: int | None = None,
        *,
        terminator: Terminator | None = None,
        on_illegal: str = "raise",
        inplace: bool = False,
    ) -> None:
        trie, vocab = as_catalogue(trie, vocab)
        check_sid_trie("SidLogitsProcessor", trie)
        vocab = trie.vocabulary(vocab, "SidLogitsProcessor")
        if filters is not None and not isinstance(filters, ItemFilter):
            raise ValueError(
                f"SidLogitsProcessor: filters must be an ItemFilter (got {type(filters).__name__})"
            )
        if prompt_length is not None:
            check_integer("SidLogitsProcessor: prompt_length", prompt_length, 0)
        if prompt_length is None and not vocab.begins:
            raise ValueError(
                "SidLogitsProcessor: prompt_length must be given where vocab.begin is None: "
                "it says where the SID begins (got None)"
            )
        if on_illegal not in ON_ILLEGAL:
            raise ValueError(
                f"SidLogitsProcessor: on_illegal must be one of {ON_ILLEGAL} (got {on_illegal!r})"
            )
        self.on_illegal, self.inplace, self.prompt_length = on_illegal, inplace, prompt_length
        last, text_follows = vocab.terminator(eos_token_id), vocab.text_follows
        if terminator is not None:
            *ending, last = checked_terminator("SidLogitsProcessor", trie, vocab, terminator)
            text_follows = last == vocab.end
            # The tokens before the last one are codes of each SID.
            trie, vocab = with_terminator(trie, vocab, ending)
        tokens = vocab.tensors(trie.device)
        self.tokens = tokens._replace(
            terminator=last, num_columns=max(tokens.num_columns, last + 1)
        )
        self.filters = None if filters is None else filters.over(trie).tensors
        self._empty = None if self.filters is None else ~self.filters.words.bool().any(1)
        self.trie, self.vocab = trie, vocab
        self.grammar = Grammar(
            trie, vocab, prompt_length, vocab.begins, self.tokens.terminator, text_follows
        )
        self._begins = Begins(trie, vocab)
        # Filters that allow nothing keep `begin` out of the text.
        never_begins = self._empty is not None and bool(self._empty.all())
        self._watch: BeginWatch | None = None
        if prompt_length is None and vocab.begins and not never_begins:
            self._watch = BeginWatch(vocab.begins)
            weakref.finalize(self, self._watch.report)  # the last call, at the latest at exit

    @property
    def supports_continuous_batching(self) -> NoReturn:  # type: ignore[override]
        """What transformers asks a processor before `generate_batch` begins.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "SidLogitsProcessor: continuous batching (generate_batch) must not be used with it "
            "(got a request for it): there a processor sees the last token of each row alone. Use "
            "generate, crs_fast.recommend or crs_fast.integrations"
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores` [R, V] with -inf wherever a token may not follow `input_ids` [R, T]; a new
        tensor unless `inplace`."""
        masked = self.mask(input_ids, scores)
        if self._watch is not None:
            self._watch.look(input_ids)
        return masked

    def mask(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        *,
        lengths: torch.Tensor | None = None,
        prompt_lengths: torch.Tensor | None = None,
        filter_of_row: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The same for a loop of your own, whose rows differ.

        Args:
            input_ids: int64 [R, T].
            scores: [R, V].
            lengths: tokens of each row, int64 [R]; what follows them is not read. None means T.
            prompt_lengths: where the first SID begins in each row, int64 [R], in place of
                `prompt_length`; -1 where only `<BOI>` opens one.
            filter_of_row: which of `filters` each row takes, int64 [R], -1 for none, so that rows
                share filters in any order and number.

        Raises:
            ValueError: as the class says, and tensors of another dtype, shape or device.
        """
        self._check_inputs(input_ids, lengths, prompt_lengths)
        with self.trie.reading():
            return self._masked(input_ids, scores, lengths, prompt_lengths, filter_of_row)

    def _masked(
        self,
        input_ids: torch.Tensor,
        scores: torch.Tensor,
        lengths: torch.Tensor | None,
        prompt_lengths: torch.Tensor | None,
        filter_of_row: torch.Tensor | None,
    ) -> torch.Tensor:
        nodes, inside = self.grammar.read(input_ids, lengths, prompt_lengths)
        which = self._which_filter(nodes, filter_of_row)
        at, trie = nodes.clamp(min=0), self.trie.tensors
        illegal = inside & (nodes < 0)
        illegal |= inside & (nodes > 0) & ~allowed(trie, self.filters, which, at)
        stuck = torch.zeros_like(illegal)
        if self.tokens.terminator < 0:
            stuck = inside & ~illegal & ~continues(trie, self.filters, which, at)
        nodes = nodes.masked_fill(illegal | stuck, LEAVE)
        run = trie_mask_ if self.inplace else trie_mask
        masked = run(scores, nodes, trie, self.tokens, self.filters, filter_of_row)
        self._begins.forbid_(masked, nodes, self.filters, which, self._empty)
        hopeless = ~self._highest(masked, nodes).isfinite()
        if bool((illegal | stuck | hopeless).any()):
            if self.on_illegal == "free":
                self._set_free(masked, nodes, illegal | stuck, hopeless & (nodes >= 0), which)
            else:
                may_be_dead = illegal
                if lengths is not None or prompt_lengths is not None:
                    may_be_dead = torch.zeros_like(illegal)  # `generate` alone has dead beams
                dead = dead_beams(self.grammar, input_ids, masked, may_be_dead)
                self._check(masked, illegal & ~dead, stuck, hopeless & ~illegal)
                check_live_beams(self.grammar, input_ids, masked, dead)
                # Their sums are -inf already. One token is left so that no softmax makes NaN.
                masked[dead] = -torch.inf
                masked[dead, self.tokens.num_columns - 1] = 0.0
        return masked

    def _check_inputs(self, input_ids: torch.Tensor, *lengths: torch.Tensor | None) -> None:
        """
        Raises:
            ValueError: tokens that are not [R, T], or on another device than the trie, or lengths
                that do not fit them.
        """
        if (
            not isinstance(input_ids, torch.Tensor)
            or input_ids.dtype not in (torch.int64, torch.int32)
            or input_ids.layout != torch.strided
        ):
            is_tensor = isinstance(input_ids, torch.Tensor)
            kind = str(input_ids.dtype) if is_tensor else type(input_ids).__name__
            raise ValueError(
                f"SidLogitsProcessor: input_ids must be a tensor int64 or int32 [R, T] (got {kind})"
            )
        if input_ids.ndim != 2:
            raise ValueError(
                "SidLogitsProcessor: input_ids must be the whole rows [R, T] (got "
                f"{tuple(input_ids.shape)}, as continuous batching gives: it is not supported)"
            )
        if input_ids.device != self.trie.device:
            raise ValueError(
                "SidLogitsProcessor: trie must be on the device of input_ids, trie.to(device) with "
                f"{str(input_ids.device)!r} (got {str(self.trie.device)!r})"
            )
        for name, given in zip(("lengths", "prompt_lengths"), lengths, strict=True):
            if given is not None and (
                given.dtype != torch.int64
                or given.shape != input_ids.shape[:1]
                or given.device != input_ids.device
            ):
                raise ValueError(
                    f"SidLogitsProcessor: {name} must be int64 [{input_ids.shape[0]}] on the "
                    f"device of input_ids (got {given.dtype} {tuple(given.shape)} on "
                    f"{given.device})"
                )
        tokens = lengths[0]
        # A GPU's values are not waited for: tokens past the end are read as the last one there.
        if tokens is not None and tokens.numel() and not tokens.is_cuda:
            least, most = torch.stack(tokens.aminmax()).tolist()
            if not 0 <= least <= most <= input_ids.shape[1]:
                raise ValueError(
                    f"SidLogitsProcessor: lengths must lie in 0 .. {input_ids.shape[1]} "
                    f"(got {least} .. {most})"
                )

    def _which_filter(
        self, nodes: torch.Tensor, filter_of_row: torch.Tensor | None
    ) -> torch.Tensor:
        """The filter of each row, int64 [R], -1 for none; 0 where there are no filters."""
        if filter_of_row is not None:
            return filter_of_row
        requests = 1 if self.filters is None else self.filters.words.shape[0]
        if requests == 0 or nodes.shape[0] % requests:
            raise ValueError(
                f"SidLogitsProcessor: filters must divide the {nodes.shape[0]} rows evenly "
                f"(got {requests})"
            )
        rows = torch.arange(nodes.shape[0], device=nodes.device)
        return rows // max(1, nodes.shape[0] // requests)

    def _highest(self, masked: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        """The highest score of each row, [R]; NaN where a legal one is NaN. With "free", 0 for rows
        that stand in no SID: what they hold is not looked at."""
        column, terminator = self.tokens.column, self.tokens.terminator
        outside, raises = nodes < 0, self.on_illegal == "raise"
        # Inside SIDs only the level's codes and the terminator may follow, which are few.
        is_small = column.shape[1] * 4 < masked.shape[1]
        if masked.is_cuda or not is_small or (raises and bool(outside.all())):
            highest = masked.amax(1)
        else:
            depth = unpack(self.trie.tensors, nodes.clamp(min=0))[0].clamp(max=column.shape[0] - 1)
            highest = masked.gather(1, column[depth].clamp(min=0)).amax(1)
            if terminator >= 0:
                highest = torch.maximum(highest, masked[:, terminator])
            if raises:
                for row in outside.nonzero()[:, 0].tolist():
                    highest[row] = masked[row].amax()
        return highest if raises else highest.masked_fill(outside, 0.0)

    def _set_free(
        self,
        masked: torch.Tensor,
        nodes: torch.Tensor,
        illegal: torch.Tensor,
        hopeless: torch.Tensor,
        which: torch.Tensor,
    ) -> None:
        """Say which rows are left alone, and make the legal tokens of hopeless ones equal, in
        place."""
        if bool(illegal.any()):
            warnings.warn(
                "SidLogitsProcessor: rows are left without a constraint, because their open SID is "
                "no prefix of an allowed item's, or because no terminator is set",
                stacklevel=4,
            )
        rows = hopeless.nonzero()[:, 0]
        if rows.numel():
            masked[rows] = trie_mask(
                torch.zeros_like(masked[rows]), nodes[rows], self.trie.tensors, self.tokens,
                self.filters, None if self.filters is None else which[rows],
            )  # fmt: skip

    def _check(
        self,
        masked: torch.Tensor,
        illegal: torch.Tensor,
        stuck: torch.Tensor,
        hopeless: torch.Tensor,
    ) -> None:
        """
        Raises:
            ValueError: of the first row that can't go on.
        """
        problems = illegal | stuck | hopeless
        if not bool(problems.any()):
            return
        row = int(problems.nonzero()[0])
        if bool(illegal[row]):
            raise ValueError(
                f"SidLogitsProcessor: the open SID of row {row} must be the prefix of an allowed "
                "item's (got an illegal prefix). Where beam sampling beside guidance_scale or the "
                "like has drawn it, use do_sample=False or custom_generate=crs_fast.beam_search"
            )
        if bool(stuck[row]):
            raise ValueError(
                f"SidLogitsProcessor: row {row} stands after a whole SID, so vocab.end, vocab.eos "
                "or eos_token_id must be set (got none), or generation must stop there"
            )
        highest = masked[row].amax()
        if float(highest) != float("-inf"):
            raise ValueError(
                f"SidLogitsProcessor: the scores of row {row} must be numbers "
                f"(got {float(highest)} for a legal token)"
            )
        raise ValueError(
            f"SidLogitsProcessor: row {row} must have a legal token with a finite score (got -inf "
            f"for all of them). Processors that run before forbid them, such as {_RULES}: switch "
            "these off for this call, and keep items out by filters"
        )
