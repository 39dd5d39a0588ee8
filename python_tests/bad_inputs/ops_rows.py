"""The rows of the ops, public functions and `torch.ops.crs_fast` alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from crs_fast import ops
from crs_fast.ops import LEAVE, FilterTensors, TokenTensors, TrieTensors
from crs_fast.ops.codebook import reference as codebook_reference
from crs_fast.ops.text_table import reference as text_reference
from crs_fast.ops.tree_attention import reference as attention_reference
from crs_fast.ops.tree_attention import tree_attention
from crs_fast.ops.trie import reference as trie_reference
from crs_fast.ops.vocab_logsumexp import reference as normalizer_reference
from crs_fast.trie import SidTrie
from python_tests.helpers import random_sids, vocab_of

from .table import (
    ERROR,
    META,
    REFERENCE,
    Call,
    Change,
    filled,
    longer,
    negative_view,
    nothing_along,
    part,
    scalars,
    shorter,
    tensor_changes,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDE_FLOATS = (*FLOATS, torch.float64)
NAN, INF, HUGE = float("nan"), float("inf"), 1 << 62
ROWS, VOCAB, LEVELS, CODES, BEAMS = 4, 40, 3, 6, 2

TRIE = SidTrie.from_sids(random_sids(0, 150, LEVELS, CODES, ragged=True))
OTHER = SidTrie.from_sids(random_sids(1, 400, LEVELS, CODES))
VOCABULARY = vocab_of(LEVELS, CODES, end=3)
PATHS = [[-1, -1], [0, -1], [1, 2], [7, 7]]


def trie_tensors() -> TrieTensors:
    return TrieTensors(*(tensor.clone() for tensor in TRIE.tensors))


def tokens() -> TokenTensors:
    made = VOCABULARY.tensors()
    return made._replace(column=made.column.clone(), denied=made.denied.clone())


def filters(count: int) -> FilterTensors:
    generator = torch.Generator().manual_seed(5)
    mask = torch.rand(count, TRIE.num_items, generator=generator) < 0.5
    from crs_fast.trie import ItemFilter

    return FilterTensors(*(tensor.clone() for tensor in ItemFilter(mask).tensors))


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def nodes() -> torch.Tensor:
    return ops.trie_walk(TRIE.tensors, torch.tensor(PATHS))


def of(depth: int, begin: int, end: int) -> int:
    return depth << 56 | (end - begin) << 28 | begin


def node_changes(at: tuple[int, ...], lowest: int = -1) -> list[Change]:
    """What a node can be wrong in. One that names items of this trie, though another trie's, is
    what it names. From `lowest` to -1 a node has a meaning."""
    items = TRIE.num_items
    wrong = {
        "below the lowest": lowest - 1,
        "most negative": -(1 << 63),
        "largest": (1 << 63) - 1,
        "random": 0x5DEECE66D1234567,
        "too deep": of(LEVELS + 1, 0, 1),
        "past the items": of(1, items, items + 1),
        "of a larger trie": of(1, 0, 180),
        "begins far away": of(2, (1 << 28) - 1, 1 << 28),
        "depth 0 with a range": of(0, 3, 5),
    }
    right = {
        "foreign, in range": of(1, 3, 17),
        "empty range": of(1, 5, 5),
        "last item": of(LEVELS, items - 1, items),
        "no node": -1,
        "lowest": lowest,
    }
    return [Change(f"{k}", ERROR, filled(v, at)) for k, v in wrong.items()] + [
        Change(f"{k}", REFERENCE, filled(v, at)) for k, v in right.items()
    ]


def trie_changes() -> list[Change]:
    def written(name: str, at: Any, value: int) -> Change:
        def make(bundle: TrieTensors) -> TrieTensors:
            tensor = getattr(bundle, name).clone()
            tensor[at] = value
            return bundle._replace(**{name: tensor})

        return Change(f"{name}[{at}] = {value}", ERROR, make)

    changes = [
        Change("None", ERROR, lambda _: None),
        Change("SidTrie", ERROR, lambda _: TRIE),
        Change("a tuple", ERROR, lambda bundle: tuple(bundle)),
        Change("parts of two", ERROR, lambda bundle: bundle._replace(bits=OTHER.tensors.bits)),
        Change("codes of another", ERROR, lambda b: b._replace(codes=OTHER.tensors.codes[:5])),
        Change("random bits", ERROR, lambda b: b._replace(bits=b.bits * 0x5DEECE66D + 11)),
        Change(
            "written to after it was checked",
            ERROR,
            lambda bundle: (
                (ops.trie_walk(bundle, torch.tensor([[0]])), bundle.codes.fill_(200)) and bundle
            ),
        ),
        written("level", (-1, 1), 1 << 40),
        written("level", (-1, 1), -1),
        written("level", (-1, 0), 1 << 40),
        written("level", (1, 0), -5),
        written("level", (0, 1), 1 << 30),
        written("rank", (1, 0), 1 << 30),
        written("rank", (0, 0), -1),
        written("bits", (0, 0), 0),
        written("bits", (1, 0), -1),
        written("codes", 0, 255),
        *([written("starts", 0, 1 << 30)] if TRIE.tensors.starts.numel() else []),
    ]
    for name in ("codes", "bits", "rank", "starts", "level"):
        dtype = getattr(TRIE.tensors, name).dtype
        others = [torch.float32, torch.int64 if dtype != torch.int64 else torch.int32]
        changes += part(
            name,
            [
                *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in others),
                Change("on meta", ERROR, lambda t: t.to("meta")),
                Change("one axis more", ERROR, lambda t: t[None]),
                Change("empty", ERROR, lambda t: t[:0]),
                Change("None", ERROR, lambda t: None),
            ]
            if name != "starts"
            else [
                *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in others),
                Change("on meta", ERROR, lambda t: t.to("meta")),
                Change("None", ERROR, lambda t: None),
            ],
        )
    wide = lambda t: torch.stack([t, t], -1)[..., 0]  # noqa: E731
    for name in ("bits", "rank", "level"):
        changes += part(name, [Change("not contiguous", ERROR, wide)])
    return changes


TRIE_WORDS = ("trie",)


def token_changes() -> list[Change]:
    column = [
        *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in (torch.int32, torch.float32)),
        Change("on meta", ERROR, lambda t: t.to("meta")),
        Change("one axis less", ERROR, lambda t: t[0]),
        Change("no column", ERROR, lambda t: t[:, :0]),
        Change("too few levels", ERROR, lambda t: t[:1]),
        Change("columns apart", ERROR, lambda t: torch.stack([t, t], -1)[..., 0]),
        Change("negative", ERROR, filled(-100)),
        Change("past the logits", ERROR, filled(VOCAB + 100)),
        Change("huge", ERROR, filled(HUGE)),
        Change("expanded", REFERENCE, lambda t: t[:1].expand(LEVELS, -1)),
    ]
    denied = [
        *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in (torch.int32, torch.float32)),
        Change("on meta", ERROR, lambda t: t.to("meta")),
        Change("two axes", ERROR, lambda t: t[None]),
        Change("strided", ERROR, lambda t: torch.stack([t, t], -1)[:, 0]),
        Change("-1", ERROR, filled(-1)),
        Change("negative", ERROR, filled(-100)),
        Change("past the logits", ERROR, filled(VOCAB + 100)),
        Change("huge", ERROR, filled(HUGE)),
        Change("empty", REFERENCE, lambda t: t[:0]),
    ]
    return [
        Change("None", ERROR, lambda _: None),
        Change("SidVocab", ERROR, lambda _: VOCABULARY),
        *part("column", column),
        *part("denied", denied),
        *part("terminator", scalars(-100, -2, VOCAB + 60, HUGE)),
        *part("num_columns", scalars(0, 5, VOCAB + 1, HUGE)),
    ]


TOKEN_WORDS = ("vocabulary", "logits", "tokens")


def filter_changes() -> list[Change]:
    words = [
        *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in (torch.int32, torch.float32)),
        Change("on meta", ERROR, lambda t: t.to("meta")),
        Change("one word less", ERROR, lambda t: t[:, :0]),
        Change("one word more", ERROR, longer(1)),
        Change("one request more", ERROR, longer(0)),
        Change("no request", ERROR, lambda t: t[:0]),
        Change("strided", ERROR, lambda t: torch.stack([t, t], -1)[..., 0]),
        Change("other items than its ranks", ERROR, filled(0, (0, 0))),
    ]
    rank = [
        *(Change(str(d), ERROR, lambda t, d=d: t.to(d)) for d in (torch.int64, torch.float32)),
        Change("one request more", ERROR, longer(0)),
        Change("random", ERROR, filled(1 << 30)),
    ]
    return [
        Change("ItemFilter", ERROR, lambda _: TRIE.filter(allow=[0])),
        Change("a bool mask", ERROR, lambda _: torch.ones(2, 150, dtype=torch.bool)),
        Change("of a larger trie", ERROR, lambda _: OTHER.filter(allow=[0]).tensors),
        Change("three requests", ERROR, lambda _: filters(3)),
        *part("words", words),
        *part("rank", rank),
        Change("None", REFERENCE, lambda _: None),
    ]


def step_arguments() -> dict[str, Any]:
    return dict(
        logits=logits(ROWS, VOCAB),
        scores=logits(ROWS // BEAMS, BEAMS),
        nodes=nodes().view(ROWS // BEAMS, BEAMS),
        trie=trie_tensors(),
        tokens=tokens(),
        num_beams=5,
        normalize="vocab",
        temperature=1.0,
        filters=filters(ROWS // BEAMS),
    )


def mask_arguments() -> dict[str, Any]:
    return dict(
        logits=logits(ROWS, VOCAB), nodes=nodes(), trie=trie_tensors(), tokens=tokens(),
        filters=filters(2),
    )  # fmt: skip


def _flat(**a: Any) -> list[Any]:
    """The bundles of an op spread out."""
    words, rank = (None, None) if a["filters"] is None else a["filters"]
    return [*a["trie"], *a["tokens"], words, rank]


def flat_walk(trie: Any, codes: Any) -> Any:
    return torch.ops.crs_fast.trie_walk(*trie, codes)


def flat_mask(**a: Any) -> Any:
    return torch.ops.crs_fast.trie_mask(a["logits"], a["nodes"], *_flat(**a))


def flat_mask_(**a: Any) -> Any:
    torch.ops.crs_fast.trie_mask_(a["logits"], a["nodes"], *_flat(**a))
    return a["logits"]


def flat_step(**a: Any) -> Any:
    return torch.ops.crs_fast.trie_step(
        a["logits"], a["scores"], a["nodes"], *_flat(**a), a["num_beams"], a["normalize"],
        a["temperature"],
    )  # fmt: skip


def mask_reference(**a: Any) -> Any:
    return trie_reference.trie_mask(**a)


def logit_changes() -> list[Change]:
    return [
        *tensor_changes(FLOATS),
        Change("too few columns", ERROR, lambda t: t[:, :5]),
        Change("one row more", ERROR, longer(0)),
        Change("no rows", ERROR, nothing_along(0)),
        Change("NaN", REFERENCE, filled(NAN)),
        Change("a row of NaN", REFERENCE, lambda t: torch.full_like(t, NAN)),
        Change("inf", REFERENCE, filled(INF)),
        Change("all -inf", REFERENCE, lambda t: torch.full_like(t, -INF)),
        Change("columns apart", REFERENCE, lambda t: torch.stack([t, t], -1)[..., 0]),
        Change("bfloat16", REFERENCE, lambda t: t.bfloat16()),
        Change("more columns", REFERENCE, longer(1)),
    ]


OVERLAPPING = [
    Change("one row for all", ERROR, lambda t: t[:1].expand(ROWS, -1)),
    Change("one column for all", ERROR, lambda t: t[:, :1].expand(-1, VOCAB)),
    Change("rows that overlap", ERROR, lambda t: t.view(-1).as_strided((ROWS, VOCAB), (20, 1))),
]
EXPANDED = [
    Change("one row for all", REFERENCE, lambda t: t[:1].expand(ROWS, -1)),
    Change("one column for all", REFERENCE, lambda t: t[:, :1].expand(-1, VOCAB)),
]


def code_changes(ndim: int) -> list[Change]:
    at = (0,) * ndim
    return [
        Change("code past its level", REFERENCE, filled(CODES + 100, at)),
        Change("code 2^31", REFERENCE, filled(1 << 31, at)),
        Change("code 2^62", REFERENCE, filled(HUGE, at)),
        Change("code -2", REFERENCE, filled(-2, at)),
        Change("most negative code", REFERENCE, filled(-(1 << 63), at)),
    ]


def trie_calls() -> list[Call]:
    int64 = tensor_changes([torch.int64])
    walk = {
        "codes": [
            *int64,
            *code_changes(2),
            Change("no rows", REFERENCE, nothing_along(0)),
            Change("no codes", REFERENCE, nothing_along(1)),
            Change("more levels than the trie", REFERENCE, lambda t: torch.cat([t, t, t], 1)),
            Change("one row for all", REFERENCE, lambda t: t[:1].expand(100, -1)),
        ],
        "trie": trie_changes(),
    }
    mask = {
        "logits": logit_changes(),
        "nodes": [*int64, *node_changes((0,), LEAVE), Change("one more", ERROR, longer(0))],
        "trie": trie_changes(),
        "tokens": token_changes(),
        "filters": filter_changes(),
    }
    step = {
        "logits": [*logit_changes(), *EXPANDED],
        "scores": [
            *tensor_changes([torch.float32]),
            Change("NaN", REFERENCE, filled(NAN)),
            Change("-inf", REFERENCE, filled(-INF)),
            Change("one request more", ERROR, longer(0)),
            Change("one beam more", ERROR, longer(1)),
        ],
        "nodes": [*int64, *node_changes((0, 0)), Change("one beam less", ERROR, shorter(1))],
        "trie": trie_changes(),
        "tokens": token_changes(),
        "filters": [c for c in filter_changes() if c.label != "words no request"],
        "num_beams": [
            *scalars(0, -1, 2.5, "x", None, 1 << 31, 1 << 62),
            *scalars(1, 300, verdict=REFERENCE),
        ],
        "normalize": scalars("x", None, 3, ""),
        "normalizers": [
            Change("known", REFERENCE, lambda _: torch.arange(float(ROWS))),
            Change("NaN", REFERENCE, lambda _: torch.full((ROWS,), NAN)),
            Change("one row less", ERROR, lambda _: torch.zeros(ROWS - 1)),
            Change("float64", ERROR, lambda _: torch.zeros(ROWS).double()),
            Change("a string", ERROR, lambda _: "x"),
            Change("on meta", ERROR, lambda _: torch.zeros(ROWS, device="meta")),
        ],
        "temperature": [
            *scalars(0.0, -1.0, NAN, INF, "x", None),
            *scalars(0.5, 7, verdict=REFERENCE),
        ],
    }
    aliases = {"trie": TRIE_WORDS, "tokens": TOKEN_WORDS}
    unflat = ("None", "SidTrie", "a tuple", "SidVocab", "ItemFilter", "a bool mask")

    def of_flat(changes: dict[str, list[Change]]) -> dict[str, list[Change]]:
        """Those that the dispatcher of torch does not refuse before the op sees them."""
        kept = {}
        for name, listed in changes.items():
            kept[name] = [
                c
                for c in listed
                if c.label
                not in (
                    *unflat,
                    *(["negative view"] if name == "logits" else []),
                    "a string",
                    "a dict",
                    "numpy",
                    "list",
                    "sparse",
                )
                and not c.label.endswith(("None", "on meta", "device meta", "inference tensor"))
                and name not in ("num_beams", "normalize", "normalizers", "temperature")
            ]
        return kept

    masks = {**mask, "logits": [*logit_changes(), *EXPANDED]}
    masks_in_place = {
        **mask,
        "logits": [
            *(c for c in logit_changes() if c.label not in ("inference tensor", "negative view")),
            Change("negative view", ERROR, negative_view),
            *OVERLAPPING,
        ],
    }
    made: list[tuple[str, Callable[..., Any], Any, Any, Any]] = [
        ("trie_mask", ops.trie_mask, mask_arguments, masks, mask_reference),
        ("trie_mask_", ops.trie_mask_, mask_arguments, masks_in_place, mask_reference),
        ("trie_step", ops.trie_step, step_arguments, step, trie_reference.trie_step),
        (
            "trie_walk", ops.trie_walk,
            lambda: dict(trie=trie_tensors(), codes=torch.tensor(PATHS)), walk,
            trie_reference.trie_walk,
        ),
    ]  # fmt: skip
    flat = {
        "trie_mask": flat_mask, "trie_mask_": flat_mask_, "trie_step": flat_step,
        "trie_walk": flat_walk,
    }  # fmt: skip
    calls = [Call(*one[:4], reference=one[4], aliases=aliases) for one in made]
    calls += [
        Call(
            f"torch.ops.{op}",
            flat[op],
            arguments,
            of_flat(changes),
            reference=reference,
            aliases={**aliases, "num_beams": ("num_beams",)},
        )
        for op, _, arguments, changes, reference in made
    ]
    return [*calls, *more_trie_calls(int64)]


def more_trie_calls(int64: list[Change]) -> list[Call]:
    sids = random_sids(0, 20, LEVELS, CODES, ragged=True)
    build = {
        "sids": [
            *int64,
            Change("no levels", ERROR, nothing_along(1)),
            Change("a row of padding", ERROR, lambda t: filled(-1, (0, 0))(filled(-1, (0, 1))(t))),
            Change("code -2", ERROR, filled(-2, (0, 0))),
            Change("code 2^31", ERROR, filled(1 << 31, (0, 0))),
            Change("code after padding", ERROR, lambda t: torch.tensor([[1, -1, 2]])),
            Change("128 levels", ERROR, lambda t: torch.zeros(2, 128, dtype=torch.int64)),
            Change(
                "2^28 rows",
                ERROR,
                lambda t: torch.zeros(1, 1, dtype=torch.int64).expand(1 << 28, 1),
            ),
            Change(
                "2^31 rows",
                ERROR,
                lambda t: torch.zeros(1, 1, dtype=torch.int64).expand(1 << 31, 1),
            ),
            Change("no rows", REFERENCE, nothing_along(0)),
            Change("one row for all", REFERENCE, lambda t: t[:1].expand(70, -1)),
            Change("code 2^31 - 1", REFERENCE, filled((1 << 31) - 1, (0, 0))),
        ],
        "num_sorted": [*scalars(-1, 21, HUGE, 1.5, "x"), *scalars(20)],
    }
    rows = {
        "items": [
            *(c for c in tensor_changes([torch.int64]) if c.label != "None"),
            Change("-1", ERROR, filled(-1)),
            Change("N", ERROR, filled(TRIE.num_items)),
            Change("huge", ERROR, filled(HUGE)),
            Change("none", REFERENCE, nothing_along(0)),
            Change("one for all", REFERENCE, lambda t: t[:1].expand(100)),
        ],
        "out": [
            Change("int32", ERROR, lambda _: torch.empty(4, LEVELS, dtype=torch.int32)),
            Change("too short", ERROR, lambda _: torch.empty(3, LEVELS, dtype=torch.int64)),
            Change("too wide", ERROR, lambda _: torch.empty(4, LEVELS + 1, dtype=torch.int64)),
            Change("strided", ERROR, lambda _: torch.empty(LEVELS, 4, dtype=torch.int64).T),
            Change("meta", ERROR, lambda _: torch.empty(4, LEVELS, dtype=torch.int64).to("meta")),
            Change("a list", ERROR, lambda _: [0]),
        ],
        "trie": trie_changes(),
    }
    logprob = {
        "logits": [
            *tensor_changes(FLOATS),
            Change("too few columns", ERROR, lambda t: t[..., :5]),
            Change("one row more", ERROR, longer(0)),
            Change("one level more", ERROR, longer(1)),
        ],
        "sids": [*int64, *code_changes(2), Change("one row more", ERROR, longer(0))],
        "trie": trie_changes(),
        "tokens": token_changes(),
        "filters": [c for c in filter_changes() if c.label != "three requests"],
        "temperature": scalars(0.0, -1.0, NAN, INF, "x", None),
    }
    token_ids = [
        *scalars("x", None, 3, [], [[]], [[0, 1.5]], [["a"]], [[-2, 0]], [[HUGE * 4]]),
        Change("a tensor of floats", ERROR, lambda _: torch.zeros(2, 2)),
        Change("one axis", ERROR, lambda _: torch.tensor([1, 2])),
    ]
    aliases = {"trie": TRIE_WORDS, "tokens": TOKEN_WORDS}
    return [
        Call("trie_build", ops.trie_build, lambda: dict(sids=sids.clone(), num_sorted=0), build,
             trie_reference.trie_build),
        Call("trie_insert", lambda **a: ops.trie_insert(**a)[1],
             lambda: dict(trie=trie_tensors(), sids=sids[:3].clone()),
             {"trie": trie_changes(),
              "sids": [*tensor_changes([torch.int64]),
                       Change("a negative code", ERROR, filled(-2, (0, 0))),
                       Change("a level less", ERROR, shorter(1)),
                       Change("a huge code", ERROR, filled(1 << 40, (0, 0)))]},
             aliases=aliases),
        Call("trie_remove", lambda **a: ops.trie_remove(**a).codes,
             lambda: dict(trie=trie_tensors(), items=torch.tensor([0, 3, 7])),
             {"trie": trie_changes(),
              "items": [*tensor_changes([torch.int64]),
                        Change("negative", ERROR, filled(-1, (0,))),
                        Change("past the items", ERROR, filled(1 << 40)),
                        Change("twice", ERROR, filled(3))]},
             aliases=aliases),
        Call("trie_rows", ops.trie_rows,
             lambda: dict(trie=trie_tensors(), items=torch.tensor([3, 0, 7, 39]), out=None), rows,
             lambda trie, items, out: trie_reference.trie_rows(trie, items), aliases),
        Call("trie_logprob", ops.trie_logprob, lambda: dict(
                logits=logits(ROWS, 2, VOCAB), sids=torch.tensor(PATHS), trie=trie_tensors(),
                tokens=tokens(), temperature=1.0, filters=filters(2)),
             logprob, trie_reference.trie_logprob, aliases),
        Call("token_tensors", ops.token_tensors,
             lambda: dict(token_ids=[[1, 2], [3]], terminator=4, denied=[5]),
             {"token_ids": token_ids,
              "terminator": scalars(-2, -100, 1.5, "x", None),
              "denied": scalars([-1], [-100], ["x"], [1.5], [[1]], "x")},
             aliases={name: ("tokens", "token_ids, denied and terminator")
                      for name in ("token_ids", "terminator", "denied")}),
    ]  # fmt: skip


def codebook_calls() -> list[Call]:
    generator = torch.Generator().manual_seed(2)
    x, books = (torch.randn(s, generator=generator) for s in ((9, 5), (3, 4, 5)))

    def values(changes: list[Change]) -> list[Change]:
        return [
            *changes,
            Change("NaN", ERROR, filled(NAN)),
            Change("inf", ERROR, filled(INF)),
            Change("one dimension less", ERROR, lambda t: t[..., :4]),
            Change("no dimensions", ERROR, lambda t: t[..., :0]),
        ]

    def arguments() -> dict[str, Any]:
        return dict(x=x.clone(), codebooks=books.clone())

    def lookup(x: torch.Tensor, codebooks: torch.Tensor, **_: Any) -> Any:
        codes, residual = codebook_reference.residual_lookup(x, codebooks)
        return codes, residual.float()

    changes = {
        "x": [
            *values(tensor_changes(WIDE_FLOATS)),
            Change("no rows", REFERENCE, nothing_along(0)),
            Change("one row for all", REFERENCE, lambda t: t[:1].expand(200, -1)),
            Change("one column for all", REFERENCE, lambda t: t[:, :1].expand(-1, 5)),
        ],
        "codebooks": [
            *values(tensor_changes(WIDE_FLOATS)),
            Change("no levels", ERROR, nothing_along(0)),
            Change("no codes", ERROR, nothing_along(1)),
            Change("one code for all", REFERENCE, lambda t: t[:, :1].expand(-1, 4, -1)),
        ],
    }
    words = scalars("x", None, 3, "")

    def both(x: torch.Tensor, codebooks: torch.Tensor) -> Any:
        return torch.ops.crs_fast.residual_lookup(x, codebooks, True, True)

    def statistics(x: torch.Tensor, codebooks: torch.Tensor) -> Any:
        return torch.ops.crs_fast.residual_statistics(x, codebooks, True)[:2]

    flat = {
        name: [
            c
            for c in listed
            if c.label not in ("None", "a string", "a dict", "numpy", "list", "sparse",
                               "device meta", "inference tensor")
        ]
        for name, listed in changes.items()
    }  # fmt: skip
    return [
        Call("residual_lookup", ops.residual_lookup, lambda: {**arguments(), "precision": "exact"},
             {**changes, "precision": words}, lookup),
        Call("residual_codes", ops.residual_codes, lambda: {**arguments(), "precision": "exact"},
             {**changes, "precision": words}, lambda **a: lookup(**a)[0]),
        Call("residual_statistics",
             lambda **a: ops.residual_statistics(**a)[:2],
             lambda: {**arguments(), "precision": "exact"}, {**changes, "precision": words},
             lookup),
        Call("beam_lookup", ops.beam_lookup, lambda: {**arguments(), "beams": 1},
             {**changes, "beams": scalars(0, -1, 1.5, "x", None)}, lookup),
        Call("torch.ops.residual_lookup", both, arguments, flat, lookup),
        Call("torch.ops.residual_statistics", statistics, arguments, flat, lookup),
    ]  # fmt: skip


def collision_calls() -> list[Call]:
    generator = np.random.default_rng(0)

    def arguments() -> dict[str, Any]:
        rng = np.random.default_rng(0)
        return dict(
            x=rng.standard_normal((4, 3)), books=rng.standard_normal((2, 3, 3)),
            sids=np.array([[0, 1], [0, 1], [2, 0], [1, 1]]), groups=[np.array([0, 1])],
            occupied=np.array([[2, 2]]),
        )  # fmt: skip

    def array(*dtypes: Any) -> list[Change]:
        return [
            *(
                Change(f"dtype {np.dtype(d)}", ERROR, lambda a, d=d: a.astype(d))
                for d in (np.float64, np.float32, np.int64, np.int32, np.uint8)
                if d not in dtypes
            ),
            Change("a list", ERROR, lambda a: a.tolist()),
            Change("None", ERROR, lambda a: None),
            Change("a tensor", ERROR, torch.from_numpy),
            Change("no axis", ERROR, lambda a: a.reshape(-1)[0].reshape(())),
            Change("one axis less", ERROR, lambda a: a[0]),
            Change("one axis more", ERROR, lambda a: a[None]),
            Change("one column less", ERROR, lambda a: a[..., :-1]),
            Change("strided", "same", lambda a: np.stack([a, a], -1)[..., 0]),
            Change("columns first", "same", np.asfortranarray),
        ]

    def at(index: tuple[int, ...], value: Any) -> Callable[[np.ndarray], np.ndarray]:
        def make(a: np.ndarray) -> np.ndarray:
            a = a.copy()
            a[index] = value
            return a

        return make

    del generator
    return [
        Call("place_colliding", lambda **a: torch.from_numpy(ops.place_colliding(**a)), arguments,
             aliases={"books": ("books", "x")}, changes={
            "x": [*array(np.float64), Change("NaN", ERROR, at((0, 0), NAN)),
                  Change("inf", ERROR, at((0, 0), INF))],
            "books": [*array(np.float64), Change("NaN", ERROR, at((0, 0, 0), NAN)),
                      Change("no levels", ERROR, lambda a: a[:0]),
                      Change("no codes", ERROR, lambda a: a[:, :0]),
                      Change("no dimensions", ERROR, lambda a: a[..., :0])],
            "sids": [*array(np.int64), Change("-1", ERROR, at((0, 0), -1)),
                     Change("K", ERROR, at((0, 0), 3)), Change("huge", ERROR, at((0, 0), HUGE))],
            "occupied": [*array(np.int64), Change("-1", ERROR, at((0, 0), -1)),
                         Change("K", ERROR, at((0, 0), 3)),
                         Change("repeated", ERROR, lambda a: np.concatenate([a, a, a])),
                         Change("more than there are", ERROR, lambda a: np.tile(a, (9, 1)))],
            "groups": [
                Change("a list of lists", ERROR, lambda g: [[0, 1]]),
                Change("an empty group", ERROR, lambda g: [np.empty(0, np.int64)]),
                Change("floats", ERROR, lambda g: [np.array([0.0, 1.0])]),
                Change("two axes", ERROR, lambda g: [np.array([[0, 1]])]),
                Change("-1", ERROR, lambda g: [np.array([-1, 0])]),
                Change("N", ERROR, lambda g: [np.array([0, 4])]),
                Change("one row twice", ERROR, lambda g: [np.array([0, 0])]),
                Change("two groups with one row", ERROR, lambda g: [g[0], g[0]]),
                Change("rows of two SIDs", ERROR, lambda g: [np.array([0, 2])]),
            ],
        }),
    ]  # fmt: skip


def text_calls() -> list[Call]:
    def texts(*words: str) -> tuple[torch.Tensor, torch.Tensor]:
        whole = "".join(words).encode()
        ends = torch.tensor([0, *map(len, words)]).cumsum(0)
        return torch.tensor(list(whole), dtype=torch.uint8), ends

    def arguments() -> dict[str, Any]:
        text, offsets = texts("one", "two", "three", "four")
        return dict(text=text, offsets=offsets)

    def finding() -> dict[str, Any]:
        known = arguments()
        wanted, wanted_offsets = texts("two", "none")
        table, _ = ops.text_table(**known)
        return {**known, "table": table, "wanted": wanted, "wanted_offsets": wanted_offsets}

    def other_table(*words: str) -> torch.Tensor:
        return ops.text_table(*texts(*words))[0]

    text = tensor_changes([torch.uint8])
    offsets = [
        *tensor_changes([torch.int64]),
        Change("do not begin at 0", ERROR, filled(1, (0,))),
        Change("end past the text", ERROR, filled(1 << 40)),
        Change("end before it", ERROR, filled(1)),
        Change("go down", ERROR, filled(9, (1,))),
        Change("negative", ERROR, filled(-5, (1,))),
        Change("none", ERROR, nothing_along(0)),
    ]
    table = [
        *tensor_changes([torch.int64]),
        Change("half", ERROR, lambda t: t[: len(t) // 2]),
        Change("full", ERROR, lambda t: torch.full_like(t, 1)),
        Change("random", ERROR, lambda t: t * 0 - 1),
        Change("of other texts", ERROR, lambda _: other_table("a", "b", "c", "d")),
        Change("of more texts", ERROR, lambda _: other_table("a", "b", "c", "d", "e")),
        Change("written to", ERROR, lambda t: t.fill_(-1)),
        Change("zeros", ERROR, torch.zeros_like),
    ]
    names = {n: ("text and offsets", "texts") for n in ("text", "offsets")}
    wanted = {n: ("wanted and wanted_offsets",) for n in ("wanted", "wanted_offsets")}
    positions = text_reference.text_find
    del positions
    return [
        Call("text_table", lambda **a: ops.text_table(**a)[1], arguments,
             {"text": [*text, Change("longer", ERROR, longer(0))], "offsets": offsets},
             aliases=names),
        Call("text_find", ops.text_find, finding,
             {"text": [*text, Change("another", ERROR, lambda t: t.flip(0))], "offsets": offsets,
              "table": table, "wanted": [*text, Change("longer", ERROR, longer(0))],
              "wanted_offsets": offsets}, aliases={**names, **wanted}),
    ]  # fmt: skip


def item_id_calls() -> list[Call]:
    """The ops that change the ids beside a trie."""
    int64 = tensor_changes([torch.int64])
    any_dtype = [c for c in tensor_changes([]) if not c.label.startswith("dtype")]
    ranges = [
        Change("negative", ERROR, filled(-1, (0,))),
        Change("past the values", ERROR, filled(1 << 40)),
        Change("one more", ERROR, longer(0)),
    ]
    return [
        Call("number_find", ops.number_find,
             lambda: dict(numbers=torch.tensor([7, 3, 5]), wanted=torch.tensor([5, 6])),
             {"numbers": tensor_changes([torch.int32, torch.int64]), "wanted": int64}),
        Call("splice", ops.splice,
             lambda: dict(values=torch.arange(6), begin=torch.tensor([1, 4]),
                          end=torch.tensor([2, 4]), added=torch.tensor([8, 9]),
                          bounds=torch.tensor([0, 0, 2]), shift=torch.tensor([0, 1, 2])),
             {"values": int64, "added": any_dtype, "begin": [*int64, *ranges],
              "end": [*int64, *ranges], "bounds": [*int64, *ranges],
              "shift": [c for c in int64 if c.label != "None"]},
             aliases={name: ("begin and end", "bounds", "end", "added", "values")
                      for name in ("begin", "end", "bounds")}),
    ]  # fmt: skip


def attention_calls() -> list[Call]:
    batch, heads, groups, beams, width, prompt, slots, depth = 2, 4, 2, 3, 8, 5, 6, 2

    def arguments() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        shapes = (batch, heads, beams, width), *[(batch, groups, prompt + slots, width)] * 2
        query, key, value = (torch.randn(s, generator=generator) for s in shapes)
        ancestors = torch.arange(beams * depth).view(beams, depth).expand(batch, -1, -1).clone()
        mask = torch.ones(batch, prompt, dtype=torch.bool)
        return dict(
            query=query, key=key, value=value, ancestors=ancestors, prompt_length=prompt,
            prompt_mask=mask, scale=0.5, softcap=None,
        )  # fmt: skip

    floats = [c for c in tensor_changes(FLOATS) if c.label != "dtype float64"]
    states = [
        *floats,
        Change("one request more", ERROR, longer(0)),
        Change("one dimension less", ERROR, shorter(3)),
    ]
    keys = [*states, Change("float64", ERROR, lambda t: t.double()),
            Change("one head less", ERROR, shorter(1)),
            Change("one position less", ERROR, shorter(2))]  # fmt: skip
    ancestors = [
        *tensor_changes([torch.int64]),
        Change("-1", ERROR, filled(-1)),
        Change("past the slots", ERROR, filled(slots)),
        Change("huge", ERROR, filled(HUGE)),
        Change("one beam more", ERROR, longer(1)),
        Change("one request more", ERROR, longer(0)),
        Change("none", REFERENCE, nothing_along(2)),
    ]
    prompt_mask = [
        *(c for c in tensor_changes([torch.bool]) if c.label not in ("None",)),
        Change("one position less", ERROR, shorter(1)),
        Change("None", REFERENCE, lambda _: None),
    ]
    changes: dict[str, list[Change]] = {
        "query": [*states, Change("three heads", ERROR, shorter(1))],
        "key": keys,
        "value": [c for c in keys if c.label not in ("float64", "one dimension less")],
        "ancestors": ancestors,
        "prompt_length": scalars(-1, prompt + slots + 1, HUGE, 1.5, "x", None),
        "prompt_mask": prompt_mask,
        "softcap": scalars(0.0, -1.0, NAN),
    }
    flat = {
        name: [
            c
            for c in listed
            if c.label not in ("None", "a string", "a dict", "numpy", "list", "sparse",
                               "device meta", "inference tensor")
        ]
        for name, listed in changes.items()
        if name not in ("prompt_length", "softcap")
    }  # fmt: skip
    aliases = {"query": ("heads", "key", "query"), "key": ("key", "value", "heads"),
               "prompt_length": ("prompt_length", "prompt_mask"),
               "ancestors": ("ancestors",)}  # fmt: skip
    return [
        Call("tree_attention", tree_attention, arguments, changes,
             attention_reference.tree_attention, aliases),
        Call("torch.ops.tree_attention",
             lambda **a: torch.ops.crs_fast.tree_attention(*a.values()), arguments, flat,
             attention_reference.tree_attention, aliases),
    ]  # fmt: skip


def head_calls() -> list[Call]:
    def arguments() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        hidden, weight, bias = (torch.randn(s, generator=generator) for s in ((3, 8), (20, 8), 20))
        return dict(
            hidden=hidden, weight=weight, bias=bias, scale=1.0, softcap=None, temperature=1.0
        )

    floats = tensor_changes([torch.float32])
    narrower = Change("one column less", ERROR, shorter(1))
    changes: dict[str, list[Change]] = {
        "hidden": [*floats, narrower, Change("no rows", REFERENCE, nothing_along(0)),
                   Change("NaN", REFERENCE, filled(NAN))],
        "weight": [*floats, narrower, Change("no tokens", ERROR, nothing_along(0))],
        "bias": [*(c for c in floats if c.label != "None"),
                 Change("one token less", ERROR, shorter(0)),
                 Change("None", REFERENCE, lambda _: None)],
        "scale": scalars(NAN, INF, "x", None),
        "softcap": scalars(0.0, -1.0, NAN, INF, "x"),
        "temperature": scalars(0.0, -1.0, NAN, INF, "x", None),
    }  # fmt: skip
    return [
        Call("vocab_logsumexp", ops.vocab_logsumexp, arguments, changes,
             normalizer_reference.vocab_logsumexp, {"hidden": ("hidden", "weight")}),
    ]  # fmt: skip


def _on_meta(arguments: dict[str, Any]) -> dict[str, Any]:
    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to("meta")
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(moved, value))
        return value

    return {name: moved(value) for name, value in arguments.items()}


def meta_calls() -> list[Call]:
    """Everything on meta: shapes come out, and nothing is read."""
    everything: list[tuple[str, Callable[..., Any], Callable[[], dict[str, Any]]]] = [
        ("trie_step", ops.trie_step, step_arguments),
        ("trie_mask", ops.trie_mask, mask_arguments),
        ("trie_walk", ops.trie_walk, lambda: dict(trie=trie_tensors(), codes=torch.tensor(PATHS))),
    ]
    return [
        Call(op, function, lambda a=arguments: _on_meta(a()),
             {"all arguments": [Change("on meta", META, lambda _: None)]})
        for op, function, arguments in everything
    ]  # fmt: skip
