"""What related-video search loses when embeddings are stored in fewer bytes (KDD'18 Table 3), with the paper's tables.

Levels and principal directions are fitted on the training videos only. The last row keeps as many principal directions,
as float32, as fit into the bytes of 4 bits a dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vidsim.common.errors import UserError
from vidsim.common.progress import progress
from vidsim.data.cowatch_graph import TRAIN, CowatchGraph
from vidsim.data.cowatch_queries import RelatedQueries
from vidsim.modeling.ranking_metrics import ndcg_at_k, ranked_by_rows
from vidsim.retrieval.exact import ExactIndex
from vidsim.retrieval.quantization import BITS, fit_quantizer, search_codes
from vidsim.retrieval.vectors import Float32, Float64, Int64

Search = Callable[[Float32, Float32, int], Int64]
_NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class QuantizationTable:
    """One entry for each way to store a video.

    Attributes:
        entries: `name`, `bytes` and, for each direction, `ndcg`, `loss` (relative to float32) and `interval` of the
            loss (95 %, bootstrap over queries).
        k: Cut-off.
    """

    entries: list[dict[str, Any]]
    k: int

    def markdown(self) -> str:
        """A table for people."""
        directions = [name for name in self.entries[0] if name not in ("name", "bytes")]
        heads = [head for name in directions for head in (f"{name} NDCG@{self.k}", "relative loss, %")]
        lines = [f"| | bytes | {' | '.join(heads)} |", "| --- | --- |" + " --- |" * len(heads)]
        for entry in self.entries:
            cells = [entry["name"], f"{entry['bytes']:,}"]
            for name in directions:
                one = entry[name]
                low, high = (100 * value for value in one["interval"])
                cells += [f"{one['ndcg']:.4f}", f"{100 * one['loss']:.2f} [{low:.2f}, {high:.2f}]"]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def quantization_table(
    members: Sequence[Float32], graph: CowatchGraph, queries: Mapping[str, RelatedQueries], k: int, seed: int = 0
) -> QuantizationTable:
    """NDCG@k of stored candidates, in both directions; relevance 0 or 1.

    Args:
        members: float32 [V, D], unit vectors of the videos of the graph, all of one width; more than one are models
            trained from several seeds, and a query's figure is the mean over them.
        graph: The graph.
        queries: From `related_queries`.
        k: Cut-off.
        seed: Of the resamples.

    Raises:
        UserError: Members of several widths.
    """
    if len({one.shape[1] for one in members}) > 1:
        raise UserError(f"are of several widths: {sorted({one.shape[1] for one in members})}", field="embeddings")
    truth = {name: _relevant(related) for name, related in queries.items()}
    names: list[tuple[str, int]] = []
    values: dict[str, list[list[Float64]]] = {direction: [] for direction in queries}
    for vectors in progress(members, desc="quantization", unit="embeddings"):
        ways = _ways(vectors[graph.part == TRAIN])
        names = [(name, num_bytes) for name, num_bytes, _ in ways]
        for direction, related in queries.items():
            asking, stored = vectors[related.queries], vectors[related.candidates]
            found = [ranked_by_rows(search(asking, stored, k), truth[direction]) for _, _, search in ways]
            values[direction].append([ndcg_at_k(*one, k, gain="exponential") for one in found])
    means = {direction: np.mean(one, axis=0) for direction, one in values.items()}  # [ways, Q]
    entries = [
        {"name": name, "bytes": num_bytes}
        | {direction: _loss(one[place], one[0], seed) for direction, one in means.items()}
        for place, (name, num_bytes) in enumerate(names)
    ]
    return QuantizationTable(entries, k)


def _ways(training: Float32) -> list[tuple[str, int, Search]]:
    """Name, bytes of a video, and search (queries, candidates, k) -> rows, of every way; float32 first."""
    dim = training.shape[1]
    ways: list[tuple[str, int, Search]] = [("float32", 4 * dim, _exact)]
    for bits in sorted(BITS, reverse=True):
        for shared in (False, True):
            quantizer = fit_quantizer(training, bits, shared=shared)
            for symmetric in (False, True):
                levels = "shared levels" if shared else "levels for each dimension"
                name = f"{bits} bits, {levels}, query {'too' if symmetric else 'float32'}"

                def coded(
                    asking: Float32, stored: Float32, k: int, quantizer: Any = quantizer, symmetric: bool = symmetric
                ) -> Int64:
                    return search_codes(quantizer, quantizer.encode(stored), asking, k, symmetric=symmetric)[0]

                ways.append((name, quantizer.num_bytes, coded))
    kept = max(1, dim // 8)
    # Eigenvectors of the second moments, not of the covariance: these keep dot products best.
    directions = np.linalg.eigh(training.T.astype(np.float64) @ training)[1][:, ::-1][:, :kept].astype(np.float32)

    def projected(asking: Float32, stored: Float32, k: int) -> Int64:
        return _exact(asking @ directions, stored @ directions, k)

    return [*ways, (f"float32, {kept} principal directions", 4 * kept, projected)]


def _exact(asking: Float32, stored: Float32, k: int) -> Int64:
    return ExactIndex([str(row) for row in range(len(stored))], stored).search(asking, k)[0]


def _relevant(related: RelatedQueries) -> list[dict[int, float]]:
    relevant: list[dict[int, float]] = [{} for _ in related.queries]
    for row, column in zip(related.rows.tolist(), related.columns.tolist(), strict=True):
        relevant[row][column] = 1.0
    return relevant


def _loss(values: Float64, reference: Float64, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    losses = []
    for _ in range(_NUM_RESAMPLES):
        drawn = generator.integers(0, len(values), len(values))
        base = reference[drawn].mean()
        losses.append(1 - values[drawn].mean() / base if base else 0.0)
    base = float(reference.mean())
    loss = 1 - float(values.mean()) / base if base else 0.0
    low, high = np.quantile(losses, [0.025, 0.975])
    return {"ndcg": float(values.mean()), "loss": loss, "interval": (float(low), float(high))}
