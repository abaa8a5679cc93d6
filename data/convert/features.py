"""Where the features of a table's videos come from: arrays on disk, or pictures run through an extractor.

Array files hold float16, float32 or float64 `[n, D]` (a single vector `[D]` counts as one frame):

- a folder with `ID.npy` for each video,
- one `ID` -> array file `features.npz`,
- one stacked array `features.npy` `[N, D]` and an index of where each video's rows are: `features.json` with
  `{"dim": D, "extractor": text or null, "offsets": {ID: [start, count]}}`, or `features.tsv` with lines
  `ID <tab> start <tab> count`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, write_json

Vectors = npt.NDArray[np.float16]
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_CACHED_VIDEOS = 512


class FeatureSource(Protocol):
    """Features by video."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    @property
    def extractor(self) -> str | None:
        """What made the vectors; None where that is not known."""

    def __len__(self) -> int:
        """Number of videos."""

    def read(self, id: str) -> Vectors | None:
        """Vectors of a video, float16 `[n, dim]`; None where there are none of this video."""


class ArrayFolder:
    """`ID.npy` for each video."""

    def __init__(self, folder: Path, extractor: str | None) -> None:
        """Count the files and take the width from the first."""
        names = sorted(path.name for path in folder.glob("*.npy"))
        if not names:
            raise UserError("holds no .npy files", file=folder, fix="name a folder with ID.npy for each video")
        self._folder = folder
        self._length = len(names)
        self.extractor = extractor
        self.dim = _as_rows(_load(folder / names[0]), folder / names[0]).shape[1]

    def __len__(self) -> int:
        """Number of files."""
        return self._length

    def read(self, id: str) -> Vectors | None:
        """See `FeatureSource`; UserError for another width or type, or a number beyond float16."""
        if Path(id).name != id:
            raise UserError(f"the id {id!r:.60} cannot be a file name", file=self._folder)
        path = self._folder / f"{id}.npy"
        return to_float16(_load(path), self.dim, path) if path.is_file() else None


class ArrayArchive:
    """A `.npz` file with one array for each video."""

    def __init__(self, path: Path, extractor: str | None) -> None:
        """Open the archive and take the width from its first array."""
        try:
            self._arrays = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"is not an .npz file ({error})", file=path) from None
        names = self._arrays.files
        if not names:
            raise UserError("holds no arrays", file=path)
        self._path = path
        self._names = frozenset(names)
        self.extractor = extractor
        self.dim = _as_rows(self._load(names[0]), path, names[0]).shape[1]

    def _load(self, name: str) -> npt.NDArray[Any]:
        try:
            array: npt.NDArray[Any] = self._arrays[name]
        except (ValueError, OSError, EOFError, MemoryError, zipfile.BadZipFile) as error:
            raise UserError(f"cannot be read ({error})", file=self._path, record=name) from None
        return array

    def __len__(self) -> int:
        """Number of arrays."""
        return len(self._names)

    def read(self, id: str) -> Vectors | None:
        """See `FeatureSource`."""
        return to_float16(self._load(id), self.dim, self._path, id) if id in self._names else None


class ArrayStack:
    """One array `[N, D]` with the rows of all videos, memory-mapped, and where each video's rows are."""

    def __init__(self, path: Path, index: Path, extractor: str | None) -> None:
        """Map the array and check that the index fits it."""
        self._path = path
        self._rows = _load(path)
        if self._rows.ndim != 2:
            raise UserError(f"must be an array [N, D], is {list(self._rows.shape)}", file=path)
        self.dim = int(self._rows.shape[1])
        noted, self._offsets = _read_index(index, self.dim)
        self.extractor = extractor or noted
        for id, (start, count) in self._offsets.items():
            if start < 0 or count < 0 or start + count > len(self._rows):
                raise UserError(
                    f"rows {start} to {start + count} of an array that has {len(self._rows)}",
                    file=index,
                    record=id,
                )

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._offsets)

    def read(self, id: str) -> Vectors | None:
        """See `FeatureSource`."""
        if id not in self._offsets:
            return None
        start, count = self._offsets[id]
        return to_float16(self._rows[start : start + count], self.dim, self._path, id)


class PictureSource:
    """Frame pictures, run through an extractor when a video is asked for; the latest few are remembered."""

    def __init__(self, frames: Any, extractor: Any) -> None:
        """Take a `FrameFolder` and a `FeatureExtractor`."""
        self._frames = frames
        self._extractor = extractor
        self.dim: int = extractor.dim
        self.extractor: str | None = extractor.name
        # Rows that share a video (its titles in two languages) mostly stand close together.
        self._read = lru_cache(_CACHED_VIDEOS)(lambda id: extractor(frames.read(id)))

    def __len__(self) -> int:
        """Number of videos."""
        return len(self._frames)

    def read(self, id: str) -> Vectors | None:
        """See `FeatureSource`."""
        return self._read(id) if id in self._frames else None


def open_features(path: str | Path, *, index: str | Path | None = None, extractor: str | None = None) -> FeatureSource:
    """Open array files.

    Args:
        path: A folder of `.npy` files, an `.npz` file, or a stacked `.npy` file.
        index: Index of a stacked array; None takes the `.json` or `.tsv` of the same name beside it.
        extractor: What made the features, where the index does not say.

    Raises:
        UserError: Nothing there, no array, pickled content, an index that does not fit.
    """
    path = Path(path)
    if path.is_dir():
        return ArrayFolder(path, extractor)
    if not path.is_file():
        raise UserError("no such file or folder", file=path, field="features")
    if path.suffix == ".npz":
        return ArrayArchive(path, extractor)
    if index is None:
        beside = [path.with_suffix(suffix) for suffix in (".json", ".tsv")]
        index = next((candidate for candidate in beside if candidate.is_file()), None)
        if index is None:
            raise UserError(
                "a stacked array needs an index of its videos",
                file=path,
                fix=f"write {beside[0].name}, or --feature_index",
            )
    return ArrayStack(path, Path(index), extractor)


def open_pictures(
    path: str | Path,
    extractor: str,
    *,
    is_strip: bool = True,
    image_size: int | None = None,
    device: str = "cpu",
) -> FeatureSource:
    """Open frame pictures with the extractor to run them through; see `FrameFolder` and `load_extractor`."""
    # Here, because they load torch and transformers, which arrays on disk do not need.
    from vidsim.data.video.extract import load_extractor
    from vidsim.data.video.frames import FrameFolder

    frames = FrameFolder(path, is_strip=is_strip)
    return PictureSource(frames, load_extractor(extractor, image_size=image_size, device=device))


def write_stack(path: str | Path, features: Iterable[tuple[str, Vectors]], *, dim: int, extractor: str | None) -> int:
    """Write a stacked array (`.npy`, float16 `[N, dim]`), then its index beside it (`.json`).

    Args:
        path: The array file.
        features: Id and float16 `[n, dim]` of each video; used one at a time.
        dim: Width of a vector.
        extractor: What made the vectors.

    Returns:
        Number of rows N.

    Raises:
        UserError: An id that comes twice, vectors of another width or type.
    """
    path = Path(path)
    offsets: dict[str, list[int]] = {}
    num_rows = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write_header(file, 0, dim)
        for id, vectors in features:
            if id in offsets:
                raise UserError("the id comes twice", file=path, record=id)
            if vectors.dtype != np.float16 or vectors.ndim != 2 or vectors.shape[1] != dim:
                raise UserError(
                    f"must be float16 [n, {dim}], is {vectors.dtype} {list(vectors.shape)}",
                    file=path,
                    record=id,
                )
            file.write(vectors.astype("<f2", copy=False).tobytes())
            offsets[id] = [num_rows, len(vectors)]
            num_rows += len(vectors)
        # NumPy pads the header so that a longer first dimension fits into it.
        length = file.tell()
        file.seek(0)
        _write_header(file, num_rows, dim)
        if file.tell() + num_rows * dim * 2 != length:
            raise RuntimeError("the array's header has changed its length")
        # Before the array is in place: an index of an earlier one would name other rows.
        path.with_suffix(".json").unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), {"dim": dim, "extractor": extractor, "offsets": offsets})
    return num_rows


def _write_header(file: Any, num_rows: int, dim: int) -> None:
    header = {"descr": "<f2", "fortran_order": False, "shape": (num_rows, dim)}
    np.lib.format.write_array_header_1_0(file, header)


def to_float16(array: npt.NDArray[Any], dim: int, file: Path, record: str | None = None) -> Vectors:
    """Features as float16 `[n, dim]`.

    Raises:
        UserError: Another type or width, a number that is not finite or beyond float16 (65504).
    """
    rows = _as_rows(array, file, record)
    if rows.shape[1] != dim:
        raise UserError(
            f"vectors of width {rows.shape[1]}, others have {dim}",
            file=file,
            record=record,
            fix="extract them alike",
        )
    # NaN compares false, so it is caught as well.
    if rows.size and not bool((np.abs(rows) <= _FLOAT16_MAX).all()):
        what = f"holds a number that is not finite or beyond {_FLOAT16_MAX:g}"
        raise UserError(what, file=file, record=record, fix="extract the features of this video again")
    return np.ascontiguousarray(rows, dtype=np.float16)


def _as_rows(array: npt.NDArray[Any], file: Path, record: str | None = None) -> npt.NDArray[Any]:
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or array.shape[-1] == 0:
        raise UserError(
            f"must be floating-point [n, D], is {array.dtype} {list(array.shape)}", file=file, record=record
        )
    return array[None] if array.ndim == 1 else array


def _load(path: Path) -> npt.NDArray[Any]:
    """Map a `.npy` file: a header that promises more than the file holds is refused instead of allocated."""
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, OverflowError, SyntaxError) as error:
        raise UserError(f"is not a .npy file of numbers ({error})", file=path) from None
    if not isinstance(array, np.ndarray):
        raise UserError("is not a .npy file", file=path)
    return array


def _read_index(path: Path, dim: int) -> tuple[str | None, Mapping[str, tuple[int, int]]]:
    if path.suffix == ".tsv":
        return None, _read_index_lines(path)
    content = read_json(path)
    fix = 'write {"dim": D, "extractor": null, "offsets": {"ID": [start, count]}}'
    if not isinstance(content, dict) or not isinstance(content.get("offsets"), dict):
        raise UserError("must be an object with offsets", file=path, fix=fix)
    if content.get("dim", dim) != dim:
        raise UserError(f"is {content['dim']}, but the array's vectors have {dim}", file=path, field="dim")
    extractor = content.get("extractor")
    if extractor is not None and not isinstance(extractor, str):
        raise UserError("must be text or null", file=path, field="extractor", fix=fix)
    offsets: dict[str, tuple[int, int]] = {}
    for id, place in content["offsets"].items():
        if not (isinstance(place, list) and len(place) == 2 and all(type(value) is int for value in place)):
            raise UserError("must be [start, count]", file=path, record=id, field="offsets", fix=fix)
        offsets[id] = (place[0], place[1])
    return extractor, offsets


def _read_index_lines(path: Path) -> dict[str, tuple[int, int]]:
    offsets: dict[str, tuple[int, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read ({error})", file=path) from None
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if number == 1 and fields == ["id", "start", "count"]:
            continue
        if len(fields) != 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
            raise UserError("must be id, start, count with tabs between", file=path, record=number)
        if fields[0] in offsets:
            raise UserError(f"the id {fields[0]!r} stands twice", file=path, record=number)
        offsets[fields[0]] = (int(fields[1]), int(fields[2]))
    return offsets
