"""Rooms may import only what stands to their right, lazily or not."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import crs_fast

PACKAGE = Path(crs_fast.__file__).parent
MAY_IMPORT = {
    "_native": set(),
    "_files": set(),
    "ops": {"_native"},
    "trie": {"ops", "_files"},
    "quantize": {"ops", "_files"},
    "decode": {"trie", "ops"},
    "crs": {"decode", "trie", "quantize", "_files"},
    "integrations": {"crs", "decode", "trie"},
    "cli": {"integrations", "crs", "decode", "trie", "quantize", "ops", "_files", "_native"},
}
ANYONE = {"_version", "__init__"}


# Files of crs, each of which may import those of its own line and of the lines before.
CRS_ORDER = (
    ("data",),
    ("control_tokens", "sequence"),
    ("backbones", "checkpoint"),
    ("turn",),
    ("recommender",),
    ("training",),
    ("evaluation",),
)


def imports(path: Path) -> set[tuple[str, ...]]:
    """What a file imports, at any depth of the code and for type checkers too: each module's or
    name's full path, in parts."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    package = parts[:-1]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            modules |= {(*base, alias.name) for alias in node.names}
    return modules


def imported(path: Path) -> set[str]:
    """Rooms that a file imports."""
    return {m[1] for m in imports(path) if m[0] == "crs_fast" and len(m) > 1}


def module_graph() -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    """Every module of the package, and the modules of the package that it imports. A name that is
    no module of its own belongs to the package that it is imported from."""
    files = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[parts[:-1] if parts[-1] == "__init__" else parts] = path
    return {
        module: {
            target
            for name in imports(path)
            if (target := name if name in files else name[:-1]) in files and target != module
        }
        for module, path in files.items()
    }


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room):
    files = [PACKAGE / f"{room}.py"] if room.startswith("_") else (PACKAGE / room).rglob("*.py")
    rooms = set(MAY_IMPORT) | ANYONE
    for path in files:
        found = imported(path) & rooms - {room} - ANYONE
        assert found <= MAY_IMPORT[room], f"{path} imports {found - MAY_IMPORT[room]}"


def test_no_modules_import_each_other():
    rooms = ("crs", "quantize", "cli")
    graph = {m: targets for m, targets in module_graph().items() if m[1:] and m[1] in rooms}
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        pytest.fail(" is imported by ".join(".".join(module) for module in error.args[1]))


def test_files_of_crs_import_those_before_them():
    place = {name: line for line, names in enumerate(CRS_ORDER) for name in names}
    graph = {m: targets for m, targets in module_graph().items() if m[1:2] == ("crs",) and m[2:]}
    assert {module[2] for module in graph} == place.keys()
    for module, targets in graph.items():
        for target in targets:
            if target[:2] == module[:2]:
                assert place[target[2]] <= place[module[2]], f"{module} imports {target}"


def test_the_library_knows_neither_benchmarks_nor_tests():
    for path in PACKAGE.rglob("*.py"):
        found = {name[0] for name in imports(path)} & {"benchmarks", "python_tests"}
        assert not found, f"{path} imports {found}"


def test_every_room_is_known():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == {room for room in MAY_IMPORT if not room.startswith("_")}


def test_the_reference_imports_no_wrapper():
    for path in (PACKAGE / "ops").rglob("reference*.py"):
        tree = ast.parse(path.read_text())
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        assert {n.module for n in nodes if n.level or "crs_fast" in (n.module or "")} <= {"tensors"}


def test_import_needs_neither_transformers_nor_triton():
    code = (
        "import sys, crs_fast; crs_fast.SidTrie; crs_fast.recommend; crs_fast.SidVocab;"
        "assert not {'transformers', 'triton', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_exist_and_are_documented():
    for name in crs_fast.__all__:
        value = getattr(crs_fast, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, name
