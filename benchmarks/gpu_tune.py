"""Time the designs between which only a GPU can choose, and name the winners:

    python benchmarks/gpu_tune.py [--device cuda|cpu] [--size full|toy] [--seconds N] [--out FILE]
        [op ...]

The designs of an op (`crs_fast.ops.designs`) run interleaved in one process, on each of its
workloads, after a check that they give the same result. A design that fails on a workload is out.
An op's winner has the lowest geometric mean of its times. Prints tables and, as the last line,
JSON; `--out` writes it to a file as each workload ends. On the CPU, where Triton must interpret
(TRITON_INTERPRET=1), only the checks mean anything.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if any(argument in ("cpu", "--device=cpu") for argument in sys.argv):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when triton is imported

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import environment
from benchmarks.cases import attention, beams, head, lookup, training
from benchmarks.run import measure
from crs_fast.decode import Prompt, TreeModel, recommend
from crs_fast.decode.lm.head import LOGITS_AT_ONCE, NORMALIZERS
from crs_fast.decode.lm.joint_linear import PROJECTIONS, lay_together
from crs_fast.decode.lm.recorded_rows import RecordedRows
from crs_fast.decode.lm.recordings import can_record
from crs_fast.decode.lm.token_rows import TokenRows
from crs_fast.ops.codebook import eager as codebook_eager
from crs_fast.ops.codebook import triton as codebook
from crs_fast.ops.codebook import triton_statistics
from crs_fast.ops.codebook.dispatch import SUMS
from crs_fast.ops.designs import Choice
from crs_fast.ops.tree_attention import triton as tree_attention
from crs_fast.ops.vocab_logsumexp import triton as vocab_logsumexp


@dataclass(frozen=True)
class Contest:
    """One workload of an op, made for a size and a device: what it is, and one call of it.
    `tolerance`: how far the numbers of two designs may be apart, or which share of codes."""

    op: str
    choice: Choice[Any]
    make: Callable[[str, str], tuple[str, Callable[[], torch.Tensor]]]
    tolerance: float = 0.0

    def check(self, got: torch.Tensor, expected: torch.Tensor) -> None:
        """
        Raises:
            AssertionError: the results are further apart.
        """
        if not expected.is_floating_point():
            differ = float((got != expected).float().mean())
            assert differ <= self.tolerance, f"{differ:.2g} of the codes differ"
            return
        torch.testing.assert_close(got, expected, atol=self.tolerance, rtol=self.tolerance)


def residual_lookup(
    rows: int, dim: int, levels: int, codes: int, exact: bool, size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    if size == "toy":
        rows, dim, levels, codes = 20, min(dim, 70), 2, 20
    x, books = lookup.data(rows, dim, levels, codes, device)
    kind = "exact" if exact else "fast"
    return (
        f"{rows} x {dim}, {levels} levels x {codes}, {kind}",
        lambda: codebook.lookup(x, books, exact, want_residual=False)[0],
    )


def residual_statistics(
    rows: int, dim: int, levels: int, codes: int, size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    """Exact codes, and the sums of what each was given, as a step of k-means or of moving averages
    takes them."""
    if size == "toy":
        rows, dim, levels, codes = 20, 9, 2, 20
    x, books = lookup.data(rows, dim, levels, codes, device)

    def run() -> torch.Tensor:
        chosen = codebook.lookup(x, books, exact=True, want_residual=not SUMS.now)[0]
        if SUMS.now:
            return triton_statistics.statistics(x, books, chosen)[2]
        return codebook_eager.statistics(x, books, chosen)[1]

    return f"{rows} x {dim}, {levels} levels x {codes}", run


def attend(
    shape: tuple[int, ...], size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    inputs = attention.Inputs(attention.SHAPES["toy"] if size == "toy" else shape, device)
    arguments = (*inputs.tensors, inputs.prompt, None, inputs.query.shape[3] ** -0.5, None)
    return inputs.name, lambda: tree_attention.tree_attention(*arguments)


def normalise(
    shape: tuple[int, int, int], size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    hidden, weight, name = head.inputs(head.SHAPES["toy"] if size == "toy" else shape, device)
    return name, lambda: vocab_logsumexp.vocab_logsumexp(hidden, weight, None, 1.0, None, 1.0)


def score(
    shape: tuple[int, int, int], size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    """Log-probs of one level's tokens, as a search takes them of the head."""
    hidden, weight, name = head.inputs(head.SHAPES["toy"] if size == "toy" else shape, device)
    level = torch.arange(weight.shape[0] - min(256, weight.shape[0] // 2), weight.shape[0])
    level = level.to(device)
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)

    def run() -> torch.Tensor:
        if not NORMALIZERS.now:
            logits = linear(hidden)
            return logits[:, level].float() - logits.float().logsumexp(1)[:, None]
        of_level = torch.nn.functional.linear(hidden, weight[level])
        normalizers = vocab_logsumexp.vocab_logsumexp(hidden, weight, None, 1.0, None, 1.0)
        return of_level.float() - normalizers[:, None]

    return f"{len(level)} tokens of {name}", run


def search(
    batch: int, prompt: int, num_beams: int, compiled: bool, size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    """Scores of a whole search in a CUDA graph, on a model whose projections lie together. Every
    design has a model of its own, because a model keeps its recorded graphs."""
    systems = {}
    for design in PROJECTIONS.designs.values():
        of = beams.System(size, device, batch=batch, prompt=prompt, beams=num_beams)
        lay_together(of.model)
        systems[design] = of

    def run() -> torch.Tensor:
        of = systems[PROJECTIONS.now]
        return recommend(
            of.model, of.ids, trie=of.trie, vocab=of.vocab, num_beams=of.beams, normalize="level",
            cuda_graph=device == "cuda", compile_layers=compiled and device == "cuda",
        ).scores  # fmt: skip

    return of.workload + (", compiled" if compiled else ""), run


# Whether the steps of replies are recorded; `Engine(cuda_graphs=...)` says which it takes.
REPLY_STEPS = Choice[type[TokenRows]]({"launched": TokenRows, "recorded": RecordedRows})


def reply_steps(
    rows: int, prompt: int, size: str, device: str
) -> tuple[str, Callable[[], torch.Tensor]]:
    """Logits after some tokens of every reply. The rows stay from call to call, as in an engine."""
    steps = 16 if size == "full" else 2
    of = beams.System(size, device, batch=rows, prompt=prompt, beams=1)
    lm = TreeModel(of.model)
    designs = REPLY_STEPS.designs.values()
    kept = {kind: (kind if can_record(lm.model.device) else TokenRows)(lm) for kind in designs}
    with torch.no_grad():
        prompts = Prompt(of.model, of.ids, torch.ones_like(of.ids, dtype=torch.bool), room=steps)

    @torch.no_grad()
    def run() -> torch.Tensor:
        batch = kept[REPLY_STEPS.now]
        batch.join(prompts)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not recorded.*")
            for step in range(steps):
                hidden = batch.feed(of.ids[:, step])
        batch.leave(range(of.batch))
        return lm.head(hidden).float()

    return f"{steps} steps of replies, {of.workload}", run


_LOOKUPS = ((1_000_000, 32, 4, 256), (262_144, 128, 3, 2048))
# As `attention.SHAPES`: Qwen3's heads, one request and eight, short and long prompts.
_TREES = (
    (1, 16, 8, 128, 512, 50),
    (8, 16, 8, 128, 512, 50),
    (1, 16, 8, 128, 2465, 512),
    (1, 16, 8, 128, 5000, 256),
    (8, 16, 8, 128, 5000, 256),
)
# Rows, width and tokens of a head: Qwen3's, at the first level and at the others, and SmolLM2's.
_HEADS = (
    (8, 1024, 152_960),
    head.SHAPES["full"],
    (2048, 2048, 176_512),
    (400, 576, 50_176),
)
CONTESTS = [
    *(
        Contest("reply_steps", REPLY_STEPS, partial(reply_steps, rows, 512), 0.1)
        for rows in (8, 64)
    ),
    *(
        Contest(
            "residual_lookup",
            codebook.DESIGN,
            partial(residual_lookup, *shape, exact),
            tolerance=0.0 if exact else 1e-3,  # TF32's sums have no fixed order
        )
        for shape in _LOOKUPS
        for exact in (True, False)
    ),
    *(
        Contest("residual_statistics", SUMS, partial(residual_statistics, *shape), 1e-9)
        for shape in ((8192, 32, 4, 256), *_LOOKUPS)
    ),
    *(
        Contest("tree_attention", tree_attention.DESIGN, partial(attend, shape), tolerance=2e-2)
        for shape in _TREES
    ),
    *(
        Contest("vocab_logsumexp", vocab_logsumexp.DESIGN, partial(normalise, shape), 2e-2)
        for shape in _HEADS
    ),
    *(
        # bfloat16 has three digits, and a score is a sum of a few.
        Contest("projections", PROJECTIONS, partial(search, 8, 512, 50, compiled), 0.1)
        for compiled in (False, True)
    ),
    # Takes the first of its kernel's tiles.
    *(Contest("normalizers", NORMALIZERS, partial(score, shape), 5e-2) for shape in _HEADS),
    Contest("label_loss", LOGITS_AT_ONCE, training.label_loss_pass, 2e-2),
]


def by_turns(contests: list[Contest]) -> list[Contest]:
    """The first workload of every op, then the second, and so on: a GPU's time can end before all
    have run."""
    seen: Counter[str] = Counter()
    turns = []
    for contest in contests:
        turns.append(seen[contest.op])
        seen[contest.op] += 1
    return [contests[i] for i in sorted(range(len(contests)), key=lambda i: turns[i])]


def checked(
    contest: Contest, size: str, device: str
) -> tuple[str, dict[str, Callable[[], torch.Tensor]], dict[str, str]]:
    """A workload's description, one call of each design that works, and why the others don't."""
    workload, run = contest.make(size, device)
    calls: dict[str, Callable[[], torch.Tensor]] = {}
    failed: dict[str, str] = {}
    expected: torch.Tensor | None = None  # the first design's that works
    for name in contest.choice.designs:

        def call(name: str = name) -> torch.Tensor:
            with contest.choice.using(name):
                return run()

        try:
            result = call()
            if expected is None:
                expected = result
            contest.check(result, expected)
        except Exception as problem:  # of any kind: too much shared memory, a wrong result
            failed[name] = _reason(problem)
            continue
        calls[name] = call
    return workload, calls, failed


def _reason(problem: Exception) -> str:
    return f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"


def timed(contest: Contest, size: str, device: str, repeats: int) -> dict[str, Any]:
    """One workload: each design's median time in milliseconds."""
    workload, calls, failed = checked(contest, size, device)
    times, _ = measure(calls, device, repeats)
    median_ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {"op": contest.op, "workload": workload, "median_ms": median_ms, "failed": failed}


def winners(rows: list[dict[str, Any]]) -> dict[str, str]:
    """For each op the design with the lowest geometric mean of its times, among those that failed
    on no workload. Workloads on which all failed don't count."""
    best = {}
    timed_rows = [row for row in rows if row["median_ms"]]
    for op in dict.fromkeys(row["op"] for row in timed_rows):
        of_op = [row["median_ms"] for row in timed_rows if row["op"] == op]
        names = [name for name in of_op[0] if all(name in times for times in of_op)]
        if names:
            best[op] = min(names, key=lambda n: sum(math.log(times[n]) for times in of_op))
    return best


def show(row: dict[str, Any]) -> None:
    print(f"{row['op']}: {row['workload']}")
    baseline = next(iter(row["median_ms"].values()), math.nan)
    for name, milliseconds in row["median_ms"].items():
        print(f"  {name:<28} {milliseconds:10.3f} ms  {baseline / milliseconds:6.2f}x", flush=True)
    for name, reason in row["failed"].items():
        print(f"  {name:<28} failed, {reason}", flush=True)


def run_all(
    contests: list[Contest], size: str, device: str, repeats: int, seconds: float
) -> Iterator[dict[str, Any]]:
    start = time.perf_counter()
    for contest in contests:
        if time.perf_counter() - start > seconds:
            print(f"{contest.op}: a workload was not run, time was up", flush=True)
            continue
        try:
            row = timed(contest, size, device, repeats)
        except Exception as problem:  # the inputs don't fit into the memory, for example
            failed = {"all designs": _reason(problem)}
            row = {"op": contest.op, "workload": "", "median_ms": {}, "failed": failed}
        show(row)
        yield row


def main() -> int:
    ops = list(dict.fromkeys(contest.op for contest in CONTESTS))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(ops)} (default: all)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("toy", "full"), default="full")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no workload later")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.ops) - set(ops):
        parser.error(f"ops must be among {ops} (got {sorted(unknown)})")
    chosen = by_turns([c for c in CONTESTS if not arguments.ops or c.op in arguments.ops])
    about = {
        **environment.commit(),
        "machine": environment.machine(arguments.device),
        "versions": environment.versions(),
    }
    rows: list[dict[str, Any]] = []
    for row in run_all(
        chosen, arguments.size, arguments.device, arguments.repeats, arguments.seconds
    ):
        rows.append(row)
        result = {**about, "tuned": rows, "winners": winners(rows)}
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for op, name in winners(rows).items():
        print(f"{op}: the winner is {name}")
    print(json.dumps({**about, "tuned": rows, "winners": winners(rows)}))
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
