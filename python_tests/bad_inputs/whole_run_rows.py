"""The rows of settings, quantizers, readers and whole runs. Only arguments are checked: no row
trains or reads a model."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from crs_fast.crs import (
    SidConfig,
    TrainConfig,
    evaluate,
    items_from,
    load_backbone,
    load_bundle,
    load_dataset,
    make_catalogue,
    make_model_directory,
    save_bundle,
    train_recommender,
)
from crs_fast.crs.data.dialogue import CrsDataset
from crs_fast.quantize import (
    RQVAE,
    ResidualQuantizer,
    RQKMeans,
    RQKMeansConfig,
    RQVAEConfig,
    build_sids,
    encode_texts,
    load_embeddings,
    quantization_report,
    sinkhorn_codes,
)
from python_tests.crs.tiny_system import ITEMS, dialogues, system

from .ops_rows import HUGE, INF, NAN
from .public_rows import recommender
from .table import ERROR, SAME, Call, Change, filled, longer, scalars, tensor_changes

NOWHERE = "/nowhere/of/all"


def counts(default: int, *also: Any) -> list[Change]:
    """Of a setting that is a whole number, at least 1."""
    return [
        *scalars(0, -1, 1.5, "x", True, [3], NAN, *also),
        Change("numpy", SAME, lambda _: np.int64(default)),
    ]


def numbers(*also: Any) -> list[Change]:
    """Of a setting that is a real number, which must not be negative."""
    return scalars("x", -1.0, NAN, -INF, True, [0.5], *also)


def seeds(default: int = 0) -> list[Change]:
    return [
        *scalars(1.5, "x", None, True, HUGE * 8),
        Change("numpy", SAME, lambda _: np.int32(default)),
    ]


FLAG = scalars("x", "false", 2, 0.5, None, [True])
PATHS = scalars(3, None, "", b"x", "a\0b", [NOWHERE])


def settings_calls() -> list[Call]:
    sizes = {"levels": counts(2, None, 1 << 31), "codes": counts(3, None, 1 << 31),
             "seed": seeds(), "input_dim": counts(4)}  # fmt: skip

    def of(config: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **a: config(**a).to_json_string()

    sized = dict(levels=2, codes=3, seed=0, input_dim=4)
    training = dict(epochs=3, learning_rate=0.5, embedding_lr_ratio=1.0, max_length=768)
    whole = [c for c in scalars("x", -1, 0.5, True, None)]
    return [
        Call("RQKMeansConfig", of(RQKMeansConfig),
             lambda: dict(sized, iterations=5, batch_size=7, epochs=3),
             {**sizes, "iterations": [*whole, Change("numpy", SAME, lambda _: np.int16(5))],
              "batch_size": counts(7), "epochs": whole}),
        Call("RQVAEConfig", of(RQVAEConfig),
             lambda: dict(sized, latent_dim=3, batch_size=7, epochs=3, lr=0.5),
             {**sizes, "latent_dim": counts(3, None), "batch_size": counts(7, None),
              "epochs": counts(3), "reset_every": whole, "patience": whole,
              "warmup": numbers(None, 1.5), "commitment": numbers(None, INF),
              "weight_decay": numbers(None, INF), "sinkhorn": numbers(None, INF),
              "decay": numbers(None, 1.0),
              "lr": [*numbers(None, 0.0, INF), Change("numpy", SAME, lambda _: np.float32(0.5))],
              "codebook_update": scalars("x", None, 3, ["ema"]),
              "gradient": scalars("x", None, 3, ["rotation"]),
              "hidden_dims": [*scalars("x", None, 3, [0], [-1], [1.5], ["x"], [None], [True])]}),
        Call("SidConfig", lambda **a: [*a, SidConfig(**a)],
             lambda: dict(levels=2, codes=3, method="rqvae", encoder=None, seed=0,
                          signals=("text",)),
             {"levels": counts(2, None), "codes": counts(3, None), "seed": seeds(),
              "method": scalars("x", None, 3, ["rqvae"]), "encoder": scalars(3, "", [], b"x"),
              "signals": scalars("text", (), None, 3, ("x",), ["text", 3], (["text"],))}),
        Call("TrainConfig", lambda **a: [*a, TrainConfig(**a)], lambda: dict(training), {
            **{name: [*numbers(None, 0.0, INF)]
               for name in ("epochs", "learning_rate", "embedding_lr_ratio", "sid_weight")},
            "max_minutes": numbers(0.0), "max_tokens": numbers(0, INF),
            **{name: numbers(None, 0.0, INF) for name in ("tokens_per_batch", "lora_alpha")},
            "accumulate": counts(1, None)[:-1], "logging_steps": counts(10, None)[:-1],
            "max_length": counts(768, None), "lora_rank": counts(16)[:-1],
            "save_steps": whole, "seed": [*seeds()[:-1], *scalars(-1, 1 << 32)],
            "weight_decay": numbers(None, INF), "max_grad_norm": numbers(None),
            **{name: numbers(None, 1.5) for name in ("warmup_ratio", "code_noise")},
            **{name: numbers(None, 1.0) for name in
               ("adam_beta2", "lora_dropout", "context_dropout", "sid_smoothing")},
            "embeddings": scalars("x", None, 3, ["all"]),
            **{name: FLAG for name in ("qlora", "every_mention", "packed",
                                       "gradient_checkpointing", "compile_layers")},
            "bf16": [c for c in FLAG if c.label != "None"],
        }, aliases={"qlora": ("qlora", "lora_rank")}),
    ]  # fmt: skip


@functools.cache
def fitted() -> RQKMeans:
    return RQKMeans(levels=2, codes=6, iterations=2).fit(vectors())


def vectors() -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def quantizer_calls() -> list[Call]:
    """Calls whose right arguments are right, but which would train with them, are only changed."""
    floats = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    rows = tensor_changes(floats)
    rows = [c for c in rows if c.label not in ("parameter", "inference tensor", "negative view")]
    wrong = [c for c in rows if c.verdict == ERROR]
    values = [Change("NaN", ERROR, filled(NAN)), Change("inf", ERROR, filled(INF))]
    narrow = Change("one dimension less", ERROR, lambda t: t[:, :3])
    none = Change("no rows", ERROR, lambda t: t[:0])
    taken = ("numpy", "list", "sparse", "one axis less")
    fields = {"levels": counts(2, None)[:-1], "codes": counts(3, None)[:-1],
              "seed": seeds()[:-1], "level": scalars(3)}  # fmt: skip
    aliases = {"level": ("fields",), "embeddings": ("embeddings", "x")}

    def made(kind: Callable[..., Any]) -> Callable[..., Any]:
        return lambda **a: kind(**a).config.to_json_string()

    def report(**a: Any) -> Any:
        return [*quantization_report(**a).items()][:6]

    integers = tensor_changes([torch.uint8, torch.int16, torch.int32, torch.int64],
                              takes_lists=True, moves=True)  # fmt: skip
    codes = [c for c in integers if c.label not in ("parameter", "inference tensor")] + [
        Change("-1", ERROR, filled(-1)), Change("K", ERROR, filled(6)),
        Change("one row more", ERROR, longer(0)), Change("a level less", ERROR, lambda t: t[:, :1]),
        none,
    ]  # fmt: skip
    return [
        Call("sinkhorn_codes", sinkhorn_codes,
             lambda: dict(x=vectors(), codebook=vectors()[:5], epsilon=0.1, iterations=5),
             {"x": [*rows, *values, narrow, Change("1e30", ERROR, filled(1e30))],
              "codebook": [*rows, *values, narrow, Change("no codes", ERROR, lambda t: t[:0])],
              "epsilon": numbers(None, 0.0, INF), "iterations": counts(5, None)},
             aliases={"x": ("x must", "x and", "codebook")}),
        Call("RQVAE", made(RQVAE), dict,
             {**fields, "config": scalars("x", 3, {"levels": 3}),
              "lr": numbers(None, 0.0), "hidden_dims": scalars("x", 3, [0])}, aliases=aliases),
        Call("RQKMeans", made(RQKMeans), dict, {**fields, "config": scalars("x", 3, RQVAEConfig())},
             aliases=aliases),
        Call("ResidualQuantizer", made(ResidualQuantizer), dict,
             {**fields, "config": scalars("x", 3)}, aliases=aliases),
        Call("RQVAE.fit", lambda x: RQVAE(levels=2, codes=3).fit(x), lambda: dict(x=vectors()),
             {"x": [*(c for c in wrong if not c.label.startswith("device")
                      and c.label not in (*taken[:2], "dtype bool")), *values, none]}),
        Call("build_sids", build_sids,
             lambda: dict(embeddings=vectors(), levels=2, codes=6, method="rqkmeans"),
             {"embeddings": [*(c for c in wrong if c.label not in (*taken[:2], "device meta")),
                             *values, none,
                             Change("too many rows", ERROR, lambda t: t.repeat(4, 1))],
              "levels": counts(2, None, 1 << 31)[:-1], "codes": counts(3, None, 1 << 31)[:-1],
              "method": scalars("x", None, 3, ["rqvae"]), "seed": seeds()[:-1],
              "progress": FLAG}, aliases=aliases),
        Call("quantization_report", report,
             lambda: dict(x=vectors(), quantizer=fitted(), codes=fitted().encode(vectors()),
                          sids=fitted().encode(vectors())),
             {"x": [*(c for c in rows if c.label not in ("numpy", "list", "strided")), *values,
                    none, narrow],
              "quantizer": [*scalars(None, "x", 3),
                            Change("unfitted", ERROR, lambda _: RQKMeans(levels=2, codes=6))],
              "codes": codes, "sids": codes}),
    ]  # fmt: skip


def text_calls() -> list[Call]:
    def encoder(texts: list[str]) -> Any:
        return [[float(len(text)), 1.0] for text in texts]

    answers: dict[str, Any] = {
        "NaN": [[NAN, 1.0]] * 2, "too few": [[1.0]], "one axis": [1.0, 2.0], "text": ["a", "b"],
        "None": None, "no width": [[], []], "ragged": [[1.0], [1.0, 2.0]], "inf": [[INF]] * 2,
    }  # fmt: skip
    return [
        Call("encode_texts", encode_texts,
             lambda: dict(texts=["one", "three"], encoder=encoder, batch_size=2, device=None),
             {"texts": scalars("x", 3, None, [3], [None], ["a", b"b"], [["a"]]),
              "encoder": [*scalars(3, [], "", b"x"),
                          *(Change(f"gives {name}", ERROR, lambda _, a=answer: lambda texts: a)
                            for name, answer in answers.items())],
              "batch_size": counts(2, None), "device": scalars("x", [], 1.5), "progress": FLAG}),
    ]  # fmt: skip


@functools.cache
def folder() -> Path:
    """Small files to read, and broken ones."""
    path = Path(tempfile.mkdtemp(prefix="crs-fast-rows-"))
    atexit.register(shutil.rmtree, path)
    np.save(path / "whole.npy", np.ones((2, 3), np.float32))
    np.save(path / "integers.npy", np.ones((2, 3), np.int64))
    np.save(path / "one_axis.npy", np.ones(3, np.float32))
    (path / "half.npy").write_bytes((path / "whole.npy").read_bytes()[:-5])
    (path / "empty.npy").write_bytes(b"")
    (path / "text.safetensors").write_text("text")
    (path / "x.csv").write_text("1,2")
    (path / "occupied").mkdir()
    (path / "occupied" / "notes.txt").write_text("of another program")
    return path


def reader_calls() -> list[Call]:
    def read(path: Any, **a: Any) -> Any:
        return np.asarray(load_embeddings(path, **a)[0]).tolist()

    files = [
        Change(name, ERROR, lambda _, n=name: folder() / n)
        for name in ("integers.npy", "one_axis.npy", "half.npy", "empty.npy", "text.safetensors",
                     "x.csv", "occupied", "none.npy", "none.parquet", "none.safetensors")
    ]  # fmt: skip
    in_text = {"path": ("load_embeddings",), "name_or_path": ("load_dataset",)}
    row = {"item_id": "a", "title": "A"}
    tables = [
        Change("one id twice", ERROR, lambda _: [row, row]),
        Change("no title", ERROR, lambda _: [{"item_id": "a"}]),
        Change("no id", ERROR, lambda _: [{"title": "a"}]),
    ]
    return [
        Call("load_embeddings", read, lambda: dict(path=folder() / "whole.npy"),
             {"path": [*PATHS, *scalars(NOWHERE + ".npy"), *files],
              "key": scalars(3, ["x"]), "ids": scalars(3, "x", ["x"])}, aliases=in_text),
        Call("load_dataset", load_dataset, lambda: dict(name_or_path=NOWHERE),
             {"name_or_path": [*scalars("", NOWHERE, {}, {"items": []}, {"x": [], "items": []}),
                               Change("no data", ERROR, lambda _: folder() / "occupied")],
              "on_error": scalars("x", None, 3)},
             aliases={"name_or_path": ("name_or_path", "tables", "load_dataset")}),
        Call("items_from", lambda table: len(items_from(table)), lambda: dict(table=[row]),
             {"table": tables}, aliases={"table": ("items",)}),
        Call("load_backbone", load_backbone, lambda: dict(name=NOWHERE),
             {"name": [*PATHS, *scalars("tiny")],
              "dtype": scalars("x", 3, torch.int64, [torch.float32]), "four_bit": FLAG,
              "trust_remote_code": FLAG}),
        Call("load_bundle", load_bundle, lambda: dict(path=NOWHERE),
             {"path": [*PATHS, *scalars(NOWHERE),
                       Change("no bundle", ERROR, lambda _: folder() / "occupied")],
              "quantizer": scalars(3, ["x"], True),
              "dtype": scalars("x", 3, torch.int64), "device": scalars("x", [], 1.5),
              "trust_remote_code": FLAG}, aliases={"path": ("load_bundle",)}),
    ]  # fmt: skip


DATA = CrsDataset("rows", ITEMS, {"train": tuple(dialogues(4)), "test": tuple(dialogues(2))})
NO_TRAIN = CrsDataset("rows", ITEMS, {"test": tuple(dialogues(2))})
NO_ITEMS = CrsDataset("rows", (), DATA.splits)
OBJECTS = scalars("x", 3, None, {})


def run_calls() -> list[Call]:
    target = Path(tempfile.gettempdir()) / "crs-fast-rows-of-no-run"

    def nothing_written(run: Callable[..., Any]) -> Callable[..., Any]:
        def call(**a: Any) -> Any:
            try:
                return run(**a)
            finally:
                assert not target.exists()

        return call

    def parts() -> dict[str, Any]:
        model, tokenizer, trie, vocab, control, _ = parts_of_system()
        return dict(path=target, backbone=(model, tokenizer), trie=trie, vocab=vocab,
                    control=control, items=ITEMS)  # fmt: skip

    def directory() -> dict[str, Any]:
        model, tokenizer, trie, vocab, control, _ = parts_of_system()
        return dict(path=target, model=model, tokenizer=tokenizer, trie=trie, vocab=vocab,
                    items=list(ITEMS), control=control)  # fmt: skip

    occupied = Change("holds other files", ERROR, lambda _: folder() / "occupied")
    fewer = Change("one item less", ERROR, lambda items: items[:-1])
    pairs = [*OBJECTS, *scalars((), ("x", "y"), ("x",)),
             Change("exchanged", ERROR, lambda pair: pair[::-1])]  # fmt: skip
    texts = torch.ones(len(ITEMS), 4)
    items = [
        *OBJECTS[:3],
        fewer,
        *scalars([3] * 8),
        Change("one twice", ERROR, lambda i: [*i[:-1], i[0]]),
    ]
    paths = [*PATHS, occupied]
    same = {"items": ("items", "item table", "item_id"), "trie": ("trie",),
            "item_ids": ("items",)}  # fmt: skip
    return [
        Call("make_catalogue", make_catalogue,
             lambda: dict(dataset=DATA, config=SidConfig(2, 6, "rqkmeans"), texts=texts),
             {"dataset": [*OBJECTS, Change("no items", ERROR, lambda _: NO_ITEMS)],
              "config": scalars("x", 3, {}), "held": scalars("i1", 3, None), "progress": FLAG,
              "texts": [Change("NaN", ERROR, filled(NAN)), longer_texts(),
                        *scalars("x", 3, [["x"]]), Change("integers", ERROR, torch.Tensor.long),
                        Change("one axis less", ERROR, lambda t: t[0])]},
             aliases={"dataset": ("dataset", "texts")}),
        Call("train_recommender", nothing_written(train_recommender),
             lambda: dict(dataset=DATA, backbone=parts()["backbone"], output_dir=target),
             {"dataset": [*OBJECTS, Change("no train split", ERROR, lambda _: NO_TRAIN)],
              "backbone": pairs, "output_dir": paths, "sids": scalars("x", 3, {}),
              "titles": FLAG, "training": scalars("x", 3, {}), "catalogue": scalars("x", 3, {}),
              "resume": FLAG, "progress": FLAG}),
        Call("evaluate", evaluate, lambda: dict(recommender=recommender(), dataset=DATA),
             {"recommender": OBJECTS,
              "dataset": [*OBJECTS, Change("no train split", ERROR, lambda _: NO_TRAIN)],
              "split": scalars("valid", "x", 3, None, ["test"]), "num_beams": counts(5, None)[:-1],
              "normalize": scalars("x", 3, None), "replies": FLAG, "progress": FLAG,
              "limit": counts(2)[:-1], "baselines": scalars("x", 3, [3], {"x": 3}),
              "join": scalars("x", 3, 0.5), "max_new_tokens": counts(5, None)[:-1]},
             aliases={"split": ("split",)}),
        Call("save_bundle", nothing_written(save_bundle), parts,
             {"path": paths, "backbone": pairs, "trie": OBJECTS, "vocab": OBJECTS,
              "control": OBJECTS, "items": items, "quantizer": scalars(3, ["x"]),
              "max_length": counts(768, None)[:-1], "more": scalars("x", 3)}, aliases=same),
        Call("make_model_directory", nothing_written(make_model_directory), directory,
             {"path": paths, "model": OBJECTS, "tokenizer": OBJECTS, "trie": OBJECTS,
              "vocab": OBJECTS, "items": [fewer, *items[-1:]], "control": scalars("x", 3),
              "quantizer": scalars("x", 3), "encoder": scalars(3, [], ""),
              "max_length": [*counts(768, None)[:-1], *scalars(1)]},
             aliases={**same, "model": ("backbone",), "tokenizer": ("backbone",),
                      "vocab": ("vocab",)}),
    ]  # fmt: skip


def longer_texts() -> Change:
    return Change("one row more", ERROR, longer(0))


@functools.cache
def parts_of_system() -> Any:
    return system()


def calls() -> list[Call]:
    return [
        *settings_calls(),
        *quantizer_calls(),
        *text_calls(),
        *reader_calls(),
        *run_calls(),
    ]
