"""What can be searched: embeddings, the folder of a `VectorIndex`, or a collection of a Qdrant server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.embeddings import read_embeddings
from vidsim.retrieval import qdrant
from vidsim.retrieval.exact import ExactIndex
from vidsim.retrieval.index import VectorIndex
from vidsim.retrieval.index_files import is_index
from vidsim.retrieval.vectors import Float32, require_cosine


class Searchable(Protocol):
    """Videos by cosine; `ExactIndex`, `VectorIndex` and `QdrantIndex` are this."""

    @property
    def model(self) -> str | None:
        """Fingerprint of the model that made the vectors, if it is known."""

    @property
    def dim(self) -> int:
        """Width of a vector."""

    def __len__(self) -> int:
        """Number of videos."""

    def vectors_by_id(self, ids: Sequence[str]) -> Float32:
        """Unit vectors of videos, float32 [n, D]; unknown ids are a `UserError`."""

    def similar(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        where: Sequence[str] = (),
        without: Sequence[Sequence[str]] | None = None,
    ) -> list[list[tuple[str, float]]]:
        """The k most similar videos of each query.

        Args:
            queries: float [Q, D].
            k: How many; fewer come back only if there are not as many.
            where: Conditions on the metadata, such as `category=3`.
            without: For each query ids that are left out, whether they are there or not.

        Returns:
            (id, cosine) for each query, the most similar first.
        """


def open_source(source: str | Path) -> Searchable:
    """Open what is named.

    Args:
        source: Embeddings, the folder of an index (memory-mapped), or URL/collections/NAME.

    Raises:
        UserError: Nothing of the kind is there, it is damaged, it is made for dot products, or what it needs is not
            installed.
    """
    if qdrant.is_address(source):
        return qdrant.open_index(str(source))
    if is_index(source):
        return VectorIndex.load(source, mmap=True)
    embeddings = require_cosine(read_embeddings(source))
    return ExactIndex(embeddings.ids, embeddings.vectors, embeddings.metadata.get("model"))


def require_same_model(searched: Searchable, name: str | Path, *, dim: int, model: str | None, other: str) -> None:
    """Refuse vectors that have no cosine with those of an index.

    Args:
        searched: The index.
        name: Its name, for the message.
        dim: Width of the vectors.
        model: Fingerprint of the model that makes them, if it is known.
        other: Where they come from, for the message.

    Raises:
        UserError: Another width, or another model (where both are known).
    """
    fix = "embed with the model that the index was made with"
    if dim != searched.dim:
        raise UserError(f"holds vectors of width {searched.dim}, those of {other} have {dim}", file=name, fix=fix)
    if None not in (searched.model, model) and searched.model != model:
        raise UserError(f"is of another model than {other}: cosines would mean nothing", file=name, fix=fix)
