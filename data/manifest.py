"""`manifest.json`: what a data set folder holds, and the check that it is well formed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsim.common.errors import UserError
from vidsim.common.files import read_json
from vidsim.data import schema

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD_KEYS = ("file", "num_rows", "sha256", "num_bytes", "source", "source_sha256")


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """One feature stream: the width of a vector and what made it (None = not known)."""

    dim: int
    extractor: str | None = None


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One Arrow file of a data set.

    Attributes:
        file: File name inside the data set folder.
        num_rows: Videos in it.
        sha256: Hex digest of the file.
        num_bytes: Size of the file; None in manifests that do not say.
        source: What it was made from.
        source_sha256: Hex digest of the source file.
        extra: Any other key that a converter noted.
        stats: Length histograms that the writer collected; goes into the manifest's `counts`, merged over the
            shards.
    """

    file: str
    num_rows: int
    sha256: str
    num_bytes: int | None = None
    source: str | None = None
    source_sha256: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    stats: Mapping[str, Mapping[int, int]] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The shard's entry in `manifest.json`; the statistics are kept for all shards together, not here."""
        known = {key: getattr(self, key) for key in _SHARD_KEYS}
        return {key: value for key, value in known.items() if value is not None} | dict(self.extra)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    num_videos: int
    streams: Mapping[str, StreamInfo]
    has_tags: bool
    shards: tuple[ShardInfo, ...]
    counts: Mapping[str, Any] = field(default_factory=dict)
    created_by: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = schema.SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The manifest as strict JSON, keys in reading order."""
        return {
            "schema_version": self.schema_version,
            "num_videos": self.num_videos,
            "streams": {name: dataclasses.asdict(info) for name, info in self.streams.items()},
            "has_tags": self.has_tags,
            "shards": [shard.to_json() for shard in self.shards],
            "counts": dict(self.counts),
            "created_by": dict(self.created_by),
        }


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check `manifest.json` of a data set folder; the shards themselves are not looked at.

    Raises:
        UserError: No such folder, no or broken manifest, another schema version, a field of the wrong type.
    """
    folder = Path(folder)
    path = folder / schema.MANIFEST_FILE
    if not folder.is_dir():
        what = "is a file, not a data set folder" if folder.exists() else "no such folder"
        raise UserError(what, file=folder, fix="name a folder that `vidsim convert` wrote")
    if not path.exists():
        raise _no_manifest(folder)
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError("must be a JSON object", file=path, fix="convert the data again")
    version = _get(content, "schema_version", int, path)
    if version != schema.SCHEMA_VERSION:
        raise UserError(
            f"is {version}, this vidsim reads {schema.SCHEMA_VERSION}",
            file=path,
            field="schema_version",
            fix="convert the data again, or install the vidsim that wrote it",
        )
    shards = tuple(_read_shard(entry, index, path) for index, entry in enumerate(_get(content, "shards", list, path)))
    manifest = Manifest(
        num_videos=_count(content, "num_videos", path),
        streams=_read_streams(_get(content, "streams", dict, path), path),
        has_tags=_get(content, "has_tags", bool, path),
        shards=shards,
        counts=_get(content, "counts", dict, path, default={}),
        created_by=_get(content, "created_by", dict, path, default={}),
    )
    _check_consistent(manifest, path)
    return manifest


def _no_manifest(folder: Path) -> UserError:
    inside = sorted(path.parent.name for path in folder.glob(f"*/{schema.MANIFEST_FILE}"))
    fix = "name a folder that `vidsim convert` wrote"
    if inside:
        fix = f"name one of the data sets inside it: {', '.join(inside[:5])}"
    return UserError(f"holds no {schema.MANIFEST_FILE}, so it is not a data set", file=folder, fix=fix)


def _check_consistent(manifest: Manifest, path: Path) -> None:
    total = sum(shard.num_rows for shard in manifest.shards)
    if total != manifest.num_videos:
        raise UserError(
            f"is {manifest.num_videos}, but the shards listed hold {total}",
            file=path,
            field="num_videos",
            fix="convert the data again",
        )
    seen: set[str] = set()
    for shard in manifest.shards:
        if shard.file in seen:
            raise UserError(f"the shard {shard.file!r} is listed twice", file=path, field="shards")
        seen.add(shard.file)


def _read_streams(content: dict[str, Any], path: Path) -> dict[str, StreamInfo]:
    streams = {}
    for name, entry in content.items():
        if not isinstance(entry, dict):
            raise UserError(f"the stream {name!r} must be an object", file=path, field="streams")
        dim = _get(entry, "dim", int, path, where=f"streams.{name}.")
        if dim < 1:
            raise UserError(f"is {dim}, must be at least 1", file=path, field=f"streams.{name}.dim")
        extractor = entry.get("extractor")
        if extractor is not None and not isinstance(extractor, str):
            raise UserError("must be text or null", file=path, field=f"streams.{name}.extractor")
        streams[name] = StreamInfo(dim=dim, extractor=extractor)
    check_stream_names(streams, path)
    return streams


def check_stream_names(streams: Mapping[str, Any], file: str | Path) -> None:
    """Refuse stream names that are no identifiers or that clash with another column.

    Raises:
        UserError: Names the stream.
    """
    taken = {schema.ID, schema.TITLE, schema.ASR, schema.TAGS, schema.CATEGORY}
    taken |= {schema.count_column(name) for name in streams}
    for name in streams:
        if not name.isidentifier() or name in taken:
            raise UserError(
                f"{name!r} cannot be the name of a stream",
                file=file,
                field="streams",
                fix="use letters, digits and _, and no name of another column",
            )


def _read_shard(entry: object, index: int, path: Path) -> ShardInfo:
    where = f"shards[{index}]."
    if not isinstance(entry, dict):
        raise UserError(f"shards[{index}] must be an object", file=path, field="shards")
    file = _get(entry, "file", str, path, where=where)
    # A manifest must not lead outside its own folder.
    if not file or file != Path(file).name or file in (".", ".."):
        raise UserError(f"{file!r} is not a file name", file=path, field=f"{where}file")
    digest = _get(entry, "sha256", str, path, where=where)
    if not _SHA256.fullmatch(digest):
        raise UserError("is not a sha256 in hex", file=path, field=f"{where}sha256")
    return ShardInfo(
        file=file,
        num_rows=_count(entry, "num_rows", path, where=where),
        sha256=digest,
        num_bytes=_count(entry, "num_bytes", path, where=where) if "num_bytes" in entry else None,
        source=_get(entry, "source", str, path, where=where) if "source" in entry else None,
        source_sha256=_get(entry, "source_sha256", str, path, where=where) if "source_sha256" in entry else None,
        extra={key: value for key, value in entry.items() if key not in _SHARD_KEYS},
    )


def _count(content: dict[str, Any], key: str, path: Path, where: str = "") -> int:
    value: int = _get(content, key, int, path, where=where)
    if value < 0:
        raise UserError(f"is {value}, must not be negative", file=path, field=where + key)
    return value


def _get(content: dict[str, Any], key: str, kind: type, path: Path, where: str = "", default: Any = None) -> Any:
    value = content.get(key, default)
    # bool is a subclass of int; `true` is no count.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = "is missing" if key not in content else f"must be {kind.__name__}, is {value!r:.40}"
        raise UserError(what, file=path, field=where + key, fix="convert the data again")
    return value
