"""Write the tables of docs/benchmarks.md and docs/serving.md: `python benchmarks/tables.py`.

They come from the files in benchmarks/results/, which run.py, redial_quantizers.py and
`python -m benchmarks.serving` wrote.

A page marks where each table stands:

    <!-- table cpu: beams20 beams50 -->   one table per case, from rows that run.py measured there
    <!-- table quantizers -->             from what redial_quantizers.py measured
    <!-- table serving -->            from what `python -m benchmarks.serving` measured
    <!-- end of table -->

Everything else on a page is written by hand. A row whose code has changed since it was measured
(see fingerprint.py) gives no figure, only what it was at which commit.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import CASES
from benchmarks.fingerprint import ROOT, fingerprint

PAGE = ROOT / "docs" / "benchmarks.md"
SERVING_PAGE = ROOT / "docs" / "serving.md"
RESULTS = ROOT / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table ([^>]+?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
_QUANTIZER_COLUMNS = {
    "reconstruction_error": "error",
    "unexplained_variance": "unexplained variance",
    "collision_rate": "collision rate",
    "collision_rate_after": "collision rate after repair",
    "largest_bucket": "largest bucket",
}
# Columns that only some cases have.
_OPTIONAL_COLUMNS = {"extra_mib": "MiB", "requests_per_s": "requests/s"}

Row = dict[str, Any]


def load(folder: Path = RESULTS) -> dict[str, list[Row]]:
    """All stored records: "rows" of run.py, "quantizers" of redial_quantizers.py and "serving" of
    benchmarks.serving."""
    records: dict[str, list[Row]] = {"rows": [], "quantizers": [], "serving": []}
    for path in sorted(folder.glob("*.json")):
        stored = json.loads(path.read_text())
        for kind in records:
            records[kind] += stored.get(kind, [])
    return records


def render(page: str, records: dict[str, list[Row]]) -> str:
    """The page with every table made anew.

    Raises:
        ValueError: a marker that names an unknown case or kind of table.
    """

    def table(match: re.Match[str]) -> str:
        begin, what, _, end = match.groups()
        return f"{begin}\n{_table(what, records)}\n\n{end}"

    return _TABLE.sub(table, page)


def _table(what: str, records: dict[str, list[Row]]) -> str:
    if what == "quantizers":
        return quantizer_table(records["quantizers"])
    if what == "serving":
        return serving_table(records["serving"])
    device, _, names = what.partition(":")
    cases = {case.name: case for case in CASES}
    unknown = set(names.split()) - cases.keys()
    if device not in ("cpu", "cuda") or unknown or not names.split():
        raise ValueError(f"tables: a marker must name a device and its cases (got {what!r})")
    paragraphs = []
    for name in names.split():
        current = fingerprint(cases[name].times, device)
        paragraphs.append(case_table(name, device, current, records["rows"]))
        if cases[name].claims:
            paragraphs.append(cases[name].claims)
    return "\n\n".join(paragraphs)


def case_table(name: str, device: str, current: str, rows: list[Row]) -> str:
    """A case's measured rows, or else the ones recorded by hand."""
    rows = [
        row
        for row in rows
        if (row["case"], row["device"], row.get("size", "full")) == (name, device, "full")
    ]
    rows = [row for row in rows if "recorded" not in row] or rows
    if not rows:
        return f"**`{name}`**: not measured."
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(_run(row), []).append(row)
    optional = [name for name in _OPTIONAL_COLUMNS if any(row.get(name) for row in rows)]
    headings = ["", "ms", "p20 to p80", "speed-up", *(_OPTIONAL_COLUMNS[name] for name in optional)]
    headings += ["commit", "machine", "ISA"]
    lines = [_line(headings), _line(["---"] * len(headings))]
    for run in runs.values():
        baseline = run[0]["median_ms"]
        lines += [_line(_cells(row, baseline, current, optional)) for row in run]
    descriptions = dict.fromkeys(f"{row['workload']}. {_versions(row)}." for row in rows)
    return "\n".join([f"**`{name}`**: {' '.join(descriptions)}", "", *lines])


def _run(row: Row) -> str:
    names = ("commit", "machine", "isa", "versions", "recorded")
    return json.dumps([row.get(name) for name in names], sort_keys=True)


def _cells(row: Row, baseline: float, current: str, optional: list[str]) -> list[str]:
    if row.get("fingerprint") == current:
        cells = [
            _figure(row["median_ms"]),
            f"{_figure(row['p20_ms'])} to {_figure(row['p80_ms'])}",
            f"{_figure(baseline / row['median_ms'])}×",
            *(_figure(row.get(name, 0)) for name in optional),
        ]
    else:
        cells = [_outdated(row["median_ms"]), *[""] * (2 + len(optional))]
    return [row["method"], *cells, _commit(row), _machine(row), row.get("isa") or ""]


def _outdated(figure: float) -> str:
    return f"not measured (was {_figure(figure)})"


def quantizer_table(rows: list[Row]) -> str:
    current = fingerprint(("quantize",), "cpu")
    rows = [row for row in rows if "recorded" not in row] or rows
    if not rows:
        return "Not measured."
    lines = [
        _line(["", *_QUANTIZER_COLUMNS.values(), "commit"]),
        _line(["---"] * (2 + len(_QUANTIZER_COLUMNS))),
    ]
    for row in rows:
        cell = _figure if row.get("fingerprint") == current else _outdated
        figures = [cell(row[name]) for name in _QUANTIZER_COLUMNS]
        lines.append(_line([row["quantizer"], *figures, _commit(row)]))
    descriptions = dict.fromkeys(row["workload"] for row in rows)
    return "\n".join([*(f"{text}." for text in descriptions), "", *lines])


def serving_table(rows: list[Row]) -> str:
    """A table for each model and machine. Speed-up is over one `respond` at a time."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(json.dumps([row["model"], _run(row)]), []).append(row)
    headings = ["", "clients", "turns/s", "speed-up", "p50 ms", "p95 ms", "p99 ms", "turns"]
    headings += ["errors", "wrong items", "catalogue swaps", "MiB, warm to end"]
    paragraphs = []
    for run in runs.values():
        first, baseline = run[0], run[0]["turns_per_second"]
        lines = [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)])]
        lines += [_line(_serving_cells(row, baseline)) for row in run]
        paragraphs.append(
            f"**{first['model']}** ({first['parameters'] / 1e6:.1f} million parameters). "
            f"{_machine(first)}, {_versions(first)}, commit {_commit(first)}."
        )
        paragraphs.append("\n".join(lines))
    devices = {row["device"] for row in rows}
    for name, device in (("CPU", "cpu"), ("GPU", "cuda")):
        if device not in devices:
            paragraphs.append(f"On a {name}: not measured.")
    return "\n\n".join(paragraphs)


def _serving_cells(row: Row, baseline: float) -> list[str]:
    is_engine = "swaps" in row
    return [
        row["method"],
        str(row["clients"] or "open"),
        _figure(row["turns_per_second"]),
        f"{_figure(row['turns_per_second'] / baseline)}×",
        *(_figure(row[f"p{percent}_ms"]) for percent in (50, 95, 99)),
        str(row["turns"]),
        str(row["failures"] + row["busy"]),
        str(row["wrong_items"]),
        str(row["swaps"]) if is_engine else "",
        f"{row['warm_mib']:,.0f} to {row['end_mib']:,.0f}" if "warm_mib" in row else "",
    ]


def _commit(row: Row) -> str:
    """The commit that was measured, or the one whose docs have the figure."""
    if row.get("docs"):
        return f"docs of {row['docs']}"
    return f"{row['commit'] or 'unknown'}{'+' if row.get('dirty') else ''}"


def _machine(row: Row) -> str:
    machine = row["machine"]
    if machine.get("gpu"):
        return machine["gpu"]
    model = re.sub(r"\((R|TM)\)", "", machine["cpu"])
    return f"{model}, {machine['threads']} threads"


def _versions(row: Row) -> str:
    return ", ".join(f"{name} {value}" for name, value in row["versions"].items() if value)


def _figure(value: float) -> str:
    """Three digits."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.5f}".rstrip("0")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    arguments = parser.parse_args()
    if not arguments.check:
        write(PAGE, SERVING_PAGE)
        return 0
    records, status = load(), 0
    for path in (PAGE, SERVING_PAGE):
        page = path.read_text()
        if render(page, records) != page:
            print(f"docs/{path.name} is out of date: run python benchmarks/tables.py")
            status = 1
    return status


def write(*pages: Path) -> None:
    """Make the tables of these pages anew."""
    records = load()
    for path in pages:
        path.write_text(render(path.read_text(), records))


if __name__ == "__main__":
    sys.exit(main())
