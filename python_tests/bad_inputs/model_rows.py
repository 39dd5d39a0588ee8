"""The rows of what `decode` offers beside `recommend`, and of the other vocabularies."""

from __future__ import annotations

import functools
from typing import Any

import torch

from crs_fast import beam_search
from crs_fast.decode import (
    BeamTree,
    Prompt,
    TreeModel,
    capability,
    left_pad,
    refuse_not_numbers,
    right_pad,
    sequential,
    sliding_window,
    stand_in,
    unwrapped,
)
from crs_fast.trie import (
    ItemFilter,
    SidTrie,
    SidVocab,
    TitleVocab,
    TokenIds,
    TypedVocab,
    typed_catalogue,
    vocabulary_from_dict,
)
from python_tests.crs.tiny_system import system

from .ops_rows import HUGE, INF, NAN, OTHER, TRIE, VOCABULARY
from .public_rows import model
from .table import ERROR, SAME, Call, Change, filled, longer, nothing_along, scalars, shorter

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@functools.cache
def headless() -> Any:
    return model().get_decoder()


def vocabulary_calls() -> list[Call]:
    films = SidTrie.from_sids([[0, 1], [1, 0]], ["a", "b"])
    books = SidTrie.from_sids([[0, 0], [1, 1]], ["c", "d"])
    tokens = SidVocab([[11, 12], [13, 14]], end=15)
    special = scalars(-1, 1.5, "x", True, HUGE, [3])

    def typed(**a: Any) -> Any:
        made = typed_catalogue(**a)
        return [made.trie.sids(), made.vocab.to_dict()["token_ids"]]

    def from_dict(description: Any) -> Any:
        return vocabulary_from_dict(description).to_dict()["token_ids"]

    def titles(**a: Any) -> Any:
        return TitleVocab.extend_for(**a).num_levels

    def extended(**a: Any) -> Any:
        return SidVocab.extend(**a).sizes

    tokenizer = system()[1]
    tokenizers = {"tokenizer": scalars(None, "x", 3), "model": scalars("x", 3)}
    return [
        Call("TypedVocab", lambda **a: list(TypedVocab(**a).begins),
             lambda: dict(token_ids=[[1, 2], [3, 4]], end=6, eos=7),
             {"token_ids": scalars(None, 3, "x", [], [[]], [[-1]], [[1, 1]], [["a"]], [[0.5]],
                                   [None]),
              "end": special, "eos": special}),
        Call("typed_catalogue", typed, lambda: dict(tries={1: films, 2: books}, vocab=tokens), {
            "tries": [*scalars(None, "x", 3, {}, {1: None}, {1: "x"}, [1]),
                      Change("a trie", ERROR, lambda t: t[1]),
                      Change("begin token -1", ERROR, lambda t: {-1: t[1]}),
                      Change("begin token '1'", ERROR, lambda t: {"1": t[1]}),
                      Change("begin token 1.5", ERROR, lambda t: {1.5: t[1]}),
                      Change("begin token True", ERROR, lambda t: {True: t[1]}),
                      Change("begin token 2^40", ERROR, lambda t: {1 << 40: t[1]}),
                      Change("a begin token of a code", ERROR, lambda t: {11: t[1]}),
                      Change("one catalogue twice", ERROR, lambda t: {1: t[1], 2: t[1]})],
            "vocab": [*scalars(None, "x", 3, {}, {1: None, 2: None}),
                      Change("of one type", ERROR, lambda v: {1: v}),
                      Change("without an end", ERROR, lambda _: SidVocab([[11, 12], [13, 14]])),
                      Change("of two ends", ERROR,
                             lambda v: {1: v, 2: SidVocab([[21, 22], [23, 24]], end=16)}),
                      Change("too few codes", ERROR, lambda _: SidVocab([[11], [13]], end=15)),
                      Change("token ids", ERROR, lambda _: TokenIds(2, 20, end=15)),
                      Change("for each type", SAME, lambda v: {1: v, 2: v})],
        }, aliases={"tries": ("tries", "begin token", "item")}),
        Call("vocabulary_from_dict", from_dict,
             lambda: dict(description=dict(token_ids=[[1, 2]], begin=5, end=6, eos=7)),
             {"description": scalars(
                 None, "x", 3, [], {}, {"kind": "x"}, {"kind": ["sids"]}, {"kind": None},
                 {"token_ids": None}, {"token_ids": [[1, 1]]}, {"token_ids": [[1]], "x": 3},
                 {"kind": "token_ids", "size": 3}, {"kind": "titles", "num_levels": 0, "size": 3})},
             aliases={"description": ("kind", "token_ids", "num_levels")}),
        Call("TitleVocab", lambda **a: TitleVocab(**a).sizes,
             lambda: dict(num_levels=2, size=5, begin=None, end=3),
             {"num_levels": scalars(0, -1, 1.5, "x", None),
              "size": scalars(0, -1, 1.5, "x", None), "begin": special, "end": special}),
        Call("TitleVocab.extend_for", titles,
             lambda: dict(tokenizer=tokenizer, model=None, titles={"a": [1, 2], "b": [3]}),
             {**tokenizers,
              "titles": scalars(None, "x", 3, {}, [[1]], {"a": []}, {"a": "x"}, {"a": None},
                                {"a": [-1]}, {"a": [0.5]}, {"a": [[1]]}, {"a": 3})}),
        Call("SidVocab.extend", extended,
             lambda: dict(tokenizer=tokenizer, model=None, levels=3, codes=4),
             {**tokenizers, "levels": scalars(0, -1, 27, 1.5, "x", None, True),
              "codes": scalars(0, -1, 1.5, "x", None, True)}),
        Call("SidVocab.from_tokens", lambda **a: SidVocab.from_tokens(**a).sizes,
             lambda: dict(tokenizer=tokenizer, levels=[["<a_0>", "<a_1>"], ["<b_0>"]],
                          begin="<BOI>", end="<EOI>"),
             {"tokenizer": scalars(None, "x", 3),
              "levels": scalars(None, "x", 3, [], [[]], [["no such token"]], [[None]], [[3]], [3]),
              "begin": scalars("no such token", 3), "end": scalars("no such token", 3)},
             aliases={"levels": ("levels", "token_ids", "tokenizer must have every token"),
                      "begin": ("begin", "tokenizer must have every token"),
                      "end": ("end", "tokenizer must have every token")}),
    ]  # fmt: skip


def model_calls() -> list[Call]:
    none = scalars(None, "x", 3, {})
    modules = [*none, Change("a layer", ERROR, lambda _: torch.nn.Linear(2, 2)),
               Change("a config", ERROR, lambda m: m.config),
               Change("a class", ERROR, lambda m: type(m))]  # fmt: skip
    return [
        Call("unwrapped", lambda model: type(unwrapped(model)).__name__,
             lambda: dict(model=model()),
             {"model": [*modules, Change("DataParallel", SAME, torch.nn.DataParallel)]}),
        Call("capability", lambda model: list(capability(model)), lambda: dict(model=model()),
             {"model": modules}),
        Call("sequential", lambda model: list(sequential(model)), lambda: dict(model=model()),
             {"model": [*modules, Change("without a head", ERROR, lambda _: headless())]}),
        Call("sliding_window", sliding_window, lambda: dict(model=model()), {"model": modules}),
        Call("stand_in", lambda model: type(stand_in(model)).__name__, lambda: dict(model=model()),
             {"model": [*none, Change("a class", ERROR, lambda m: type(m))]}),
        Call("TreeModel", lambda **a: TreeModel(**a).one_shape,
             lambda: dict(model=model(), attention="tree", compiled=False),
             {"model": [*modules, Change("without a head", ERROR, lambda _: headless())],
              "attention": scalars(None, "x", 3, ["tree"])}),
        Call("TreeModel compiled", lambda **a: TreeModel(model(), **a).one_shape,
             lambda: dict(attention="tree", compiled=True), {"attention": scalars("mask")}),
    ]  # fmt: skip


def padding_calls() -> list[Call]:
    rows = [*scalars(None, "x", 3, [], ["a"], [3], [None], [[0.5]], [["a"]], [[None]], [[True]],
                     [[1 << 70]], [[[1]]]),
            Change("one float among them", ERROR, lambda r: [*r, [0.5]]),
            Change("an array", SAME, lambda r: [torch.tensor(row) for row in r])]  # fmt: skip
    padding = scalars(None, 1.5, "x", True, [0], HUGE)
    return [
        *(Call(pad.__name__, lambda pad=pad, **a: list(pad(**a)),
               lambda: dict(rows=[[1, 2], [3]], pad_id=0), {"rows": rows, "pad_id": padding})
          for pad in (left_pad, right_pad)),
        Call("refuse_not_numbers", refuse_not_numbers, lambda: dict(requests=[]),
             {"requests": [*scalars(None, "x", 3, True), *scalars([0], {3})]},
             aliases={"requests": ("requests", "row")}),
    ]  # fmt: skip


def search_calls() -> list[Call]:
    ids = [
        *scalars(None, "x", 3),
        Change("floats", ERROR, lambda t: t.float()),
        Change("one axis less", ERROR, lambda t: t[0]),
        Change("one axis more", ERROR, lambda t: t[None]),
        Change("no tokens", ERROR, nothing_along(1)),
    ]
    common = {
        "trie": [*scalars(None, "x", 3), Change("tensors", ERROR, lambda t: t.tensors)],
        "vocab": [*scalars("x", 3), Change("too small", ERROR, lambda _: SidVocab([[1]]))],
        "normalize": scalars("x", None, 3),
        "temperature": scalars(0.0, -1.0, NAN, INF, "x", None),
        "filters": [
            *scalars("x", 3),
            Change("a mask", ERROR, lambda _: torch.ones(1, 150, dtype=torch.bool)),
            Change("of another", ERROR, lambda _: OTHER.filter(allow=[1])),
            Change("three", ERROR, lambda _: ItemFilter.stack([TRIE.filter(allow=[1])] * 3)),
        ],
    }

    def prompt() -> Prompt:
        return Prompt(model(), IDS)

    def prompted(**a: Any) -> Any:
        return Prompt(**a).length

    def tree(**a: Any) -> Any:
        return BeamTree(**a).output.sids

    def search(**changed: Any) -> Any:
        """One argument changed on its way from `generate`."""

        def loop(model: Any, input_ids: Any, logits_processor: Any, stopping_criteria: Any,
                 generation_config: Any, **others: Any) -> Any:  # fmt: skip
            given = dict(model=model, input_ids=input_ids, generation_config=generation_config)
            return beam_search(
                logits_processor=logits_processor, stopping_criteria=stopping_criteria,
                **{**given, **others, **changed},
            )  # fmt: skip

        return model().generate(
            IDS, custom_generate=loop, max_new_tokens=5, do_sample=False, pad_token_id=0
        )

    def generated(terminator: Any = None, **a: Any) -> Any:
        lm = a.pop("model")
        return lm.generate(
            **a, terminator=terminator, custom_generate=beam_search, max_new_tokens=5,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip

    return [
        Call("Prompt", prompted,
             lambda: dict(model=model(), input_ids=IDS.clone(), attention_mask=torch.ones_like(IDS),
                          room=0),
             {"model": [*scalars(None, "x", 3),
                        Change("a layer", ERROR, lambda _: torch.nn.Linear(2, 2)),
                        Change("without a head", ERROR, lambda _: headless())],
              "input_ids": [*ids, Change("one row more", ERROR, longer(0))],
              "attention_mask": [*scalars("x", 3), Change("all zeros", ERROR, torch.zeros_like),
                                 Change("one token less", ERROR, shorter(1))],
              "room": scalars(-1, 1.5, "x", None, True)},
             aliases={"input_ids": ("input_ids", "attention_mask")}),
        Call("BeamTree", tree,
             lambda: dict(prompt=prompt(), trie=TRIE, vocab=VOCABULARY, num_beams=3,
                          normalize="vocab", temperature=1.0, filters=None),
             {"prompt": [*scalars(None, "x", 3), Change("a model", ERROR, lambda _: model())],
              "num_beams": scalars(0, -1, 1.5, "x", None), **common},
             aliases={"trie": ("trie", "vocab")}),
        Call("beam_search", search,
             lambda: dict(trie=TRIE, vocab=VOCABULARY),
             {"model": scalars(None, "x", 3), "input_ids": [c for c in ids[:3]],
              "streamer": scalars("x", 3), "trie": scalars(None, "x", 3),
              "generation_config": scalars(None, "x", 3)}),
        Call("beam_search by generate", generated,
             lambda: dict(model=model(), input_ids=IDS.clone(), trie=TRIE, vocab=VOCABULARY,
                          num_beams=3, normalize="vocab", temperature=1.0, filters=None),
             {"input_ids": [Change("past the model's", ERROR, filled(64)),
                            Change("-1", ERROR, filled(-1))],
              "terminator": scalars("x", -1, 1.5, [], True),
              **{n: c for n, c in common.items() if n != "temperature"}},
             aliases={"trie": ("trie", "vocab")}),
    ]  # fmt: skip


def calls() -> list[Call]:
    return [*vocabulary_calls(), *model_calls(), *padding_calls(), *search_calls()]
