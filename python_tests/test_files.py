import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from crs_fast import _files
from crs_fast._files import replacing_folder, write_text


def test_a_file_is_whole_or_absent_and_has_the_umasks_mode(tmp_path):
    path = tmp_path / "a.txt"
    old = os.umask(0o027)
    try:
        write_text(path, "café")
    finally:
        os.umask(old)
    assert path.read_text(encoding="utf-8") == "café"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half, then \ud800")
    assert path.read_text(encoding="utf-8") == "café"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_another_ones_place_and_keeps_what_it_shall(tmp_path, monkeypatch):
    """By an exchange, and one by one where the system has none or works in that folder."""
    path = tmp_path / "folder"
    for how in ("exchange", "one by one", "working directory"):
        with monkeypatch.context() as patch:
            if how == "one by one":
                patch.setattr(_files, "exchange", lambda one, other: False)
            (path / "kept").mkdir(parents=True, exist_ok=True)
            (path / "kept/late").unlink(missing_ok=True)
            for name in ("kept/early", "stale", "file"):
                (path / name).write_text("old")
            if how == "working directory":
                patch.chdir(path)
            with replacing_folder(path, kept=lambda name: name == "kept") as partial:
                (partial / "file").write_text(how)
                (partial / "sub").mkdir(mode=0o700)
                (partial / "sub/more").write_text(how)
            if how != "exchange":
                (path / "kept/late").write_text("x")
        found = {p.relative_to(path).as_posix() for p in path.rglob("*")} - {"kept/late"}
        assert found == {"kept", "kept/early", "file", "sub", "sub/more"}
        assert (path / "file").read_text() == (path / "sub/more").read_text() == how
        assert stat.S_IMODE((path / "sub").stat().st_mode) == 0o777 & ~_files.umask()
        assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_path_do_not_break_each_other(tmp_path):
    path = tmp_path / "folder"

    def write(number):
        for _ in range(10):
            with replacing_folder(path, kept=lambda name: name == "kept") as partial:
                for name in "abc":
                    (partial / name).write_text(str(number))
            write_text(tmp_path / "file", str(number) * 1000)

    (path / "kept").mkdir(parents=True)
    (path / "kept/x").write_text("x")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len({(path / name).read_text() for name in "abc"}) == 1
    assert len(set((tmp_path / "file").read_text())) == 1
    assert (path / "kept/x").read_text() == "x"
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "file"}
