"""Frame pictures of videos: a folder or a strip of frames for each, in a folder or in a zip file."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError

Frame = npt.NDArray[np.uint8]  # [H, W, 3], RGB

_SUFFIXES = frozenset({".webp", ".png", ".jpg", ".jpeg", ".bmp", ".gif"})
# A picture that is stored larger than this is not read: a zip bomb, or no picture.
_MAX_FILE_BYTES = 2**28
_LAYOUTS = "ID/0001.png of one depth, or ID.png"


class FrameFolder:
    """The frames of many videos; only names are held, pictures are decoded when asked for.

    Layouts, in a folder or a zip file: `ID/*.png` (one picture a frame, in the order of their names, 2 before 10) or
    `ID.png` (all frames side by side, each as wide as the strip is high; with `is_strip=False` one picture is
    one frame).
    Formats: webp, png, jpg, bmp, gif (the first picture of an animation).
    """

    def __init__(self, path: str | Path, *, is_strip: bool = True) -> None:
        """List the pictures.

        Args:
            path: A folder or a zip file.
            is_strip: Whether a file `ID.png` holds several frames side by side.

        Raises:
            UserError: No such path, no pictures, both layouts at once, deeper nesting, or Pillow is missing.
        """
        _require_pillow()
        self.path = Path(path)
        self._is_strip = is_strip
        self._zip = self._open_zip() if self.path.is_file() else None
        if self._zip is None and not self.path.is_dir():
            raise UserError("no such folder or zip file", file=path, fix=f"name what holds the pictures as {_LAYOUTS}")
        self._files = self._group(self._list())

    def _open_zip(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"is not a zip file ({error})", file=self.path) from None

    def _list(self) -> Iterable[PurePosixPath]:
        if self._zip is not None:
            names = [PurePosixPath(name) for name in self._zip.namelist() if not name.endswith("/")]
        else:
            found = (path for path in self.path.rglob("*") if path.is_file())
            names = [PurePosixPath(path.relative_to(self.path).as_posix()) for path in found]
        for name in names:
            hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
            if name.suffix.lower() in _SUFFIXES and not hidden:
                yield name

    def _group(self, names: Iterable[PurePosixPath]) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        depths: dict[int, PurePosixPath] = {}
        for name in names:
            depths.setdefault(len(name.parts), name)
            groups.setdefault(name.parts[0] if len(name.parts) > 1 else name.stem, []).append(str(name))
        if not groups:
            raise UserError("holds no pictures", file=self.path, fix=f"name them as {_LAYOUTS}")
        if len(depths) > 1 or max(depths) > 2:
            examples = " and ".join(f"'{name}'" for name in depths.values())
            raise UserError(f"holds pictures as {examples}", file=self.path, fix=f"name them all as {_LAYOUTS}")
        for id, files in groups.items():
            if len(files) > 1 and 1 in depths:
                raise UserError(
                    f"holds two pictures of one video, '{files[0]}' and '{files[1]}'",
                    file=self.path,
                    record=id,
                )
            files.sort(key=_natural)
        self._in_folders = 2 in depths
        return groups

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._files)

    def __contains__(self, id: object) -> bool:
        """Whether there are frames of this video."""
        return id in self._files

    def __iter__(self) -> Iterator[str]:
        """Ids of the videos."""
        return iter(self._files)

    def read(self, id: str) -> list[Frame]:
        """Decode a video's frames: uint8 `[H, W, 3]` each, RGB; transparent parts become white.

        Raises:
            KeyError: No such video.
            UserError: A picture cannot be decoded, or a strip holds no whole number of frames.
        """
        pictures = [self._decode(name) for name in self._files[id]]
        if self._in_folders or not self._is_strip:
            return pictures
        strip = pictures[0]
        height, width = strip.shape[:2]
        if width % height:
            raise UserError(
                f"is {width} x {height} pixels, which is no row of square frames",
                file=self.path,
                record=self._files[id][0],
                fix="put each frame into its own file ID/0001.png, or say --frame_files picture",
            )
        return [np.ascontiguousarray(strip[:, left : left + height]) for left in range(0, width, height)]

    def _decode(self, name: str) -> Frame:
        from PIL import Image

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(self._read_bytes(name))) as picture:
                    return _flatten(picture)
        except UserError:
            raise
        # Decoders of damaged files raise nearly anything: SyntaxError, struct.error, EOFError, ValueError.
        except Exception as error:
            raise UserError(
                f"cannot be decoded ({type(error).__name__}: {error})",
                file=self.path,
                record=name,
                fix="replace or remove this picture",
            ) from error

    def _read_bytes(self, name: str) -> bytes:
        size = self._zip.getinfo(name).file_size if self._zip else (self.path / name).stat().st_size
        if size > _MAX_FILE_BYTES:
            raise UserError(f"{size:,} bytes, the limit is {_MAX_FILE_BYTES:,}", file=self.path, record=name)
        return self._zip.read(name) if self._zip else (self.path / name).read_bytes()


def _natural(name: str) -> tuple[list[str | int], str]:
    """Key to sort names by: numbers in them count as numbers, so that 2.png stands before 10.png."""
    parts = re.split(r"([0-9]+)", name)  # every other part is a number
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _flatten(picture: Any) -> Frame:
    """RGB on white: what a transparent picture looks like on a page."""
    from PIL import Image

    if picture.mode in ("RGB", "L"):
        return np.array(picture.convert("RGB"))
    layer = picture.convert("RGBA")
    page = Image.new("RGBA", layer.size, "white")
    return np.array(Image.alpha_composite(page, layer).convert("RGB"))


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UserError("reading pictures needs Pillow", fix="pip install 'vidsim[extract]'") from None
