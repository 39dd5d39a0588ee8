"""The lists of files that CI installs hold every dependency, pinned and with its hashes."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
HASH = r" \\\n    --hash=sha256:[0-9a-f]{64}"
STALE = "run .ci/lock, which writes the lists again"


def entries(name):
    """The versions of each package in a list, which must be well formed."""
    text = (ROOT / ".ci" / name).read_text().split("\n", 1)[1]
    versions: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.strip()):
        whole = re.fullmatch(rf"([a-z0-9.-]+)==([^ ]+)( ; [^\\]+?)?({HASH})+", entry)
        assert whole, entry
        versions.setdefault(whole[1], set()).add(whole[2])
    return versions


def required():
    """The names that the package, its build and the extras of CI ask for."""
    file = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = file["project"]["optional-dependencies"]
    waiting = [*file["build-system"]["requires"], *file["project"]["dependencies"]]
    waiting += ["crs_fast[dev,qlora]"]
    names = set()
    while waiting:
        one = Requirement(waiting.pop())
        if one.name == "crs_fast":
            waiting += [line for extra in one.extras for line in extras[extra]]
        else:
            names.add(canonicalize_name(one.name))
    return names


def test_every_dependency_is_listed():
    assert required() - set(entries("requirements.lock")) == set(), STALE


def test_versions_are_those_of_the_constraints():
    listed = entries("requirements.lock") | entries("cuda.lock")
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = line.split("==")
            assert listed.get(canonicalize_name(name), {version}) == {version}, STALE
