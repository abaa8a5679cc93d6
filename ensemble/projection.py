"""The fitted fusion as a file: member order, weights and the projection, to be applied to new videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, sha256_file, write_json
from vidsim.data.embedding_shards import Vectors
from vidsim.data.embeddings import Embeddings, align
from vidsim.ensemble.svd import (
    check_no_zeros,
    check_not_collapsed,
    concat_blocks,
    gram_matrix,
    leading_directions,
    project,
)

PROJECTION_FILE: Final = "projection.json"
TENSOR_FILE: Final = "projection.safetensors"
_TENSOR: Final = "components"
_VERSION: Final = 1


@dataclass(frozen=True)
class Member:
    """One model of a fusion.

    Attributes:
        name: Name of its embeddings' folder when the projection was fitted; only shown.
        dim: Width of its embeddings.
        weight: Its share, >= 0; the shares of all members sum to 1. With share 0 it is left out.
        model: Fingerprint of the model, None if its embeddings carry none.
    """

    name: str
    dim: int
    weight: float
    model: str | None


@dataclass(frozen=True, eq=False)
class Projection:
    """Weighted concatenation of members followed by a projection.

    Attributes:
        members: In the order in which their embeddings are given.
        components: float32 [D, d], orthonormal columns; D is the sum of the widths of members with a share.
        explained: Share of the squared norm of the fitted rows that is kept, 0..1.
        num_fitted: Rows it was fitted on.
        rank: Dimensions that the fitted rows span, as far as they were computed (at most d).
    """

    members: tuple[Member, ...]
    components: npt.NDArray[np.float32]
    explained: float
    num_fitted: int
    rank: int

    @property
    def weights(self) -> list[float]:
        """The members' shares."""
        return [member.weight for member in self.members]

    @property
    def concat_dim(self) -> int:
        """D, the width of the concatenation."""
        return int(self.components.shape[0])

    @property
    def dim(self) -> int:
        """Width of a fused embedding."""
        return int(self.components.shape[1])

    def apply(self, embeddings: Sequence[Embeddings]) -> tuple[list[str], Vectors]:
        """Fuse embeddings of the same videos.

        Args:
            embeddings: One for each member, in the members' order.

        Returns:
            The ids of the first and float32 [N, d] with rows of norm 1.

        Raises:
            UserError: Another number, order or width of members than fitted, ids that differ, zero vectors.
        """
        self._check_members(embeddings)
        ids, vectors = align(embeddings)
        return ids, project(vectors, self.weights, self.components, ids)

    def _check_members(self, embeddings: Sequence[Embeddings]) -> None:
        fix = f"give the embeddings of {', '.join(member.name for member in self.members)}, in this order"
        if len(embeddings) != len(self.members):
            message = f"the projection fuses {len(self.members)} members, {len(embeddings)} are given"
            raise UserError(message, fix=fix)
        for number, (member, given) in enumerate(zip(self.members, embeddings, strict=True), 1):
            model = given.metadata.get("model")
            if given.dim != member.dim:
                message = (
                    f"has width {given.dim}, but member {number} of the projection ({member.name}) has {member.dim}"
                )
                raise UserError(message, file=given.name, fix=fix)
            if model is not None and member.model is not None and model != member.model:
                message = f"was made by another model than member {number} of the projection ({member.name})"
                raise UserError(message, file=given.name, fix=fix)
            check_no_zeros(given)

    def save(self, folder: str | Path) -> str:
        """Write `projection.safetensors` and `projection.json`; return a fingerprint of both."""
        folder = Path(folder)
        with atomic_path(folder / TENSOR_FILE) as temporary:
            save_file({_TENSOR: self.components}, temporary)
        content = {
            "version": _VERSION,
            "dim": self.dim,
            "members": [asdict(member) for member in self.members],
            "explained": self.explained,
            "num_fitted": self.num_fitted,
            "rank": self.rank,
            "sha256": sha256_file(folder / TENSOR_FILE),
        }
        write_json(folder / PROJECTION_FILE, content)
        return sha256_file(folder / PROJECTION_FILE)


def fit_projection(embeddings: Sequence[Embeddings], weights: Sequence[float], dim: int) -> Projection:
    """Fit the exact rank-`dim` projection of the weighted concatenation; no labels are read.

    Args:
        embeddings: One for each member, all of the same videos.
        weights: Shares >= 0 that sum to 1.
        dim: Wanted width d; with d at least the sum of the widths nothing is lost.

    Raises:
        UserError: Ids that differ between members, zero vectors, a member that has collapsed.
    """
    for member in embeddings:
        check_no_zeros(member)
        check_not_collapsed(member)
    ids, vectors = align(embeddings)
    gram = gram_matrix(concat_blocks(vectors, weights))
    components, values = leading_directions(gram, dim)
    members = tuple(
        Member(Path(member.name).name, member.dim, float(weight), member.metadata.get("model"))
        for member, weight in zip(embeddings, weights, strict=True)
    )
    noise = values[0] * len(gram) * np.finfo(np.float64).eps
    return Projection(
        members=members,
        components=np.ascontiguousarray(components, dtype=np.float32),
        explained=min(float(values.sum() / np.trace(gram)), 1.0),
        num_fitted=len(ids),
        rank=int((values > noise).sum()),
    )


def load_projection(folder: str | Path) -> Projection:
    """Read what `Projection.save` wrote.

    Raises:
        UserError: No projection there, a malformed file, tensors that are not the ones that were saved.
    """
    folder = Path(folder)
    path = folder / PROJECTION_FILE
    if not path.exists():
        raise UserError(f"holds no {PROJECTION_FILE}", file=folder, fix="name a folder that `vidsim ensemble` made")
    content = read_json(path)
    try:
        members = tuple(_member(entry) for entry in content["members"])
        if content["version"] != _VERSION or not members:
            raise ValueError(f"version {content['version']} with {len(members)} members")
        explained, fitted, rank = (
            float(content["explained"]),
            int(content["num_fitted"]),
            int(content["rank"]),
        )
        if sha256_file(folder / TENSOR_FILE) != content["sha256"]:
            raise UserError("is not the file that was saved with this projection", file=folder / TENSOR_FILE)
        components = load_file(folder / TENSOR_FILE)[_TENSOR]
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"is not a projection of vidsim ({error!r})", file=path) from error
    shape = (sum(member.dim for member in members if member.weight > 0), content.get("dim"))
    if components.shape != shape or components.dtype != np.float32 or not np.isfinite(components).all():
        raise UserError(f"must be finite float32 {list(shape)}", file=folder / TENSOR_FILE, field=_TENSOR)
    return Projection(members, components, explained, fitted, rank)


def _member(entry: dict[str, Any]) -> Member:
    member = Member(str(entry["name"]), int(entry["dim"]), float(entry["weight"]), entry["model"])
    if not 0 <= member.weight <= 1 or member.dim < 1:
        raise ValueError(f"member {member}")
    return member
