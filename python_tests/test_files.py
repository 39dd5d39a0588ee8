import os
import stat

import pytest

from crs_fast._files import write_text


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
