"""The tables of docs/benchmarks.md come from stored results, and no figure outlives its code."""

import json

import pytest

import crs_fast.ops
from benchmarks import fingerprint as fingerprints
from benchmarks import tables
from benchmarks.cases import CASES
from benchmarks.fingerprint import SOURCES, fingerprint
from benchmarks.run import merge


def row(**changes):
    return {
        "case": "walk",
        "method": "trie_walk",
        "workload": "some prefixes",
        "size": "full",
        "device": "cpu",
        "median_ms": 12.5,
        "p20_ms": 11.0,
        "p80_ms": 14.0,
        "extra_mib": 0,
        "fingerprint": "now",
        "commit": "0123456789",
        "dirty": False,
        "isa": "avx2",
        "machine": {"cpu": "Some(R) CPU", "cores": 4, "threads": 2, "gpu": None},
        "versions": {"torch": "2.13", "triton": None},
    } | changes


def table(*rows):
    return tables.case_table("walk", "cpu", "now", list(rows))


def test_the_page_is_what_the_generator_renders():
    for path in (tables.PAGE, tables.SERVING_PAGE):
        page = path.read_text()
        assert page == tables.render(page, tables.load()), "run python benchmarks/tables.py"


def test_the_page_has_every_case():
    page = tables.PAGE.read_text()
    for case in CASES:
        for device in case.devices:
            markers = [m[2] for m in tables._TABLE.finditer(page) if m[2].startswith(f"{device}:")]
            assert case.name in " ".join(markers).split(), (case.name, device)


def test_every_op_has_a_case():
    timed = {part for case in CASES for part in case.times}
    assert timed <= SOURCES.keys()
    ops = {name for name in crs_fast.ops.__all__ if name.islower()}
    aliases = {
        "trie_mask_": "trie_mask",
        "residual_codes": "residual_lookup",
        "residual_statistics": "residual_lookup",
    }
    ops = {aliases.get(name, name) for name in ops} | {"tree_attention", "place_colliding"}
    ops.remove("token_tensors")  # lays out an op's arguments, once per vocabulary
    assert ops <= timed


def test_a_measured_row_says_where_it_was_measured():
    text = table(row(method="slow", median_ms=100.0), row())
    assert "some prefixes. torch 2.13." in text
    assert "| trie_walk | 12.5 | 11 to 14 | 8× | 0123456789 | Some CPU, 2 threads | avx2 |" in text


def test_a_row_of_another_kernel_gives_no_figure():
    text = table(row(fingerprint="then"))
    assert "| trie_walk | not measured (was 12.5) |  |  | 0123456789 | Some CPU" in text
    assert "×" not in text


def test_uncommitted_changes_show():
    assert "| 0123456789+ |" in table(row(dirty=True))


def test_each_setting_has_its_own_baseline():
    text = table(row(median_ms=10.0), row(median_ms=30.0, isa="portable"))
    assert text.count("| 1× |") == 2


def test_measured_rows_replace_those_recorded_by_hand():
    by_hand = {
        "case": "walk",
        "device": "cpu",
        "method": "trie_walk",
        "workload": "some prefixes",
        "median_ms": 3.0,
        "commit": None,
        "docs": "abc",
        "recorded": "by hand",
        "machine": {"cpu": "Xeon", "threads": 2},
        "versions": {},
    }
    assert "not measured (was 3) |  |  | docs of abc |" in table(by_hand)
    assert "abc" not in table(by_hand, row())


def test_toy_rows_and_other_devices_stay_out():
    assert table(row(size="toy"), row(device="cuda")) == "**`walk`**: not measured."


def test_a_marker_that_names_no_case_is_refused():
    page = "<!-- table cpu: walk nothing -->\n<!-- end of table -->\n"
    with pytest.raises(ValueError, match="tables: a marker must name a device and its cases"):
        tables.render(page, {"rows": [], "quantizers": []})


def test_rendering_twice_changes_nothing():
    records = {"rows": [row(fingerprint=fingerprint(("trie_walk",), "cpu"))], "quantizers": []}
    once = tables.render("<!-- table cpu: walk -->\n<!-- end of table -->\n", records)
    assert "12.5" in once
    assert tables.render(once, records) == once


def test_merging_replaces_a_case_of_the_same_setting_only(tmp_path):
    path = tmp_path / "results" / "cpu.json"
    merge(path, [row(method="old method"), row(method="trie_walk")])
    merge(path, [row(isa="portable"), row(case="rows")])
    merge(path, [row(median_ms=1.0)])
    kept = json.loads(path.read_text())["rows"]
    assert [(r["case"], r["method"], r["isa"], r["median_ms"]) for r in kept] == [
        ("walk", "trie_walk", "portable", 12.5),
        ("rows", "trie_walk", "avx2", 12.5),
        ("walk", "trie_walk", "avx2", 1.0),
    ]


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A source tree of one op, and its fingerprint."""
    files = {
        "csrc/sum.cpp": '#include "shared.h"\nint sum() { return 1; }  // adds\n',
        "csrc/sum.cu": "int sum_cuda() { return 1; }\n",
        "csrc/shared.h": '/* shared\n*/ const char* url = "http://x";\n',
        "csrc/other.h": "int other;\n",
        "ops/sum/__init__.py": '"""Sums."""\n\ndef add(a, b):\n    """Add."""\n    return a + b\n',
        "ops/sum/reference.py": "def add(a, b): return a + b\n",
        "ops/sum/triton.py": "def add(a, b): return a + b\n",
    }
    monkeypatch.setattr(fingerprints, "SOURCES", {"sum": ("csrc/sum", "ops/sum/")})
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def changed(name, old, new, device="cpu"):
        """Whether the fingerprint differs once `old` is `new` in a file."""
        before = fingerprint(("sum",), device, tmp_path)
        path = tmp_path / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return fingerprint(("sum",), device, tmp_path) != before

    return changed


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("csrc/sum.cpp", "return 1", "return 2"),
        ("csrc/shared.h", "http://x", "http://y"),
        ("ops/sum/__init__.py", "a + b", "b + a"),
    ],
)
def test_the_fingerprint_follows_the_code_and_its_headers(sources, file, old, new):
    assert sources(file, old, new)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("csrc/sum.cpp", "// adds", "// sums up\n"),
        ("csrc/shared.h", "/* shared", "/* for all"),
        ("csrc/other.h", "other", "another"),
        ("csrc/sum.cu", "return 1", "return 2"),
        ("ops/sum/__init__.py", '"""Add."""', '"""Add them."""  # quickly'),
        ("ops/sum/reference.py", "a + b", "b + a"),
        ("ops/sum/triton.py", "a + b", "b + a"),
    ],
)
def test_the_fingerprint_leaves_out_words_and_what_the_cpu_does_not_run(sources, file, old, new):
    assert not sources(file, old, new)


def test_a_gpu_fingerprint_follows_the_gpu_kernels(sources):
    assert sources("csrc/sum.cu", "return 1", "return 2", "cuda")
    assert sources("ops/sum/triton.py", "a + b", "b + a", "cuda")
    assert not sources("csrc/sum.cpp", "return 1", "return 2", "cuda")


def test_sources_that_are_gone_are_named(sources, monkeypatch):
    monkeypatch.setattr(fingerprints, "SOURCES", {"sum": ("csrc/no_such",)})
    with pytest.raises(ValueError, match="SOURCES must name files \\(got 'csrc/no_such'\\)"):
        fingerprint(("sum",), "cpu")
