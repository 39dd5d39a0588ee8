"""Rooms may import only what stands to their right, lazily or not."""

import ast
import subprocess
import sys
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


def imported(path: Path) -> set[str]:
    """Rooms that a file imports, at any depth of the code."""
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
    return {m[1] for m in modules if m[0] == "crs_fast" and len(m) > 1}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_arrows_point_one_way(room):
    files = [PACKAGE / f"{room}.py"] if room.startswith("_") else (PACKAGE / room).rglob("*.py")
    rooms = set(MAY_IMPORT) | ANYONE
    for path in files:
        found = imported(path) & rooms - {room} - ANYONE
        assert found <= MAY_IMPORT[room], f"{path} imports {found - MAY_IMPORT[room]}"


def imported_files(path: Path) -> set[Path]:
    """Files of the package that a file imports, at any depth of the code."""
    package = path.relative_to(PACKAGE.parent).with_suffix("").parts[:-1]
    files = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            modules = {(*base, alias.name) for alias in node.names} | {base}
            files |= {PACKAGE.parent.joinpath(*m).with_suffix(".py") for m in modules if m}
    return {file for file in files if file.exists()}


def test_decode_has_no_circle_of_imports():
    waiting = {path: imported_files(path) for path in (PACKAGE / "decode").rglob("*.py")}
    while free := [path for path, needs in waiting.items() if not needs & set(waiting)]:
        for path in free:
            del waiting[path]
    assert not waiting


def test_lm_imports_nothing_of_the_search():
    lm = PACKAGE / "decode" / "lm"
    for path in lm.rglob("*.py"):
        of_decode = {f for f in imported_files(path) if f.is_relative_to(PACKAGE / "decode")}
        assert all(file.is_relative_to(lm) for file in of_decode), path


def test_every_room_is_known():
    rooms = {p.name for p in PACKAGE.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert rooms == {room for room in MAY_IMPORT if not room.startswith("_")}


OPS = sorted(p.parent for p in (PACKAGE / "ops").glob("*/__init__.py"))
OP_FILES = {
    "__init__", "beam", "dispatch", "eager", "native", "nodes", "reference", "tensors", "triton",
}  # fmt: skip


@pytest.mark.parametrize("op", OPS, ids=lambda folder: folder.name)
def test_every_op_has_the_same_files(op):
    files = {path.stem for path in op.glob("*.py")}
    assert {"__init__", "reference"} <= files <= OP_FILES


@pytest.mark.parametrize("op", OPS, ids=lambda folder: folder.name)
def test_the_reference_imports_no_wrapper(op):
    """Nor any way into a kernel: an oracle that shares code with what it judges judges nothing."""
    modules = set()
    for node in ast.walk(ast.parse((op / "reference.py").read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." * node.level + (node.module or ""))
    ours = {name for name in modules if name.startswith((".", "crs_fast"))}
    assert ours <= {".tensors", ".nodes"}
    nodes = op / "nodes.py"
    if nodes.exists():
        tree = ast.walk(ast.parse(nodes.read_text()))
        assert {n.module for n in tree if isinstance(n, ast.ImportFrom) and n.level} == {"tensors"}


@pytest.mark.parametrize(
    "statement",
    ["import crs_fast; crs_fast.recommend; crs_fast.SidVocab", "from crs_fast import *"],
)
def test_import_needs_neither_transformers_nor_triton(statement):
    code = (
        f"import sys; {statement};"
        "assert not {'transformers', 'triton', 'sentence_transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_every_public_name():
    """The imports under TYPE_CHECKING and the table of lazy names say the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    shown = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(module, name) for module, names in crs_fast._HOMES.items() for name in names}
    assert shown == lazy | {(None, room) for room in crs_fast._ROOMS}
    assert set(crs_fast.__all__) >= {name for _, name in lazy} - {"RQVAE", "RQKMeans"}


def test_public_names_exist_and_are_documented():
    for name in dir(crs_fast):
        value = getattr(crs_fast, name)
        assert value is not None
        if callable(value):
            assert value.__doc__, name
