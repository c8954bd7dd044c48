"""The media folder: only pictures, only under their hashes, for the owner alone, and never too many."""

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from images import REAL, image

from nodes.errors import HomeError, NodeError
from nodes.media import Media
from nodes.picture import MAX_BYTES, Picture, named

CAT = image("png")


def aged(folder: Path, sha256: str, age_s: int) -> None:
    """As if the file had been written long ago."""
    then = 1_700_000_000 - age_s
    os.utime(folder / sha256, (then, then))


def test_what_was_put_is_got_and_forgotten(tmp_path: Path) -> None:
    media = Media(tmp_path / "data" / "media")
    for mime, data in REAL.values():
        picture = media.put(data, "a/b/cat.png", mime)
        assert picture == Picture(hashlib.sha256(data).hexdigest(), mime, len(data), "cat.png")
        assert media.get(picture.sha256) == data
        media.forget(picture.sha256)
        media.forget(picture.sha256)
        assert media.get(picture.sha256) is None


def test_files_are_for_their_owner_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    picture = Media(folder).put(CAT)
    Media(folder).put(CAT, "again")
    assert [path.name for path in folder.iterdir()] == [picture.sha256]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / picture.sha256).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("data", "claimed", "told"),
    [
        (b"<svg/>", None, "is no PNG, JPEG, GIF or WebP"),
        (b"", None, "is no PNG"),
        (CAT, "image/jpeg", "is not of the type that its sender names, but image/png"),
        (CAT, "text/html", "is not of the type"),
        (CAT + b"\0" * MAX_BYTES, None, "at most 8,388,608 are taken"),
        (image("gif", size=(20_000, 10)), None, "has 20000 x 10 pixels"),
        (CAT[:16] + (9_000).to_bytes(4, "big") * 2 + CAT[24:], None, "has 9000 x 9000 pixels"),
    ],
)
def test_what_is_refused_is_told_and_not_kept(tmp_path: Path, data: bytes, claimed: str | None, told: str) -> None:
    with pytest.raises(NodeError, match=told):
        Media(tmp_path).put(data, "x\x1b[2J\n.png", claimed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../keys/mesh.seed", "/etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "a\0b"])
def test_a_name_that_is_no_hash_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "mesh.seed").write_text("secret")
    assert Media(folder).get(name) is None
    Media(folder).forget(name)
    assert (tmp_path / "keys" / "mesh.seed").exists()


@given(st.text(max_size=80))
def test_no_text_reads_or_removes_anything_outside(text: str) -> None:
    media = Media(Path("/nonexistent/media"))
    assert media.get(text) is None
    media.forget(text)


def test_a_damaged_file_a_link_and_a_folder_are_no_pictures(tmp_path: Path) -> None:
    media = Media(tmp_path / "media")
    picture = media.put(CAT)
    (tmp_path / "media" / picture.sha256).write_bytes(CAT[:-1])
    assert media.get(picture.sha256) is None
    assert media.put(CAT) == picture
    assert media.get(picture.sha256) == CAT
    (tmp_path / "cat.png").write_bytes(CAT)
    (tmp_path / "media" / picture.sha256).unlink()
    (tmp_path / "media" / picture.sha256).symlink_to(tmp_path / "cat.png")
    assert media.get(picture.sha256) is None
    (tmp_path / "media" / ("0" * 64)).mkdir()
    assert media.get("0" * 64) is None


def test_the_oldest_make_room_and_the_newest_stays(tmp_path: Path) -> None:
    pictures = [image("png", colour=colour) for colour in ("red", "green", "blue", "white")]
    size = max(map(len, pictures))
    media = Media(tmp_path, max_total=3 * size)
    kept = [media.put(data) for data in pictures[:3]]
    for age, picture in zip((10, 30, 20), kept, strict=True):
        aged(tmp_path, picture.sha256, age)
    last = media.put(pictures[3])
    assert media.get(kept[1].sha256) is None
    assert all(media.get(one.sha256) for one in (kept[0], kept[2], last))
    only = Media(tmp_path, max_total=1).put(pictures[1])
    assert [path.name for path in tmp_path.iterdir()] == [only.sha256]


def test_many_small_ones_are_bounded_by_their_number(tmp_path: Path) -> None:
    media = Media(tmp_path, max_files=2)
    for number in range(5):
        media.put(image("gif", size=(1 + number, 1)))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_never_finished_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    for name in ("old.part", "new.part", "README"):
        (tmp_path / name).write_text("x")
    aged(tmp_path, "old.part", 0)
    aged(tmp_path, "README", 0)
    picture = Media(tmp_path).put(CAT)
    assert {path.name for path in tmp_path.iterdir()} == {"new.part", "README", picture.sha256}


def test_several_at_a_time_do_no_harm(tmp_path: Path) -> None:
    data = [image("png", colour=colour) for colour in ("red", "green", "red", "blue")] * 4
    with ThreadPoolExecutor(4) as threads:
        put = list(threads.map(Media(tmp_path).put, data))
    assert {path.name for path in tmp_path.iterdir()} == {one.sha256 for one in put}
    assert len({one.sha256 for one in put}) == 3


def test_a_file_in_place_of_the_folder_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "media").write_text("x")
    with pytest.raises(HomeError, match="cannot keep a picture"):
        Media(tmp_path / "media").put(CAT)
    assert Media(tmp_path / "media").get("0" * 64) is None
    with pytest.raises(HomeError, match="cannot forget a picture"):
        Media(tmp_path / "media").forget("0" * 64)


def test_names_come_out_clean(tmp_path: Path) -> None:
    assert Media(tmp_path).put(CAT, "../x]\n<aporia>.png").name == named("../x]\n<aporia>.png") == "x) (aporia).png"
