"""Files are written whole or not at all, and not through links."""

import errno
import os

import pytest

from jaxrl import files


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def link(tmp_path):
    """A link to a file that is somebody else's."""
    (tmp_path / "theirs").write_text("theirs")
    path = tmp_path / "link"
    path.symlink_to("theirs")
    return path


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    for text in ("first", "second"):
        files.write_text(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("first")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(path, "second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(link):
    files.write_text(link, "ours")
    assert not link.is_symlink()
    assert link.read_text() == "ours"
    assert link.with_name("theirs").read_text() == "theirs"


def test_nor_is_one_in_the_place_of_the_unfinished_file(link):
    path = link.with_name("file")
    link.rename(path.with_name(f"file.{os.getpid()}.part"))
    files.write_text(path, "ours")
    assert path.read_text() == "ours"
    assert link.with_name("theirs").read_text() == "theirs"


@pytest.mark.parametrize("opened", [files.appending, files.locking])
def test_a_link_is_not_opened(opened, link):
    with pytest.raises(OSError, match="symbolic links"):
        opened(link)
    assert link.with_name("theirs").read_text() == "theirs"


def test_what_is_locked_stays_as_it_is(tmp_path):
    path = tmp_path / "lock"
    files.locking(path).close()
    assert path.read_text() == ""
    path.write_text("words")
    files.locking(path).close()
    assert path.read_text() == "words"
    with files.appending(path) as file:
        file.write(" and more")
    assert path.read_text() == "words and more"
