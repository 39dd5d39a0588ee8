"""`python -m benchmarks.serving --model DIR`: turns per second and latency under load.

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
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import commit, instruction_set, machine
from crs_fast.crs.recommender import Recommender
from crs_fast.serve import Engine

from .load import Memory, Record, closed_loop, every, open_loop
from .methods import Answered, by_engine, by_http, by_respond, by_three_calls

COLUMNS = (
    "method", "clients", "turns_per_second", "cpu_ms_per_turn", "p50_ms", "p95_ms", "p99_ms",
    "turns", "wrong_items", "failures", "busy", "swaps", "warm_mib", "end_mib",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for, print a table, write the rows."""
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = "cuda" if args.device == "cuda" else "cpu"
    recommender = Recommender.from_pretrained(args.model, device=device).prepare()
    rows: list[dict[str, Any]] = []

    def add(method: str, clients: int, row: dict[str, Any]) -> None:
        rows.append({"method": method, "clients": clients, **row})
        print(json.dumps(rows[-1]), flush=True)

    titles = recommender.titles.keys()
    if args.url:
        for clients in args.clients:
            record = Record(lambda answer: titles >= set(answer.item_ids))
            add("http", clients, closed_loop(by_http(args.url), record, clients, args.seconds))
    else:
        alone = min(args.seconds, args.baseline_seconds)
        for name, method in (
            ("respond", by_respond(recommender)),
            ("three calls", by_three_calls(recommender)),
        ):
            closed_loop(method, _any_item(titles), 1, 1.0)  # warm
            add(name, 1, closed_loop(method, _any_item(titles), 1, alone))
        for clients in args.clients:
            add("engine", clients, _on_engine(recommender, args, clients=clients))
        for rate in args.rates:
            add(f"engine, open at {rate:g}/s", 0, _on_engine(recommender, args, rate=rate))
    print(table(rows))
    if args.out:
        described = {
            **commit(), "machine": machine(device), "isa": instruction_set(device),
            "torch": torch.__version__, "model": args.name or Path(args.model).name,
            "load_average": os.getloadavg(), "rows": rows,
        }  # fmt: skip
        Path(args.out).write_text(json.dumps(described, indent=1) + "\n")
    wrong = sum(row["wrong_items"] + row["failures"] for row in rows)
    return int(wrong > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a model directory")
    parser.add_argument("--name", help="what the model is called in the results")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="turns per second")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each run")
    parser.add_argument("--baseline-seconds", type=float, default=30.0)
    parser.add_argument("--swap", type=float, default=1.0, help="seconds between swaps; 0: none")
    parser.add_argument("--cache-mib", type=float, default=16.0, help="for past conversations")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--url", help="of a running server, in place of an engine")
    parser.add_argument("--out", help="a JSON file for the rows")
    return parser


def _any_item(titles: Any) -> Record:
    return Record(lambda answer: titles >= {*answer.item_ids, *answer.named})


def _on_engine(
    recommender: Recommender, args: argparse.Namespace, *, clients: int = 0, rate: float = 0.0
) -> dict[str, Any]:
    """A closed loop of `clients` or an open loop at `rate`, with swaps of the catalogue."""
    memory, versions = Memory(), {"0": recommender.titles.keys()}

    def is_right(answer: Answered) -> bool:
        return versions[str(answer.version)] >= {*answer.item_ids, *answer.named}

    cache_bytes = int(args.cache_mib * 2**20)
    with Engine(recommender, max_queue=1024, cache_bytes=cache_bytes) as engine:
        swap = _swapper(engine, recommender, versions)
        record, method = Record(is_right), by_engine(engine)
        closed_loop(method, Record(is_right), max(1, clients), 1.0)  # warm
        with every(args.swap, swap), every(0.5, memory.note):
            if clients:
                row = closed_loop(method, record, clients, args.seconds)
            else:
                row = open_loop(method, record, rate, args.seconds)
        figures = engine.metrics
    names = (
        "illegal_items", "mean_admitted", "mean_step_rows", "prompt_tokens", "cached_tokens",
        "completion_tokens", "conversation_bytes",
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
