from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.video.frames import FrameFolder

Image = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra [extract]")

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def picture(colour: tuple[int, ...], width: int = 4, height: int = 4) -> np.ndarray:
    return np.full((height, width, len(colour)), colour, np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    Image.fromarray(pixels).save(path, **options)
    return path


def as_zip(folder: Path) -> Path:
    path = folder.parent / "frames.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


@pytest.fixture
def strips(tmp_path: Path) -> Path:
    folder = tmp_path / "strips"
    save(folder / "a.webp", np.concatenate([picture(RED), picture(GREEN), picture(BLUE)], axis=1))
    save(folder / "b.png", picture(GREEN))
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    folder = tmp_path / "folders"
    save(folder / "v" / "10.png", picture(BLUE, width=6))
    save(folder / "v" / "02.webp", picture(RED))
    save(folder / "w" / "1.bmp", picture(GREEN))
    return folder


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_strips(zipped: bool, strips: Path) -> None:
    frames = FrameFolder(as_zip(strips) if zipped else strips)
    assert sorted(frames) == ["a", "b"]
    assert len(frames) == 2
    assert "a" in frames
    assert "notes" not in frames
    found = frames.read("a")
    assert [frame.shape for frame in found] == [(4, 4, 3)] * 3
    for frame, colour in zip(found, (RED, GREEN, BLUE), strict=True):
        np.testing.assert_array_equal(frame, picture(colour))


@pytest.mark.parametrize("zipped", [False, True])
def test_reads_folders_in_the_order_of_names(zipped: bool, folders: Path) -> None:
    frames = FrameFolder(as_zip(folders) if zipped else folders)
    assert sorted(frames) == ["v", "w"]
    first, second = frames.read("v")
    np.testing.assert_array_equal(first, picture(RED))
    np.testing.assert_array_equal(second, picture(BLUE, width=6))


def test_one_picture_may_be_one_frame(strips: Path) -> None:
    (frame,) = FrameFolder(strips, is_strip=False).read("a")
    assert frame.shape == (4, 12, 3)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    save(tmp_path / "a.png", np.concatenate([picture((*RED, 255)), picture((*RED, 0))], axis=1))
    opaque, clear = FrameFolder(tmp_path).read("a")
    np.testing.assert_array_equal(opaque, picture(RED))
    np.testing.assert_array_equal(clear, picture(WHITE))


def test_grey_and_palette_pictures_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(picture(RED)).convert("P").save(tmp_path / "palette.png")
    frames = FrameFolder(tmp_path)
    np.testing.assert_array_equal(frames.read("grey")[0], picture((7, 7, 7)))
    np.testing.assert_array_equal(frames.read("palette")[0], picture(RED))


def test_a_strip_of_broken_width_is_named(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(RED, width=6))
    with pytest.raises(UserError, match=r"record a\.png: is 6 x 4 pixels.*--frame_files picture"):
        FrameFolder(tmp_path).read("a")


@pytest.mark.parametrize("content", [b"", b"text", b"RIFF\x10\x00\x00\x00WEBPVP8 ", b"\x89PNG\r\n\x1a\n" + bytes(20)])
def test_a_damaged_picture_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=r"record a\.png: cannot be decoded"):
        FrameFolder(tmp_path).read("a")


def test_every_truncation_is_read_or_named(tmp_path: Path) -> None:
    content = save(tmp_path / "whole.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).read_bytes()
    (whole,) = FrameFolder(tmp_path).read("whole")
    num_named = 0
    for length in range(len(content)):
        (tmp_path / "cut.png").write_bytes(content[:length])
        try:
            (found,) = FrameFolder(tmp_path).read("cut")
        except UserError as error:
            assert "record cut.png: cannot be decoded" in str(error)  # noqa: PT017 (either outcome may be right)
            num_named += 1
        else:
            np.testing.assert_array_equal(found, whole)  # only what marks the end was cut
    assert num_named > len(content) // 2


def test_a_picture_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "a.png", picture(RED))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15)
    with pytest.raises(UserError, match="DecompressionBomb"):
        FrameFolder(tmp_path).read("a")


def test_a_damaged_zip_member_is_named(strips: Path) -> None:
    path = as_zip(strips)
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF  # inside the first picture: its checksum is wrong
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"frames\.zip, record a\.webp: cannot be decoded \(BadZipFile"):
        FrameFolder(path).read("a")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no pictures"),
        (["a.png", "v/1.png"], r"holds pictures as '(a|v/1)\.png' and '(a|v/1)\.png'.*ID/0001\.png of one depth"),
        (["x/v/1.png"], r"holds pictures as 'x/v/1\.png'"),
        (["a.png", "a.webp"], "record a: holds two pictures of one video"),
    ],
)
def test_a_layout_that_is_not_clear_is_named(names: list[str], message: str, tmp_path: Path) -> None:
    for name in names:
        save(tmp_path / name, picture(RED))
    with pytest.raises(UserError, match=message):
        FrameFolder(tmp_path)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture(RED))
    save(tmp_path / ".thumbs" / "a.png", picture(RED))
    save(tmp_path / "__MACOSX" / "._a.png", picture(RED))
    assert list(FrameFolder(tmp_path)) == ["a"]


def test_what_is_no_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder or zip file"):
        FrameFolder(tmp_path / "none")
    (tmp_path / "a.zip").write_text("no zip")
    with pytest.raises(UserError, match=r"a\.zip: is not a zip file"):
        FrameFolder(tmp_path / "a.zip")


def test_an_unknown_video_is_a_key_error(strips: Path) -> None:
    with pytest.raises(KeyError):
        FrameFolder(strips).read("z")


@pytest.mark.parametrize("zipped", [False, True])
def test_numbers_in_names_count_as_numbers(tmp_path: Path, zipped: bool) -> None:
    names = ["1", "2", "10", "²", "a1b9", "a1b10", "a02"]
    for width, name in enumerate(names, 1):
        save(tmp_path / "in" / "v" / f"{name}.png", picture(RED, width=width))
    frames = FrameFolder(as_zip(tmp_path / "in") if zipped else tmp_path / "in")
    assert [frame.shape[1] for frame in frames.read("v")] == [1, 2, 3, 5, 6, 7, 4]
