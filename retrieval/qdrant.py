"""`QdrantIndex`: videos by cosine in a Qdrant server, where one machine is not enough.

Its address is `URL/collections/NAME`. The collection remembers, in its own metadata (a server of version 1.16 or
later), which model made the vectors and of which types the columns are. A video is a point whose id follows from the
video's id, so adding a video that is there replaces it; a run that was cut off is run again with --add. The key of the
server, if it wants one, is read from QDRANT_API_KEY.

A folder as address, which qdrant-client offers for tests, is refused: it keeps its points as pickles.
"""

from __future__ import annotations

import importlib
import os
import re
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.embeddings import repeated, shown
from vidsim.data.schema import ID
from vidsim.retrieval.conditions import Condition, read_conditions
from vidsim.retrieval.vectors import Float32, unit_queries, unit_vectors

_ADDRESS: Final = re.compile(r"(https?://.+)/collections/([^/]+)/?")
_NAMESPACE: Final = uuid.UUID("b1e29a3c-6d0f-4c0e-9a55-3f6f0d1c7e42")
_OURS: Final = "vidsim"
_FORMAT_VERSION: Final = 1
# A column's type is kept by the name of the widest type like it, and filtered by the server's index of that name.
_COLUMN_TYPES: Final = {"int64": "integer", "double": "float", "bool": "bool", "string": "keyword"}
_BLOCK: Final = 256
_RANGES: Final = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


def is_address(source: str | Path) -> bool:
    """Whether this names a collection of a server."""
    return isinstance(source, str) and _ADDRESS.fullmatch(source) is not None


def open_index(address: str) -> QdrantIndex:
    """The collection `URL/collections/NAME`, made by `create_index`.

    Raises:
        UserError: qdrant-client is not installed, the server does not answer, no such collection, not one of ours.
    """
    url, name = _parts(address)
    return QdrantIndex(_client(url), name, address)


def create_index(
    address: str, dim: int, columns: pa.Schema | None = None, *, model: str | None = None, overwrite: bool = False
) -> QdrantIndex:
    """Make an empty collection.

    Args:
        address: `URL/collections/NAME`.
        dim: Width of a vector.
        columns: Metadata columns: numbers, text, true or false.
        model: Fingerprint of the model that made the vectors.
        overwrite: Remove a collection of that name first.

    Raises:
        UserError: As `open_index`; there is a collection already; a column of another type.
    """
    url, name = _parts(address)
    kinds = {field.name: _kind_of(field) for field in columns or []}
    client, models = _client(url), _package().models
    with _naming(address):
        if client.collection_exists(name):
            if not overwrite:
                raise UserError("there is an index already", file=address, fix="give --add, --remove or --overwrite")
            client.delete_collection(name)
        client.create_collection(
            name,
            vectors_config=models.VectorParams(size=dim, distance=models.Distance.COSINE),
            metadata={_OURS: {"format_version": _FORMAT_VERSION, "model": model, "columns": kinds}},
        )
        if _OURS not in (client.get_collection(name).config.metadata or {}):
            client.delete_collection(name)
            raise UserError("the server keeps no metadata of collections", file=url, fix="use Qdrant 1.16 or later")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # indexes of columns mean nothing to the local mode
            for column, kind in kinds.items():
                client.create_payload_index(name, column, field_schema=_COLUMN_TYPES[kind])
    return QdrantIndex(client, name, address)


class QdrantIndex:
    """A collection, with the methods of `VectorIndex` that go by id.

    Args:
        client: A `qdrant_client.QdrantClient`.
        collection: Its name, made by `create_index`.
        name: For messages.

    Raises:
        UserError: No such collection, or not one of ours.
    """

    def __init__(self, client: Any, collection: str, name: str) -> None:
        """Ask what it holds."""
        self._client, self._collection, self._name = client, collection, name
        self._models = _package().models
        with _naming(name):
            if not client.collection_exists(collection):
                raise UserError("there is no such collection", file=name, fix="make one with `vidsim index`")
            config = client.get_collection(collection).config
        ours = (config.metadata or {}).get(_OURS)
        if not isinstance(ours, dict) or ours.get("format_version") != _FORMAT_VERSION:
            raise UserError("was not made by this vidsim", file=name, fix="make one with `vidsim index`")
        self.model: str | None = ours["model"]
        self.dim = int(config.params.vectors.size)
        self.columns = pa.schema([(column, pa.type_for_alias(kind)) for column, kind in ours["columns"].items()])

    def __len__(self) -> int:
        """Number of videos."""
        with _naming(self._name):
            return int(self._client.count(self._collection, exact=True).count)

    def vectors_by_id(self, ids: Sequence[str]) -> Float32:
        """Unit vectors of videos, float32 [n, D].

        Raises:
            UserError: Ids that are not there.
        """
        points = {point.id: point.vector for point in self._points(ids, with_vectors=True)}
        self._require_all(ids, set(points))
        return np.array([points[_point_id(video)] for video in ids], np.float32).reshape(len(ids), self.dim)

    def add(self, ids: Sequence[str], vectors: npt.NDArray[Any], metadata: pa.Table | None = None) -> None:
        """Add videos; those that are there are replaced.

        Args:
            ids: n distinct ids.
            vectors: float [n, D], finite, no zero rows.
            metadata: One row for each id, with the columns of the collection.

        Raises:
            UserError: Another width, repeated ids, other columns; or the server failed: then some may be there.
        """
        if vectors.ndim != 2 or vectors.shape != (len(ids), self.dim):
            raise UserError(f"vectors are {list(vectors.shape)}, not [{len(ids)}, {self.dim}]", file=self._name)
        if twice := repeated(list(ids)):
            raise UserError(f"{len(twice):,} ids occur more than once: {shown(twice)}")
        given = metadata if metadata is not None else pa.table({})
        if sorted(given.column_names) != sorted(self.columns.names) or (metadata and len(given) != len(ids)):
            message = f"{len(given)} rows of metadata with the columns {given.column_names} for {len(ids)} videos"
            raise UserError(message, file=self._name, fix=f"its columns are: {', '.join(self.columns.names) or 'none'}")
        units = unit_vectors(vectors, ids)
        rows = given.select(self.columns.names).cast(self.columns)
        for start in progress(range(0, len(ids), _BLOCK), desc="index", unit="blocks"):
            part = slice(start, start + _BLOCK)
            payloads = rows.slice(start, _BLOCK).to_pylist() if self.columns.names else [{}] * len(ids[part])
            points = [
                self._models.PointStruct(
                    id=_point_id(video),
                    vector=vector,
                    payload={ID: video} | {key: value for key, value in payload.items() if value is not None},
                )
                for video, vector, payload in zip(ids[part], units[part].tolist(), payloads, strict=True)
            ]
            with _naming(self._name, f"after {start:,} of {len(ids):,} videos"):
                self._client.upsert(self._collection, points, wait=True)

    def remove(self, ids: Sequence[str]) -> None:
        """Take videos out.

        Raises:
            UserError: Ids that are not there (then none is removed).
        """
        self._require_all(ids, {point.id for point in self._points(ids, with_vectors=False)})
        with _naming(self._name):
            self._client.delete(self._collection, [_point_id(video) for video in ids], wait=True)

    def similar(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        where: Sequence[str] = (),
        without: Sequence[Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """See `Searchable`. How exact it is depends on the server's settings of the collection."""
        vectors = unit_queries(queries, k, self.dim, self._name)
        conditions = read_conditions(where, self.columns)
        left_out = without if without is not None else [()] * len(vectors)
        requests = [
            self._models.QueryRequest(query=vector, limit=k, filter=self._filter(conditions, gone), with_payload=[ID])
            for vector, gone in zip(vectors.tolist(), left_out, strict=True)
        ]
        result = []
        for start in range(0, len(requests), _BLOCK):
            with _naming(self._name):
                answers = self._client.query_batch_points(self._collection, requests[start : start + _BLOCK])
            result += [[(point.payload[ID], float(point.score)) for point in answer.points] for answer in answers]
        return result

    def _filter(self, conditions: Sequence[Condition], without: Sequence[str]) -> Any:
        """Conditions in Qdrant's words; as in Arrow, nothing holds of a value that is missing."""
        models = self._models
        must: list[Any] = []
        must_not: list[Any] = [models.HasIdCondition(has_id=[_point_id(video) for video in without])] if without else []
        for one in conditions:
            value, kind = one.value.as_py(), str(one.value.type)
            if one.operator in _RANGES and kind not in ("int64", "double"):
                message = f"Qdrant orders numbers only, {one.column!r} is {kind}"
                raise UserError(message, field="--where", fix="use = or !=")
            if one.operator in _RANGES:
                must.append(models.FieldCondition(key=one.column, range=models.Range(**{_RANGES[one.operator]: value})))
                continue
            if kind == "double":
                equal = models.FieldCondition(key=one.column, range=models.Range(gte=value, lte=value))
            else:
                equal = models.FieldCondition(key=one.column, match=models.MatchValue(value=value))
            if one.operator == "=":
                must.append(equal)
            else:
                must_not += [equal, models.IsEmptyCondition(is_empty=models.PayloadField(key=one.column))]
        return models.Filter(must=must or None, must_not=must_not or None)

    def _points(self, ids: Sequence[str], *, with_vectors: bool) -> Iterator[Any]:
        for start in range(0, len(ids), _BLOCK):
            wanted = [_point_id(video) for video in ids[start : start + _BLOCK]]
            with _naming(self._name):
                yield from self._client.retrieve(
                    self._collection, wanted, with_payload=False, with_vectors=with_vectors
                )

    def _require_all(self, ids: Sequence[str], there: set[str]) -> None:
        if unknown := [video for video in dict.fromkeys(ids) if _point_id(video) not in there]:
            raise UserError(f"{len(unknown):,} ids are not in the index: {shown(unknown)}", file=self._name)


def _point_id(video: str) -> str:
    return str(uuid.uuid5(_NAMESPACE, video))


def _kind_of(field: pa.Field) -> str:
    for name, is_alike in (
        ("int64", pa.types.is_integer),
        ("double", pa.types.is_floating),
        ("bool", pa.types.is_boolean),
        ("string", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    ):
        if is_alike(field.type):
            return name
    raise UserError(f"is {field.type}: Qdrant takes numbers, text, true or false", field=field.name)


def _parts(address: str) -> tuple[str, str]:
    found = _ADDRESS.fullmatch(address)
    if found is None:
        fix = "give an address such as http://localhost:6333/collections/mine"
        raise UserError("is not URL/collections/NAME", file=address, fix=fix)
    return found[1], found[2]


def _package() -> Any:
    try:
        return importlib.import_module("qdrant_client")
    except ImportError as error:
        message = f"a Qdrant collection needs qdrant-client, which cannot be imported ({error})"
        raise UserError(message, fix="pip install 'vidsim[qdrant]'") from error


def _client(url: str) -> Any:
    return _package().QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)


@contextmanager
def _naming(name: str, when: str = "") -> Iterator[None]:
    """Turn what the client raises into one error that names the collection."""
    exceptions = importlib.import_module("qdrant_client.http.exceptions")
    try:
        yield
    except exceptions.ApiException as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"the server failed {when} ({reason:.200})" if when else f"the server failed ({reason:.200})"
        raise UserError(message, file=name, fix="is it running, and is QDRANT_API_KEY right?") from error
