"""`python -m benchmarks.serving --model DIR smollm2 --record`: turns per second and latency under
load. With these arguments it takes less than ten minutes, writes
benchmarks/results/serving_cpu.json and makes the table of docs/serving.md anew.

respond          one `Recommender.respond` at a time, with a cache per conversation
three calls      mode, items and words by three `model.generate` calls
engine           closed loop: so many conversations at once; the catalogue is swapped every
                 second while it runs
engine, open     open loop: turns that begin at random times
http             as engine, over loopback, against `crs-fast serve` (--url)
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import tables
from benchmarks.environment import commit, instruction_set, machine
from crs_fast.crs.recommender import Recommender
from crs_fast.serve import Engine

from .load import Memory, Record, closed_loop, every, open_loop
from .methods import Answered, Workload, by_engine, by_http, by_respond, by_three_calls
from .untrained import make_smollm2_directory

SMOLLM2 = "smollm2"
# Replies of a model that does not know when to end are as long as those of a trained one.
UNTRAINED = Workload(words=20, forces_mode=True)
COLUMNS = (
    "method", "clients", "turns_per_second", "cpu_ms_per_turn", "p50_ms", "p95_ms", "p99_ms",
    "turns", "wrong_items", "failures", "busy", "swaps", "warm_mib", "end_mib",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, print a table, write the rows."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.record and args.url:
        parser.error("--record keeps rows of an engine in this process; leave out --url")
    torch.set_num_threads(args.threads)
    device = "cuda" if args.device == "cuda" else "cpu"
    where = {
        **commit(), "device": device, "machine": machine(device), "isa": instruction_set(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": args.seconds,
    }  # fmt: skip
    rows: list[dict[str, Any]] = []
    for model in args.model:
        with _directory(model) as directory:
            recommender = Recommender.from_pretrained(directory, device=device).prepare()
        workload = UNTRAINED if model == SMOLLM2 else Workload()
        named = {"model": _name(model), "parameters": recommender.bundle.model.num_parameters()}
        for row in _measured(recommender, workload, args):
            rows.append({**named, **row, "load_average": os.getloadavg()[0], **where})
            print(json.dumps(rows[-1]), flush=True)
    print(table(rows))
    stored = tables.RESULTS / f"serving_{device}.json"
    for out in ([args.out] if args.out else []) + ([stored] if args.record else []):
        Path(out).write_text(json.dumps({"serving": rows}, indent=1) + "\n")
    if args.record:
        tables.write(tables.SERVING_PAGE)
    wrong = sum(row["wrong_items"] + row["failures"] for row in rows)
    return int(wrong > 0)


def _measured(
    recommender: Recommender, workload: Workload, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The rows of one model, each as soon as it is measured."""
    titles = recommender.titles.keys()
    if args.url:
        for clients in args.clients:
            method = by_http(args.url, workload)
            record = Record(lambda answer: titles >= set(answer.item_ids))
            row = closed_loop(method, record, clients, args.seconds)
            yield {"method": "http", "clients": clients, **row}
        return
    alone = min(args.seconds, args.baseline_seconds)
    for name, method in (
        ("respond", by_respond(recommender, workload)),
        ("three calls", by_three_calls(recommender, workload)),
    ):
        closed_loop(method, _any_item(titles), 1, 1.0)  # warm
        row = closed_loop(method, _any_item(titles), 1, alone)
        yield {"method": name, "clients": 1, **row}
    best = 0.0
    for clients in args.clients:
        row = _on_engine(recommender, workload, args, clients=clients)
        best = max(best, row["turns_per_second"])
        yield {"method": "engine", "clients": clients, **row}
    if args.open_load and best:
        rate = round(args.open_load * best, 2)
        row = _on_engine(recommender, workload, args, rate=rate)
        yield {"method": f"engine, open at {rate:g}/s", "clients": 0, **row}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        nargs="+",
        metavar="DIR",
        help="model directories; smollm2 is SmolLM2-135M with SIDs that it has not learned",
    )
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument(
        "--open-load",
        type=float,
        default=0.7,
        help="of the open loop, as a share of the turns per second of the best closed one; 0: none",
    )
    parser.add_argument("--seconds", type=float, default=35.0, help="of each run")
    parser.add_argument("--baseline-seconds", type=float, default=20.0)
    parser.add_argument("--swap", type=float, default=1.0, help="seconds between swaps; 0: none")
    parser.add_argument("--cache-mib", type=float, default=64.0, help="for past conversations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--url", help="of a running server, in place of an engine")
    parser.add_argument("--out", help="a JSON file for the rows")
    parser.add_argument(
        "--record", action="store_true", help="keep the rows and write the table of the docs"
    )
    return parser


@contextmanager
def _directory(model: str) -> Iterator[str]:
    """The model's directory, which is made where it is none."""
    if model != SMOLLM2:
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        yield str(make_smollm2_directory(Path(folder) / "model"))


def _name(model: str) -> str:
    """What a model is called in the results: the folder that the quickstart wrote, not its `model`
    inside."""
    if model == SMOLLM2:
        return "SmolLM2-135M, SIDs not learned"
    path = Path(model).resolve()
    return path.parent.name if path.name == "model" else path.name


def _any_item(titles: Any) -> Record:
    return Record(lambda answer: titles >= {*answer.item_ids, *answer.named})


def _on_engine(
    recommender: Recommender,
    workload: Workload,
    args: argparse.Namespace,
    *,
    clients: int = 0,
    rate: float = 0.0,
) -> dict[str, Any]:
    """A closed loop of `clients` or an open loop at `rate`, with swaps of the catalogue."""
    memory, versions = Memory(), {"0": recommender.titles.keys()}

    def is_right(answer: Answered) -> bool:
        return versions[str(answer.version)] >= {*answer.item_ids, *answer.named}

    cache_bytes = int(args.cache_mib * 2**20)
    with Engine(recommender, max_queue=1024, cache_bytes=cache_bytes) as engine:
        swap = _swapper(engine, recommender, versions)
        record, method = Record(is_right), by_engine(engine, workload)
        closed_loop(method, Record(is_right), 2, 1.0)  # warm
        with every(args.swap, swap), every(0.5, memory.note):
            if clients:
                row = closed_loop(method, record, clients, args.seconds)
            else:
                row = open_loop(method, record, rate, args.seconds)
        figures = engine.metrics
    names = (
        "illegal_items", "mean_admitted", "mean_step_rows", "chunks", "prompt_tokens",
        "cached_tokens", "completion_tokens", "conversation_bytes",
        *(name for name in figures if name.endswith(("p50", "p95"))),
    )  # fmt: skip
    inside = {name: round(figures[name], 2) for name in names}
    return {**row, **memory.row(), "swaps": len(versions) - 1, "engine": inside}


def _swapper(
    engine: Engine, recommender: Recommender, versions: dict[str, Any]
) -> Callable[[], None]:
    """Swaps between the whole catalogue and one that lacks some items, another lack each time."""
    ids, number = list(recommender.titles), count(1)

    def swap() -> None:
        n = next(number)
        made = recommender.with_catalogue(remove=ids[n % 7 :: 7] if n % 2 else ())
        versions[str(n)] = made.titles.keys()
        engine.swap(made, str(n))

    return swap


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; a column that no row has is left out."""
    names = [name for name in COLUMNS if any(name in row for row in rows)]
    lines = [names, ["---"] * len(names)]
    lines += [[str(row.get(name, "")) for name in names] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
