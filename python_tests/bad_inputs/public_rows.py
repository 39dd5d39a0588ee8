"""The rows of tries, vocabularies, filters, slots, quantizers, searches and the recommender."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from crs_fast import RQKMeans, SidLogitsProcessor, find_items, load_index, recommend
from crs_fast.crs.checkpoint import Bundle
from crs_fast.crs.recommender import Recommender
from crs_fast.quantize import add_disambiguation_level, resolve_collisions
from crs_fast.trie import ItemFilter, SidTrie, SidVocab, TokenIds, TrieSlot
from python_tests.crs.tiny_system import ITEMS, system
from python_tests.helpers import random_sids, tiny_model

from .ops_rows import CODES, HUGE, INF, LEVELS, NAN, OTHER, TRIE, VOCABULARY, node_changes
from .table import (
    ERROR,
    REFERENCE,
    SAME,
    Call,
    Change,
    filled,
    longer,
    nothing_along,
    scalars,
    shorter,
    tensor_changes,
)

TEXT_TRIE = SidTrie.from_sids([[1, 2], [0, 1], [1, 2]], ["a", "b", "c"])
SIDS = random_sids(4, 12, LEVELS, CODES)


def int_tensors() -> list[Change]:
    """For arguments that take integers of every width, as tensor, array or list."""
    wrong = tensor_changes(
        [torch.uint8, torch.int16, torch.int32, torch.int64], takes_lists=True, moves=True
    )
    return [c for c in wrong if c.label not in ("inference tensor", "parameter")]


def sid_changes() -> list[Change]:
    return [
        *int_tensors(),
        *scalars("x", 3, [["a"]], [[0.5]], [[None]], [1, 2], {0: 1}),
        Change("three axes", ERROR, lambda t: t[None]),
    ]


def trie_calls() -> list[Call]:
    ids = list(range(100, 112))
    item_ids = [
        *scalars("x", 3, [1.5] * 12, [None] * 12, [True] * 12, [[1]] * 12, [NAN] * 12),
        Change("too few", ERROR, lambda i: i[:-1]),
        Change("too many", ERROR, lambda i: [*i, 7]),
        Change("repeated", ERROR, lambda i: [*i[:-1], i[0]]),
        Change("2^63", ERROR, lambda i: [*i[:-1], 1 << 63]),
        Change("two kinds", ERROR, lambda i: [*i[:-1], "x"]),
        Change("half a surrogate", ERROR, lambda i: ["\ud800", *map(str, i[1:])]),
        Change("array", SAME, np.array),
        Change("tensor", SAME, torch.tensor),
        Change("floats", ERROR, lambda i: torch.tensor(i).float()),
    ]
    codes = [
        Change("no levels", ERROR, lambda t: t[:, :0]),
        Change("code -2", ERROR, filled(-2)),
        Change("code 2^31", ERROR, filled(1 << 31)),
        Change("a row of padding", ERROR, lambda t: torch.cat([t[:-1], t[:1] * 0 - 1])),
        Change("numpy uint64", ERROR, lambda t: np.full((12, 3), 1 << 63, np.uint64)),
    ]

    def build(sids: Any, item_ids: Any) -> Any:
        trie = SidTrie.from_sids(sids, item_ids)
        return [trie.sids(), trie.item_ids.tolist()]

    def add(sids: Any, item_ids: Any) -> Any:
        return TRIE.add(sids, [i + 1000 for i in item_ids] if isinstance(item_ids, list) else
                        item_ids).sids()  # fmt: skip

    unknown = [
        *scalars([-1], [150], [HUGE], ["a"], [1.5], [None], [[1]], "x", 3),
        Change("floats", ERROR, lambda _: torch.tensor([1.0])),
    ]
    masks = [
        Change("too short a mask", ERROR, lambda _: torch.ones(149, dtype=torch.bool)),
        Change("too long a mask", ERROR, lambda _: np.ones(151, dtype=bool)),
    ]
    words = {
        n: ("SidTrie", "mask", n) for n in ("item_ids", "allow", "deny")
    }  # "SidTrie: no item 7", as a KeyError says it
    return [
        Call("SidTrie.from_sids", build, lambda: dict(sids=SIDS.clone(), item_ids=list(ids)),
             {"sids": [*sid_changes(), *codes], "item_ids": item_ids}),
        Call("SidTrie.add", lambda **a: TRIE.add(**a).sids(),
             lambda: dict(sids=SIDS.clone(), item_ids=list(range(1000, 1012))),
             {"sids": [*sid_changes(), *codes],
              "item_ids": [*(c for c in item_ids if c.label != "half a surrogate"),
                           Change("in it already", ERROR, lambda i: [5, *i[1:]])]},
             aliases={"item_ids": ("item ", "item_ids")}),
        Call("SidTrie.remove", lambda **a: TRIE.remove(**a).sids(), lambda: dict(item_ids=[3]),
             {"item_ids": unknown}, aliases=words),
        Call("SidTrie.remove of text", lambda **a: TEXT_TRIE.remove(**a).sids(),
             lambda: dict(item_ids=["a"]), {"item_ids": scalars(["x"], [1], "x", 3, [None])},
             aliases=words),
        Call("SidTrie.sids", TRIE.sids, lambda: dict(item_ids=[3]),
             {"item_ids": [c for c in unknown if c.label != "None"]}, aliases=words),
        Call("SidTrie.items", TRIE.items, lambda: dict(sids=SIDS.clone()), {"sids": [
            *sid_changes(),
            Change("code -2", REFERENCE, lambda t: torch.tensor([[-2, 0]]), lambda sids: [[]]),
            Change("code 2^62", REFERENCE, lambda t: torch.tensor([[HUGE]]), lambda sids: [[]]),
            Change("more levels", REFERENCE, lambda t: torch.tensor([[1, 1, 1, 1]]),
                   lambda sids: [[]]),
        ]}),
        Call("SidTrie.items_at", lambda nodes: list(TRIE.items_at(nodes)),
             lambda: dict(nodes=torch.tensor([0, -1, 1 << 56 | 2 << 28])),
             {"nodes": [*(c for c in tensor_changes([torch.int64], moves=True)
                          if c.label != "no axis"),
                        *(c for c in node_changes((2,)) if c.verdict == ERROR)]}),
        Call("SidTrie.filter", lambda **a: TRIE.filter(**a).mask(),
             lambda: dict(allow=[3], deny=[4]),
             {"allow": [*unknown[:5], *unknown[6:], *masks],
              "deny": [*unknown[:5], *unknown[6:], *masks]}, aliases=words),
        Call("SidTrie", lambda **a: SidTrie(**a).sids(),
             lambda: dict(tensors=TRIE.tensors, item_ids=TRIE.item_ids),
             {"tensors": [*scalars(None, "x", 3),
                          Change("of another", ERROR, lambda _: OTHER.tensors),
                          Change("parts of two", ERROR,
                                 lambda t: t._replace(rank=OTHER.tensors.rank))],
              "item_ids": [Change("of another", ERROR, lambda _: OTHER.item_ids)]},
             aliases={"tensors": ("trie", "item_ids")}),
        Call("SidTrie.load", lambda path: SidTrie.load(path).sids(),
             lambda: dict(path="/nowhere/trie"),
             {"path": scalars("/nowhere/trie", "/", "/dev/null", "")},
             aliases={"path": ("SidTrie.load",)}),
        Call("TrieSlot", lambda **a: TrieSlot(**a).trie.num_items,
             lambda: dict(capacity=100, num_levels=3, num_codes=6),
             {name: scalars(0, -1, 1.5, "x", None, 1 << 40)
              for name in ("capacity", "num_levels", "num_codes")}),
        Call("TrieSlot.load",
             lambda trie: TrieSlot(200, num_levels=3, num_codes=6).load(trie).sids(),
             lambda: dict(trie=TRIE),
             {"trie": [*scalars(None, "x", 3), Change("tensors", ERROR, lambda t: t.tensors),
                       Change("too many items", ERROR, lambda _: OTHER),
                       Change("two levels", ERROR, lambda _: SidTrie.from_sids([[1, 2]])),
                       Change("too many codes", ERROR, lambda _: SidTrie.from_sids([[1, 2, 6]]))],
              }),
    ]  # fmt: skip


def filter_calls() -> list[Call]:
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) < 0.5

    def bits(mask: Any) -> Any:
        made = ItemFilter(mask)
        return [*made.tensors, made.mask()]

    one = TRIE.filter(allow=[1, 2])
    others = {
        "of another catalogue": OTHER.filter(allow=[1]),
        "of one more item": ItemFilter(torch.ones(1, 151, dtype=torch.bool)),
    }
    changes = [
        Change(name, ERROR, lambda _, o=other: o) for name, other in others.items()
    ] + scalars(None, "x", 3)
    aliases = {"other": ("filters",), "filters": ("filters",)}
    return [
        Call("ItemFilter", bits, lambda: dict(mask=mask.clone()), {"mask": [
            *(c for c in tensor_changes([torch.bool]) if c.label not in ("inference tensor",)),
        ]}),
        Call("ItemFilter &", lambda other: (one & other).mask(), lambda: dict(other=one),
             {"other": changes}, aliases=aliases),
        Call("ItemFilter |", lambda other: (one | other).mask(), lambda: dict(other=one),
             {"other": changes}, aliases=aliases),
        Call("ItemFilter.stack", lambda filters: ItemFilter.stack(filters).mask(),
             lambda: dict(filters=[one, None]), {"filters": [
                 *scalars([], [None], None, "x", 3, ["x"], [3]),
                 *(Change(name, ERROR, lambda f, o=other: [*f, o])
                   for name, other in others.items())]}, aliases=aliases),
        Call("ItemFilter.over", lambda trie: one.over(trie).mask(), lambda: dict(trie=TRIE),
             {"trie": [Change("another", ERROR, lambda _: OTHER), *scalars(None, "x")]},
             aliases={"trie": ("filters", "trie")}),
        Call("ItemFilter.select", lambda rows: one.select(rows).mask(), lambda: dict(rows=[0]),
             {"rows": scalars([1], [-2], [HUGE], ["x"], None, "x", 3, [0.5])}),
    ]  # fmt: skip


def vocabulary_calls() -> list[Call]:
    ids = [[1, 2], [3, 4]]
    special = scalars(-1, -100, 1.5, "x", True, HUGE, [3])

    def tensors(**a: Any) -> Any:
        made = SidVocab(**a)
        return [*made.tensors(), made.begin, made.eos]

    def with_eos(eos_token_id: Any) -> Any:
        return list(SidVocab([[1, 2]]).tensors("cpu", eos_token_id))

    codes = [*sid_changes()[:-3], Change("code K", ERROR, filled(CODES)),
             Change("code -2", ERROR, filled(-2)),
             Change("four levels", ERROR, lambda t: torch.cat([t, t], 1))]  # fmt: skip
    codes = [c for c in codes if c.label not in ("no axis", "three axes", "[1, 2]", "strided")]
    aliases = {"sids": ("sids", "codes"), "token_ids": ("token_ids",)}
    return [
        Call("SidVocab", tensors, lambda: dict(token_ids=ids, begin=5, end=6, eos=7), {
            "token_ids": [*scalars(None, 3, "x", [], [[]], [[-1]], [[-2, 1]], [[1, 1]], [["a"]],
                                   [[0.5]], [[True, False]], [[HUGE * 4]], [None]),
                          Change("tensor", SAME, torch.tensor), Change("array", SAME, np.array),
                          Change("floats", ERROR, lambda t: torch.tensor(t).float())],
            "begin": special, "end": special, "eos": special}),
        Call("SidVocab.tensors", with_eos, lambda: dict(eos_token_id=3),
             {"eos_token_id": [c for c in special if c.label != "True"]}),
        Call("SidVocab.encode", VOCABULARY.encode, lambda: dict(sids=SIDS.clone()),
             {"sids": codes}, aliases=aliases),
        Call("SidVocab.decode", VOCABULARY.decode, lambda: dict(token_ids=SIDS.clone()),
             {"token_ids": [c for c in codes if not c.label.startswith("code")]},
             aliases=aliases),
        Call("TokenIds", lambda **a: list(TokenIds(**a).tensors()),
             lambda: dict(num_levels=2, size=5, begin=None, end=3),
             {"num_levels": scalars(0, -1, 1.5, "x", None),
              "size": scalars(0, -1, 1.5, "x", None), "begin": special, "end": special}),
        Call("find_items", lambda **a: [list(n) for row in find_items(**a) for n in row],
             lambda: dict(token_ids=[[7, 8, 9]], trie=TRIE, vocab=VOCABULARY),
             {"token_ids": [*scalars(None, "x", 3, [["a"]], [[0.5]], [[None]]),
                            Change("huge", REFERENCE, lambda _: [[HUGE, -5, 7]],
                                   lambda **_: [])],
              "trie": scalars(None, "x", 3),
              "vocab": [*scalars("x", 3), Change("too small", ERROR, lambda _: SidVocab([[1]]))]}),
        Call("load_index", lambda path: load_index(path).trie.sids(), lambda: dict(path="/none"),
             {"path": scalars("/nowhere/index.json")}, aliases={"path": ("load_index",)}),
    ]  # fmt: skip


@functools.cache
def model() -> Any:
    return tiny_model("llama", 64)


@functools.cache
def broken_model(value: float) -> Any:
    made = tiny_model("llama", 64)
    with torch.no_grad():
        made.lm_head.weight.fill_(value)
    return made


def search_calls() -> list[Call]:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])

    def arguments() -> dict[str, Any]:
        return dict(
            model=model(), input_ids=ids.clone(), attention_mask=torch.ones_like(ids), trie=TRIE,
            vocab=VOCABULARY, num_beams=3, normalize="vocab", temperature=1.0, filters=None,
        )  # fmt: skip

    def search(**a: Any) -> Any:
        out = recommend(**a)
        return [out.sids, out.scores]

    def processed(input_ids: Any, scores: Any) -> Any:
        return SidLogitsProcessor(TRIE, VOCABULARY, prompt_length=3)(input_ids, scores)

    wrong = tensor_changes([torch.int32, torch.int64], takes_lists=True)
    ints = [c for c in wrong if c.label != "one axis less"]
    tokens = [
        Change("-1", ERROR, filled(-1)),
        Change("past the model's", ERROR, filled(64)),
        Change("huge", ERROR, filled(HUGE)),
        Change("no tokens", ERROR, nothing_along(1)),
    ]
    aliases = {"model": ("model", "logits"), "attention_mask": ("attention_mask", "mask"),
               "trie": ("trie", "vocab"), "filters": ("filters",)}  # fmt: skip
    return [
        Call("recommend", search, arguments, {
            "model": [Change("of NaNs", ERROR, lambda _: broken_model(NAN)),
                      Change("of infinities", ERROR, lambda _: broken_model(INF))],
            "input_ids": [*(c for c in ints if c.label not in ("inference tensor",)), *tokens,
                          Change("one row more", ERROR, longer(0))],
            "attention_mask": [
                Change("one token less", ERROR, shorter(1)),
                Change("one row more", ERROR, longer(0)),
                Change("three axes", ERROR, lambda t: t[None]),
                Change("all zeros", ERROR, torch.zeros_like),
                Change("a hole", REFERENCE, lambda _: torch.tensor([[1, 0, 1], [1, 1, 1]]),
                       lambda **a: search(**{
                           **a, "input_ids": torch.tensor([[0, 1, 3], [4, 5, 6]]),
                           "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]])})),
                Change("None", SAME, lambda _: None),
                Change("a string", ERROR, lambda _: "x"),
            ],
            "trie": [*scalars(None, "x", 3), Change("tensors", ERROR, lambda t: t.tensors)],
            "vocab": [*scalars("x", 3), Change("too small", ERROR, lambda _: SidVocab([[1]])),
                      Change("past the model's head", ERROR, lambda v: SidVocab(
                          [ids + 100 for ids in v.token_ids]))],
            "num_beams": scalars(0, -1, 1.5, "x", None, 1 << 31, HUGE),
            "normalize": scalars("x", None, 3),
            "temperature": scalars(0.0, -1.0, NAN, INF, "x", None),
            "filters": [*scalars("x", 3),
                        Change("a mask", ERROR, lambda _: torch.ones(1, 150, dtype=torch.bool)),
                        Change("of another", ERROR, lambda _: OTHER.filter(allow=[1])),
                        Change("three", ERROR,
                               lambda _: ItemFilter.stack([TRIE.filter(allow=[1])] * 3))],
        }, aliases=aliases),
        Call("SidLogitsProcessor", lambda **a: SidLogitsProcessor(**a).prompt_length,
             lambda: dict(trie=TRIE, vocab=VOCABULARY, filters=None, prompt_length=3,
                          eos_token_id=None),
             {"trie": scalars(None, "x", 3), "vocab": scalars("x", 3),
              "filters": [*scalars("x", 3),
                          Change("of another", ERROR, lambda _: OTHER.filter(allow=[1]))],
              "prompt_length": scalars(None, -1, 1.5, "x"),
              "eos_token_id": scalars(-5, 1.5, "x")}, aliases=aliases),
        Call("SidLogitsProcessor call", processed,
             lambda: dict(input_ids=ids.clone(), scores=torch.zeros(2, 64)),
             {"input_ids": tensor_changes([torch.int32, torch.int64]),
              "scores": [*(c for c in tensor_changes([torch.float32, torch.bfloat16, torch.float16])
                           if c.label not in ("inference tensor",)),
                         Change("too few columns", ERROR, lambda t: t[:, :5]),
                         Change("one row more", ERROR, longer(0)),
                         Change("NaN", ERROR, lambda t: torch.full_like(t, NAN)),
                         Change("all -inf", ERROR, lambda t: torch.full_like(t, -INF))]},
             aliases={"scores": ("scores", "logits", "rows", "finite score")}),
    ]  # fmt: skip


def quantizer_calls() -> list[Call]:
    generator = torch.Generator().manual_seed(0)
    x, books = (torch.randn(s, generator=generator) for s in ((12, 4), (3, 6, 4)))
    floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    values = [
        *(c for c in tensor_changes(floats, takes_lists=True, moves=True)
          if c.label not in ("parameter", "inference tensor", "negative view")),
        Change("NaN", ERROR, filled(NAN)),
        Change("inf", ERROR, filled(INF)),
        Change("one dimension less", ERROR, lambda t: t[..., :3]),
    ]  # fmt: skip
    whole = [c for c in values if not c.label.startswith("dtype")]

    @functools.cache
    def fitted() -> RQKMeans:
        return RQKMeans(levels=2, codes=3, iterations=2).fit(x)

    def fit(x: Any) -> Any:
        return RQKMeans(levels=2, codes=3, iterations=2).fit(x).codebooks.detach()

    codes = [
        *int_tensors(),
        Change("-1", ERROR, filled(-1)),
        Change("K", ERROR, filled(6)),
        Change("one row more", ERROR, longer(0)),
        Change("one level less", ERROR, lambda t: t[:, :2]),
    ]
    occupied = [
        *(c for c in int_tensors() if c.label not in ("None",)),
        Change("-1", ERROR, filled(-1)),
        Change("one level less", ERROR, lambda t: t[:, :2]),
    ]
    return [
        Call("resolve_collisions", resolve_collisions,
             lambda: dict(x=x.clone(), codes=SIDS.clone(), codebooks=books.clone(),
                          occupied=SIDS[:3].clone()),
             {"x": [*whole, Change("one row more", ERROR, longer(0))],
              "codes": codes, "codebooks": [*whole, Change("no codes", ERROR, lambda t: t[:, :0])],
              "occupied": [*occupied, Change("K", ERROR, filled(6))]},
             aliases={"codebooks": ("codebooks", "x"), "codes": ("codes", "codebooks", "x")}),
        Call("add_disambiguation_level", add_disambiguation_level,
             lambda: dict(codes=SIDS.clone(), occupied=None),
             {"codes": [c for c in codes if c.verdict == SAME or c.label in (
                 "dtype float32", "dtype bool", "dtype complex64", "None", "a string", "no axis",
                 "-1")]}),
        Call("RQKMeans.fit", fit, lambda: dict(x=x.clone()),
             {"x": [c for c in values if c.label not in ("dtype bool", "one dimension less")
                    and not c.label.startswith("dtype")]}),
        Call("RQKMeans.encode", lambda x: fitted().encode(x), lambda: dict(x=x.clone()),
             {"x": whole}),
        Call("RQKMeans.decode", lambda codes: fitted().decode(codes),
             lambda: dict(codes=torch.zeros(5, 2, dtype=torch.int64)),
             {"codes": [*(c for c in int_tensors() if c.label not in ("strided",)),
                        Change("K", ERROR, filled(3)), Change("-1", ERROR, filled(-1)),
                        Change("huge", ERROR, filled(HUGE))]}),
    ]  # fmt: skip


@functools.cache
def recommender(broken: bool = False) -> Recommender:
    lm, tokenizer, trie, vocab, control, builder = system()
    if broken:
        with torch.no_grad():
            lm.get_output_embeddings().weight.fill_(NAN)
    return Recommender(Bundle(lm, tokenizer, trie, vocab, control, ITEMS, builder, None))


def recommender_calls() -> list[Call]:
    ask = [{"role": "user", "content": "I like Film 3"}]

    def respond(broken: bool = False, **a: Any) -> Any:
        return recommender(broken).respond(**a).text

    return [
        Call("Recommender.respond", respond,
             lambda: dict(messages=ask, mode="rec", num_items=2, exclude=["i1"], num_beams=4,
                          max_new_tokens=2, broken=False),
             {"broken": [Change("a model of NaNs", ERROR, lambda _: True)],
              "messages": scalars([], None, "x", 3, [3], [{}], [{"role": "x", "content": "y"}],
                                  [{"role": "user"}], [{"role": "user", "content": 3}],
                                  [{"role": ["user"], "content": "x"}],
                                  [{"role": "user", "content": "x" * 1_000_001}]),
              "mode": scalars("x", 3, ""),
              "num_items": scalars(0, -1, 1.5, "x", None, 5),
              "num_beams": scalars(0, -1, 1.5, "x", None),
              "max_new_tokens": scalars(0, -1, 1.5, "x", None),
              "exclude": scalars(["none"], [3], 3, [None])},
             aliases={"broken": ("logits",), "num_beams": ("num_beams", "num_items"),
                      "messages": ("message",)}),
    ]  # fmt: skip


def calls() -> list[Call]:
    return [
        *trie_calls(),
        *filter_calls(),
        *vocabulary_calls(),
        *search_calls(),
        *quantizer_calls(),
        *recommender_calls(),
    ]
