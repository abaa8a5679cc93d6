"""The folder of a `VectorIndex`, written so that a reader finds the old index or the new one, never a mixture.

`vector_index.json` names the other files and is replaced last: `codes-N.faiss`, `items-N.arrow` (key, id and
the metadata columns; Arrow IPC) and, where the vectors themselves are kept, `vectors-N.npy`. N goes up with
every save, so that a process that has the former files memory-mapped keeps reading them.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, require_free_space, sha256_file, write_json
from vidsim.retrieval.backends import KINDS, faiss_module

Float32 = npt.NDArray[np.float32]

FORMAT_VERSION: Final = 2
INDEX_JSON: Final = "vector_index.json"
_MAKE_AGAIN: Final = "make it again with `vidsim index`"
_FIELDS: Final = {
    "format_version": int,
    "kind": str,
    "dim": int,
    "num_vectors": int,
    "next_key": int,
    "num_candidates": int,
    "generation": int,
    "info": dict,
    "files": dict,
}


@dataclass(frozen=True, eq=False)
class StoredIndex:
    """What lies in the folder of an index.

    Attributes:
        kind: One of `KINDS`.
        backend: The faiss index.
        items: Columns `key` int64 (ascending), `id` string, and the metadata.
        vectors: float32 [N, D] for refinement, or None.
        next_key: Key of the next vector.
        num_candidates: How many a search of a `large` index keeps.
        info: Where the vectors came from.
    """

    kind: str
    backend: Any
    items: pa.Table
    vectors: Float32 | None
    next_key: int
    num_candidates: int
    info: dict[str, Any]


def is_index(folder: str | Path) -> bool:
    """Whether a folder holds an index."""
    return (Path(folder) / INDEX_JSON).is_file()


def write_index(folder: str | Path, stored: StoredIndex) -> None:
    """Write an index; one that is there already is replaced.

    Raises:
        UserError: The folder holds other files, or the disk is full.
    """
    faiss = faiss_module()
    folder = Path(folder)
    generation = 1
    if is_index(folder):
        generation += int(_read_description(folder)["generation"])
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("is not an index and not an empty folder", file=folder, fix="choose another --out")
    num_bytes = stored.backend.ntotal * stored.backend.d * (4 if stored.kind == "exact" else 1)
    require_free_space(folder, num_bytes + (0 if stored.vectors is None else stored.vectors.nbytes))
    names = {"codes": f"codes-{generation}.faiss", "items": f"items-{generation}.arrow"}
    if stored.vectors is not None:
        names["vectors"] = f"vectors-{generation}.npy"
    try:
        with atomic_path(folder / names["codes"]) as path:
            _write_codes(faiss, stored.backend, path)
        with (
            atomic_path(folder / names["items"]) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, stored.items.schema) as writer,
        ):
            writer.write_table(stored.items)
        if stored.vectors is not None:
            with atomic_path(folder / names["vectors"]) as path, path.open("wb") as file:
                np.save(file, stored.vectors, allow_pickle=False)
        description = {
            "format_version": FORMAT_VERSION,
            "kind": stored.kind,
            "dim": stored.backend.d,
            "num_vectors": stored.items.num_rows,
            "next_key": stored.next_key,
            "num_candidates": stored.num_candidates,
            "generation": generation,
            "info": stored.info,
            "files": {
                part: {"file": name, "size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
                for part, name in names.items()
            },
        }
        write_json(folder / INDEX_JSON, description)
    except BaseException:
        _remove_all_but(folder, generation - 1)
        raise
    _remove_all_but(folder, generation)


def read_index(folder: str | Path, *, mmap: bool) -> StoredIndex:
    """Read an index.

    Args:
        folder: Written by `write_index`.
        mmap: Map the files instead of reading them; then only their sizes are checked, not their contents.

    Raises:
        UserError: Not an index, a missing or damaged file, a file of another vidsim.
    """
    folder = Path(folder)
    description = _read_description(folder)
    paths = {part: _checked_file(folder, entry, mmap) for part, entry in description["files"].items()}
    backend = _read_codes(paths["codes"], mmap)
    items = _read_items(paths["items"], mmap)
    vectors = _read_vectors(paths["vectors"], mmap) if "vectors" in paths else None
    shape = (description["num_vectors"], description["dim"])
    # What was removed from a graph is still in it.
    num_codes = backend.ntotal - (description["next_key"] - shape[0] if description["kind"] == "large" else 0)
    shapes = {"codes": (num_codes, backend.d), "items": (items.num_rows, shape[1])}
    if vectors is not None:
        shapes["vectors"] = vectors.shape
    for part, found in shapes.items():
        if found != shape:
            message = f"holds {found[0]:,} vectors of width {found[1]}, {INDEX_JSON} says {shape[0]:,} of {shape[1]}"
            raise UserError(message, file=paths[part], fix=_MAKE_AGAIN)
    settings = {name: description[name] for name in ("kind", "next_key", "num_candidates", "info")}
    return StoredIndex(backend=backend, items=items, vectors=vectors, **settings)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_JSON
    if not path.is_file():
        raise UserError("is not an index folder", file=folder, fix="make one with `vidsim index`")
    description = read_json(path)
    version = _entry(description, "format_version")
    if type(version) is int and version != FORMAT_VERSION:
        raise UserError(f"is of format {version}, this vidsim reads {FORMAT_VERSION}", file=path, fix=_MAKE_AGAIN)
    wrong = [name for name, kind in _FIELDS.items() if type(_entry(description, name)) is not kind]
    if wrong:
        raise UserError("is missing or of the wrong type", file=path, field=wrong[0], fix=_MAKE_AGAIN)
    if description["kind"] not in KINDS:
        raise UserError(f"must be one of {', '.join(KINDS)}", file=path, field="kind", fix=_MAKE_AGAIN)
    if not {"codes", "items"} <= set(description["files"]) <= {"codes", "items", "vectors"}:
        raise UserError("names other files than an index has", file=path, field="files", fix=_MAKE_AGAIN)
    checked: dict[str, Any] = description
    return checked


def _entry(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _checked_file(folder: Path, entry: Any, mmap: bool) -> Path:
    name, size, digest = (_entry(entry, key) for key in ("file", "size", "sha256"))
    if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
        raise UserError("does not name its files", file=folder / INDEX_JSON, field="files", fix=_MAKE_AGAIN)
    path = folder / name
    if not path.is_file():
        raise UserError(f"{name} is missing", file=folder, fix=_MAKE_AGAIN)
    found = path.stat().st_size
    if found != size:
        raise UserError(f"is damaged: {found:,} bytes, not {size}", file=path, fix=_MAKE_AGAIN)
    if not mmap and sha256_file(path) != digest:
        raise UserError("is damaged: its checksum is another", file=path, fix=_MAKE_AGAIN)
    return path


def _write_codes(faiss: Any, backend: Any, path: Path) -> None:
    try:
        faiss.write_index(backend, str(path))
    except RuntimeError as error:
        raise UserError(f"cannot be written ({error})", file=path.parent) from error


def _read_codes(path: Path, mmap: bool) -> Any:
    faiss = faiss_module()
    try:
        backend = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"is damaged ({error})", file=path, fix=_MAKE_AGAIN) from error
    if isinstance(backend, faiss.IndexIVFPQFastScan):
        backend.fine_quantizer = backend.pq  # faiss 1.15 forgets it, and crashes when codes are decoded
    return backend


def _read_items(path: Path, mmap: bool) -> pa.Table:
    try:
        with pa.memory_map(str(path)) if mmap else pa.OSFile(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is damaged ({error})", file=path, fix=_MAKE_AGAIN) from error


def _read_vectors(path: Path, mmap: bool) -> Float32:
    try:
        vectors: Float32 = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"is damaged ({error})", file=path, fix=_MAKE_AGAIN) from error
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise UserError(f"holds {vectors.dtype} {list(vectors.shape)}, not float32 [N, D]", file=path, fix=_MAKE_AGAIN)
    return vectors


def _remove_all_but(folder: Path, generation: int) -> None:
    """Files of other generations; what cannot be removed is in nobody's way."""
    for path in folder.glob("*-*.*"):
        part, _, number = path.stem.rpartition("-")
        if part in ("codes", "items", "vectors") and number.isdecimal() and int(number) != generation:
            with contextlib.suppress(OSError):
                path.unlink()
