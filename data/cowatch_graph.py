"""The graph of videos watched one after another, its videos split into train, validation and eval.

A graph folder holds `edges.parquet` (`video1 < video2: string`, `weight: double`), `videos.parquet` (`id`, `part`,
`num_neighbours: int64`) and, written last, `cowatch.json`. The part of a video is a function of its id and a seed: it
stays the same when the graph is made anew from more sessions, and needs no list. An edge is trained on if both of its
videos are in train; a checkpoint is chosen by the edges between train and validation and reported on those between
train and eval.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from vidsim.common.errors import UserError
from vidsim.common.files import read_json, sha256_file
from vidsim.data.embeddings import positions, shown

EDGES_FILE, VIDEOS_FILE, INDEX_FILE = "edges.parquet", "videos.parquet", "cowatch.json"
FORMAT_VERSION = 2
PARTS = ("train", "validation", "eval")
SPLIT_SETTINGS = ("eval_fraction", "validation_fraction", "seed")  # as `parts_of` takes them
TRAIN, VALIDATION, EVAL = range(3)
Integers = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]


def hash_of(text: str, seed: int) -> int:
    """64 bits that follow from a text and a seed, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(8, "little")).digest())


def parts_of(ids: Iterable[str], eval_fraction: float, validation_fraction: float, seed: int) -> npt.NDArray[np.int8]:
    """The part of each video, int8 [N]; each is drawn by itself, with these probabilities."""
    eval_limit, limit = (int(share * 2**64) for share in (eval_fraction, eval_fraction + validation_fraction))
    hashes = (hash_of(id, seed) for id in ids)
    parts = [EVAL if one < eval_limit else VALIDATION if one < limit else TRAIN for one in hashes]
    return np.array(parts, dtype=np.int8)


@dataclass(frozen=True, eq=False)
class CowatchGraph:
    """Videos and the edges between them.

    Attributes:
        ids: V ids.
        part: int8 [V], `TRAIN`, `VALIDATION` or `EVAL`.
        edges: int64 [2, E], numbers of videos; every undirected edge once.
        weights: float64 [E], how often the two were watched one after the other, or the sum of the sessions' weights.
        manifest: `cowatch.json`.
        name: Where it came from, for messages.
    """

    ids: list[str]
    part: npt.NDArray[np.int8]
    edges: Integers
    weights: Weights
    manifest: dict[str, Any]
    name: str = "co-watch graph"

    def training_edges(self) -> Integers:
        """Positions of the edges whose videos are both in the training part."""
        return np.flatnonzero((self.part[self.edges] == TRAIN).all(axis=0))

    def popularity(self) -> npt.NDArray[np.float32]:
        """In how many training edges each video is, float32 [V]."""
        ends = self.edges[:, self.training_edges()].reshape(-1)
        return np.bincount(ends, minlength=len(self.ids)).astype(np.float32)

    def neighbours(self, edges: Integers | None = None) -> Neighbours:
        """Who is next to whom, over these edges (positions) or all."""
        chosen = self.edges if edges is None else self.edges[:, edges]
        return Neighbours.of(chosen, len(self.ids))


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Adjacency lists in compressed rows, both directions.

    Attributes:
        starts: int64 [V + 1].
        videos: int64 [2E], neighbours of video v at `starts[v] : starts[v + 1]`, ascending.
    """

    starts: Integers
    videos: Integers

    @classmethod
    def of(cls, edges: Integers, num_videos: int) -> Neighbours:
        """Sort edges int64 [2, E] into rows."""
        source = np.concatenate([edges[0], edges[1]])
        target = np.concatenate([edges[1], edges[0]])
        order = np.lexsort((target, source))
        starts = np.zeros(num_videos + 1, dtype=np.int64)
        np.cumsum(np.bincount(source, minlength=num_videos), out=starts[1:])
        return cls(starts, target[order])

    def row(self, video: int) -> Integers:
        """Neighbours of a video."""
        return self.videos[self.starts[video] : self.starts[video + 1]]

    def pairs_within(self, anchors: Integers, candidates: Integers) -> tuple[Integers, Integers]:
        """Which candidates are neighbours of which anchors.

        Args:
            anchors: int64 [A], videos; may repeat.
            candidates: int64 [C], videos; may repeat.

        Returns:
            Two int64 [M], positions of anchors (ascending) and of candidates.
        """
        order = np.argsort(candidates, kind="stable")
        ordered = candidates[order]
        counts = self.starts[anchors + 1] - self.starts[anchors]
        found = self.videos[_ranges(self.starts[anchors], counts)]
        first, last = np.searchsorted(ordered, found, "left"), np.searchsorted(ordered, found, "right")
        rows = np.repeat(np.repeat(np.arange(len(anchors)), counts), last - first)
        return rows, order[_ranges(first, last - first)]


def _ranges(starts: Integers, counts: Integers) -> Integers:
    """`starts[0], starts[0] + 1, ...` for each start, one after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def triplets_of(graph: CowatchGraph, edges: Integers, epoch: int, seed: int) -> Integers:
    """Training triplets of an epoch: one an edge, its direction and its random negative drawn anew.

    A negative is any training video that is not the anchor or the positive, with an edge or without: what nobody
    watches with anything is a candidate in a search, too. The graph's own neighbours are masked where negatives are
    mined, not here.

    Args:
        graph: The graph.
        edges: int64 [N], positions of training edges.
        epoch: Of the run.
        seed: Of the run.

    Returns:
        int64 [3, N]: anchor, positive, negative; video numbers, all of the training part.

    Raises:
        ValueError: An edge that touches a held-out video, or fewer than three training videos.
    """
    pairs = graph.edges[:, edges]
    if (graph.part[pairs] != TRAIN).any():
        raise ValueError("an edge of a held-out video cannot be trained on")
    pool = np.flatnonzero(graph.part == TRAIN)
    if len(pool) < 3:
        raise ValueError("a triplet needs three training videos")
    generator = np.random.default_rng([seed, epoch])
    flip = generator.random(pairs.shape[1]) < 0.5
    anchor, positive = np.where(flip, pairs[1], pairs[0]), np.where(flip, pairs[0], pairs[1])
    # One of the pool without two members: draw from what is left and step over the two.
    lower, upper = np.sort(np.searchsorted(pool, pairs), axis=0)
    drawn = generator.integers(0, len(pool) - 2, size=pairs.shape[1])
    drawn += drawn >= lower
    drawn += drawn >= upper
    return np.stack([anchor, positive, pool[drawn]])


def read_graph(folder: str | Path) -> CowatchGraph:
    """Read a graph folder.

    Raises:
        UserError: Nothing there, another format, a file that is not the one that was written.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"holds no co-watch graph (no {INDEX_FILE})", file=folder, fix="make one with `vidsim cowatch`")
    manifest = _read_manifest(folder / INDEX_FILE)
    for name in (EDGES_FILE, VIDEOS_FILE):
        if not (folder / name).is_file():
            raise UserError("is missing", file=folder / name, fix="make the graph anew with `vidsim cowatch`")
        if sha256_file(folder / name) != manifest["files"][name]["sha256"]:
            raise UserError(f"is not the file {INDEX_FILE} speaks of", file=folder / name, fix="make the graph anew")
    videos, edges = pq.read_table(folder / VIDEOS_FILE), pq.read_table(folder / EDGES_FILE)
    ids: list[str] = videos["id"].to_pylist()
    ends = [positions(edges[name].to_pylist(), ids) for name in ("video1", "video2")]
    part = np.array([PARTS.index(name) for name in videos["part"].to_pylist()], dtype=np.int8)
    return CowatchGraph(ids, part, np.stack(ends), edges["weight"].to_numpy(), manifest, str(folder))


def _read_manifest(path: Path) -> dict[str, Any]:
    """`cowatch.json`, with what is read of it later checked."""
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise UserError("is of another format version", file=path, fix="make it anew")
    fix = "make the graph anew with `vidsim cowatch`"
    for key, names in (("files", (EDGES_FILE, VIDEOS_FILE)), ("settings", SPLIT_SETTINGS)):
        if not isinstance(manifest.get(key), dict) or not set(names) <= manifest[key].keys():
            raise UserError(f"lacks one of {', '.join(names)}", file=path, field=key, fix=fix)
    for entry in manifest["files"].values():
        if not isinstance(entry, dict) or "sha256" not in entry:
            raise UserError("lacks a sha256", file=path, field="files", fix=fix)
    return manifest


def on_videos(graph: CowatchGraph, ids: list[str]) -> CowatchGraph:
    """The graph over all videos that have features, numbered in their order.

    Videos without an edge fall into the parts by the graph's own rule.

    Raises:
        UserError: A video of the graph has no features; how many, and the first five.
    """
    numbers = positions(graph.ids, ids)
    missing = [graph.ids[i] for i in np.flatnonzero(numbers < 0).tolist()]
    if missing:
        what = f"{len(missing):,} of its {len(graph.ids):,} videos have no features: {shown(missing)}"
        fix = "add their features, or make the graph with `vidsim cowatch --features ... --drop_unknown`"
        raise UserError(what, file=graph.name, fix=fix)
    settings = graph.manifest["settings"]
    part = parts_of(ids, *(settings[name] for name in SPLIT_SETTINGS))
    if (part[numbers] != graph.part).any():
        raise UserError("the parts of its videos do not follow from its own settings", file=graph.name)
    return CowatchGraph(ids, part, numbers[graph.edges], graph.weights, graph.manifest, graph.name)
