"""`VectorIndex`: videos by cosine, on faiss, with ids, metadata, filters, removal, and files that can be mapped.

| kind | a vector takes | what it is |
| --- | --- | --- |
| exact | 4 D bytes | every cosine; fast enough up to a million videos |
| compact | D / 2 bytes | 16 levels for each dimension (KDD'18 §4.2.1), every vector looked at |
| large | D + 144 bytes | a graph of neighbours (HNSW) over 8-bit codes: a search looks at some thousand of them |

What `compact` and `large` find first are products with decoded vectors, whose norms are not 1 any more: a worse order
than need be (`docs/results.md`). So four times as many candidates are ordered by cosine, with the decoded vectors or,
with `refine`, with the vectors themselves, which are then kept beside the index (on disk, if it is memory-mapped).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.embeddings import did_you_mean, positions, repeated, shown
from vidsim.data.schema import ID
from vidsim.retrieval import backends
from vidsim.retrieval.backends import KINDS, Float32, Int64
from vidsim.retrieval.conditions import parse_conditions
from vidsim.retrieval.index_files import StoredIndex, read_index, write_index
from vidsim.retrieval.items import KEY, new_items, rows_where
from vidsim.retrieval.vectors import exact_cosines, unit_queries, unit_vectors

Mask = npt.NDArray[np.bool_]

NUM_CANDIDATES: Final = 128
_ADD_BLOCK: Final = 16_384
_QUERY_BLOCK: Final = 1024
# Beyond the k best: float32 sums may order what is nearly equal differently, true cosines put it right.
_MARGIN: Final = 16
_ROUNDING: Final = 1e-5
_MORE: Final = 8
_REFINE_FACTOR: Final = 4
_SAMPLE_SEED: Final = 0


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found.

    Attributes:
        rows: int64 [Q, k], rows of `ids`, the most similar first; -1 where there were no more.
        scores: float32 [Q, k], cosines; -inf where the row is -1. Of a `compact` or `large` index without
            `refine` they are cosines with the decoded vectors.
        ids: The ids of the index, by row.
    """

    rows: Int64
    scores: Float32
    ids: pa.ChunkedArray

    def lists(self) -> list[list[tuple[str, float]]]:
        """(id, cosine) for each query, the most similar first."""
        names = self.ids.take(pa.array(np.maximum(self.rows, 0).ravel())).to_pylist() if self.rows.size else []
        width = self.rows.shape[1]
        return [
            [
                (name, score)
                for name, score, row in zip(names[q * width : (q + 1) * width], scores, rows, strict=True)
                if row >= 0
            ]
            for q, (scores, rows) in enumerate(zip(self.scores.tolist(), self.rows.tolist(), strict=True))
        ]


class VectorIndex:
    """Vectors by id; see the top of the file for the kinds. Made by `build` or `load`.

    Results do not depend on how queries are batched. Equal cosines keep the order in which videos were added; of
    `compact` and `large` that holds among what is found, which of many equal ones is found is up to faiss. Two graphs
    (`large`) of the same vectors are equal only if they were made by one thread.
    """

    def __init__(self, stored: StoredIndex, *, read_only: bool = False) -> None:
        """Take over the parts; use `build` or `load`."""
        self.kind = stored.kind
        self.info = stored.info
        self.num_candidates = stored.num_candidates
        self._backend = stored.backend
        self._items = stored.items
        self._vectors = stored.vectors
        self._next_key = stored.next_key
        self._read_only = read_only

    @classmethod
    def build(
        cls,
        ids: Sequence[str],
        vectors: npt.NDArray[Any],
        *,
        kind: str = "exact",
        refine: bool = False,
        metadata: pa.Table | None = None,
        num_candidates: int = NUM_CANDIDATES,
        info: dict[str, Any] | None = None,
    ) -> VectorIndex:
        """Train an index on vectors and add them.

        Args:
            ids: N distinct ids.
            vectors: float [N, D], finite, no zero rows; read in blocks, so it may be memory-mapped.
            kind: One of `KINDS`.
            refine: Keep the vectors for true cosines (an `exact` index has them anyway).
            metadata: One row for each id, any columns but `id` and `key`.
            num_candidates: How many a search of a `large` index keeps while it walks over the graph: more find more
                of the true neighbours, and take longer.
            info: JSON values that say where the vectors came from.

        Raises:
            UserError: Shapes that do not fit, repeated ids, zero or non-finite vectors, or faiss is not
                installed.
        """
        if kind not in KINDS:
            raise UserError(f"must be one of {', '.join(KINDS)}, not {kind!r}", field="kind")
        if vectors.ndim != 2 or not vectors.size:
            raise UserError(f"vectors must be [N, D], not {list(vectors.shape)}")
        if num_candidates < 1:
            raise UserError(f"must be at least 1, not {num_candidates}", field="num_candidates")
        num_vectors, dim = vectors.shape
        drawn = np.arange(min(num_vectors, backends.num_to_train(kind)))
        if len(drawn) < num_vectors and len(drawn):
            drawn = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(num_vectors, len(drawn), replace=False))
        sample = unit_vectors(vectors[drawn], [ids[row] for row in drawn.tolist()]) if len(drawn) else None
        backend = backends.make_backend(kind, dim, np.zeros((0, dim), np.float32) if sample is None else sample)
        columns: dict[str, Any] = {KEY: pa.array([], pa.int64()), ID: pa.array([], pa.string())}
        for field in metadata.schema if metadata is not None else []:
            if field.name in columns:
                raise UserError(f"must not occur twice, nor be {ID!r} or {KEY!r}", field=field.name)
            columns[field.name] = pa.array([], field.type)
        kept = np.zeros((0, dim), np.float32) if refine and kind != "exact" else None
        stored = StoredIndex(kind, backend, pa.table(columns), kept, 0, num_candidates, dict(info or {}))
        index = cls(stored)
        index.add(ids, vectors, metadata)
        return index

    @classmethod
    def load(cls, folder: str | Path, *, mmap: bool = False) -> VectorIndex:
        """Read an index that `save` wrote.

        Args:
            folder: Where it is.
            mmap: Map its files: opens at once, shares memory between processes, cannot be changed. Without,
                the checksums of the files are compared.

        Raises:
            UserError: Not an index, a damaged file, faiss is not installed.
        """
        return cls(read_index(folder, mmap=mmap), read_only=mmap)

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder, whole or not at all; an index that is there is replaced.

        Raises:
            UserError: The folder holds other files, or the disk is full.
        """
        if backends.has_keys(self._backend):
            backends.forget_places(self._backend)
        parts = (self.kind, self._backend, self._items, self._vectors, self._next_key, self.num_candidates, self.info)
        write_index(folder, StoredIndex(*parts))

    def __len__(self) -> int:
        """Number of videos."""
        return int(self._items.num_rows)

    @property
    def dim(self) -> int:
        """Width of a vector."""
        return int(self._backend.d)

    @property
    def ids(self) -> pa.ChunkedArray:
        """The ids by row; rows are in the order of adding."""
        return self._items[ID]

    @property
    def metadata(self) -> pa.Table:
        """The metadata columns by row."""
        return self._items.drop_columns([KEY, ID])

    @property
    def refines(self) -> bool:
        """Whether scores are true cosines."""
        return self.kind == "exact" or self._vectors is not None

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that made the vectors, if it is known."""
        return self.info.get("model")

    def rows_of(self, ids: Sequence[str]) -> Int64:
        """Row of each id, int64.

        Raises:
            UserError: Ids that the index does not have: how many, the first five, what is spelled like the first.
        """
        rows = positions(ids, self.ids)
        if (rows < 0).any():
            unknown = list(dict.fromkeys(ids[i] for i in np.flatnonzero(rows < 0).tolist()))
            fix = did_you_mean(unknown[0], self.ids, "name ids of this index")
            message = f"{len(unknown):,} ids are not among the {len(self):,} of the index: {shown(unknown)}"
            raise UserError(message, fix=fix)
        return rows

    def vectors_of(self, rows: Int64) -> Float32:
        """Unit vectors of rows, float32 [n, D]; decoded, if the index does not keep the vectors themselves."""
        originals = self._originals()
        if originals is not None:
            return np.ascontiguousarray(originals[rows])
        decoded = backends.decode(self._backend, self._keys()[rows])
        norms = np.sqrt(np.einsum("nd,nd->n", decoded, decoded, dtype=np.float64))
        return decoded / np.maximum(norms, np.finfo(np.float32).tiny)[:, None].astype(np.float32)

    def vectors_by_id(self, ids: Sequence[str]) -> Float32:
        """Unit vectors of videos, float32 [n, D]; see `vectors_of`.

        Raises:
            UserError: Ids that the index does not have.
        """
        return self.vectors_of(self.rows_of(ids))

    def similar(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        where: Sequence[str] = (),
        without: Sequence[Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """`search` by text and ids; see `Searchable`."""
        condition = parse_conditions(where, self.metadata.schema)
        exclude = None
        if without is not None:
            rows = positions([video for one in without for video in one], self.ids)
            parts = np.split(rows, np.cumsum([len(one) for one in without])[:-1])
            exclude = [part[part >= 0].tolist() for part in parts]
        return self.search(queries, k, where=condition, exclude=exclude).lists()

    def add(self, ids: Sequence[str], vectors: npt.NDArray[Any], metadata: pa.Table | None = None) -> None:
        """Add videos; if anything is wrong, none is added.

        Args:
            ids: n ids, distinct and not in the index.
            vectors: float [n, D], finite, no zero rows.
            metadata: One row for each id, with the metadata columns of the index.

        Raises:
            UserError: Another width, ids that are there already or repeated, other metadata columns.
        """
        self._require_writable()
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise UserError(f"vectors are {list(vectors.shape)}, the index is of width {self.dim}")
        if len(ids) != len(vectors):
            raise UserError(f"{len(ids)} ids for {len(vectors)} vectors")
        if twice := repeated(list(ids)):
            raise UserError(f"{len(twice):,} ids occur more than once: {shown(twice)}")
        known = [ids[i] for i in np.flatnonzero(positions(ids, self.ids) >= 0).tolist()] if len(self) else []
        if known:
            raise UserError(f"{len(known):,} ids are in the index already: {shown(known)}", fix="remove them first")
        keys = np.arange(self._next_key, self._next_key + len(ids))
        items = new_items(self.metadata.schema, keys, ids, metadata)
        starts = range(0, len(ids), _ADD_BLOCK)
        for start in starts:  # look at all before the first is added
            unit_vectors(vectors[start : start + _ADD_BLOCK], ids[start : start + _ADD_BLOCK])
        kept = None
        if self._vectors is not None:
            kept = np.empty((len(self) + len(ids), self.dim), np.float32)
            kept[: len(self)] = self._vectors
        for start in progress(starts, desc="index", unit="blocks", enabled=len(starts) > 1):
            block = unit_vectors(vectors[start : start + _ADD_BLOCK], ids[start : start + _ADD_BLOCK])
            backends.add_to(self._backend, block, keys[start : start + _ADD_BLOCK])
            if kept is not None:
                kept[len(self) + start :][: len(block)] = block
        self._vectors = kept
        self._items = pa.concat_tables([self._items, items]).combine_chunks()
        self._next_key += len(ids)

    def remove(self, ids: Sequence[str]) -> None:
        """Take videos out; the others keep their order.

        Raises:
            UserError: Ids that the index does not have (then none is removed).
        """
        self._require_writable()
        rows = np.unique(self.rows_of(ids))
        stays = np.ones(len(self), bool)
        stays[rows] = False
        keys = self._keys()
        renumbered = backends.remove_from(self._backend, keys[rows], keys[stays])
        self._items = self._items.filter(pa.array(stays)).combine_chunks()
        if self._vectors is not None:
            self._vectors = self._vectors[stays]
        if renumbered:
            place = pa.array(np.arange(len(self)), pa.int64())
            self._items = self._items.set_column(self._items.column_names.index(KEY), KEY, place)
            self._next_key = len(self)

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        among: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        exclude: Sequence[Sequence[int]] | None = None,
    ) -> Found:
        """The k most similar videos of each query.

        Args:
            queries: float [Q, D].
            k: How many; fewer come back only if there are not as many.
            among: Only these ids.
            where: Only videos whose metadata fulfil this, such as `pyarrow.compute.field("category") == 3`.
            exclude: For each query the rows that are left out, such as its own.

        Raises:
            UserError: Another width, k < 1, a zero or non-finite query, unknown ids or columns.
        """
        vectors = unit_queries(queries, k, self.dim)
        if exclude is not None and len(exclude) != len(vectors):
            raise UserError(f"{len(exclude)} lists to exclude for {len(vectors)} queries", field="exclude")
        allowed = self._allowed(among, where)
        width = min(k, len(self) if allowed is None else int(allowed.sum()))
        rows = np.full((len(vectors), width), -1, np.int64)
        scores = np.full((len(vectors), width), -np.inf, np.float32)
        for start in range(0, len(vectors) if width else 0, _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            left_out = [np.asarray(one, np.int64) for one in exclude[block]] if exclude is not None else None
            self._search_block(vectors[block], allowed, left_out, rows[block], scores[block], _MARGIN)
        return Found(rows, scores, self.ids)

    def _search_block(
        self,
        queries: Float32,
        allowed: Mask | None,
        left_out: list[Int64] | None,
        rows: Int64,
        scores: Float32,
        margin: int,
    ) -> None:
        """Fill `rows` and `scores` for some queries."""
        num_allowed = len(self) if allowed is None else int(allowed.sum())
        wanted = rows.shape[1] + max((len(one) for one in left_out or []), default=0)
        depth = wanted * (1 if self.kind == "exact" else _REFINE_FACTOR) + margin
        by_key = self._may_be_found(allowed)
        keys, values = backends.nearest(self._backend, queries, min(depth, num_allowed), self.num_candidates, by_key)
        found = np.where(keys >= 0, np.searchsorted(self._keys(), keys), -1)
        for number, candidates in enumerate(found):
            if (candidates < 0).any():  # of very many equal codes faiss's compact search finds some only
                candidates = np.arange(len(self)) if allowed is None else np.flatnonzero(allowed)
            usable = candidates >= 0
            if left_out is not None:
                usable &= ~np.isin(candidates, left_out[number])
            near = candidates[usable]
            cosines = exact_cosines(self.vectors_of(near), queries[number])
            order = np.lexsort((near, -cosines))[: rows.shape[1]]
            rows[number, : len(order)] = near[order]
            scores[number, : len(order)] = np.clip(cosines[order], -1, 1)
        if self.kind != "exact" or depth >= num_allowed:
            return
        # Copies of one video: more of them are equal to the last one wanted than were looked at.
        unsure = np.flatnonzero(values[:, -1] >= values[:, wanted - 1] - _ROUNDING)
        if len(unsure):
            rest = [left_out[number] for number in unsure.tolist()] if left_out is not None else None
            more_rows, more_scores = rows[unsure], scores[unsure]
            self._search_block(queries[unsure], allowed, rest, more_rows, more_scores, margin * _MORE)
            rows[unsure], scores[unsure] = more_rows, more_scores

    def _may_be_found(self, allowed: Mask | None) -> Mask | None:
        """By key; None if all may. What was removed from a graph is still in it."""
        if allowed is None and self._backend.ntotal == len(self):
            return None
        by_key = np.zeros(self._next_key, bool)
        by_key[self._keys() if allowed is None else self._keys()[allowed]] = True
        return by_key

    def _allowed(self, among: Sequence[str] | None, where: pc.Expression | None) -> Mask | None:
        if among is None and where is None:
            return None
        allowed = np.ones(len(self), bool)
        if among is not None:
            allowed[:] = False
            allowed[self.rows_of(among)] = True
        if where is not None:
            fulfils = np.zeros(len(self), bool)
            fulfils[rows_where(self.metadata, where)] = True
            allowed &= fulfils
        return allowed

    def _keys(self) -> Int64:
        keys: Int64 = self._items[KEY].to_numpy()
        return keys

    def _originals(self) -> Float32 | None:
        return backends.flat_vectors(self._backend) if self.kind == "exact" else self._vectors

    def _require_writable(self) -> None:
        if self._read_only:
            raise UserError("the index is memory-mapped and cannot be changed", fix="load it without mmap")
