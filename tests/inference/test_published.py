"""Files and folders that never replace others."""

import errno
import os
import re
from pathlib import Path

import pytest

from segexp.errors import UsageError
from segexp.inference.published import placed


def put(path: Path, content: str) -> None:
    with placed(path) as made:
        (made / "sub").mkdir(parents=True)
        (made / "sub" / "file").write_text(content)


def test_a_folder_goes_to_a_new_or_empty_place_also_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for path in (Path("."), Path(".."), tmp_path / "new" / "folder"):
        if path == Path(".."):
            with pytest.raises(UsageError, match="other content"):
                put(path, "a")
        else:
            put(path, "a")
            put(path, "a")  # the same content is no change
            with pytest.raises(UsageError, match="other content"):
                put(path, "b")
            assert (path / "sub" / "file").read_text() == "a"
    assert os.getcwd() == str(tmp_path / "here")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "new"]


def test_what_other_folders_hold_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    for name in ("file", "other"):
        (tmp_path / "theirs" / "sub" / name).write_text("a")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    with pytest.raises(UsageError, match="other content"):
        put(tmp_path / "theirs", "a")


def test_what_a_killed_command_left_is_removed_and_completed(tmp_path: Path):
    """As if killed between the files of a folder."""
    put(tmp_path / "place", "a")
    (tmp_path / "place" / "sub").rename(tmp_path / "kept")
    (leftover := tmp_path / ".partial").mkdir()
    with placed(tmp_path / "place") as made:
        name = made.parent.name
        assert made.parent.parent == tmp_path
        (made / "sub").mkdir(parents=True)
        (made / "sub" / "file").write_text("a")
    dead = re.sub(r"-\d+-([0-9a-f]{8}\.)", r"-4194305-\1", name)  # a process that cannot be
    leftover.rename(tmp_path / dead)
    put(tmp_path / "place", "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "place"]
    assert (tmp_path / "place" / "sub" / "file").read_text() == "a"


def test_a_full_disk_is_one_line_that_names_the_option(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot be written \(No space left.*-o"), placed(tmp_path / "x"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not [*tmp_path.iterdir()]
