"""Scalar quantisation as in Collaborative Deep Metric Learning (KDD'18 §4.2.1): a video in D x bits / 8 bytes.

Each dimension is one of 2^bits representative values, chosen to minimise the expected squared distance, and dot
products are sums of products read from tables, here divided by the norm of what is decoded. The paper leaves open
whether the values are those of each dimension or shared by all: both are here, and a query may be quantised too
(`symmetric`, the paper's table of all products) or not. For large collections use `VectorIndex` of kind `compact`,
which has the same levels at 4 bits for each dimension, and faster code; this is for comparisons, at 2, 4 and 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt8 = npt.NDArray[np.uint8]

BITS: Final = (2, 4, 8)
_SAMPLE_ROWS: Final = 65_536
_SAMPLE_VALUES: Final = 1 << 22
_MAX_ITERATIONS: Final = 1000
_TOLERANCE: Final = 1e-7  # of the spread of the values
_BLOCK_SCORES: Final = 1 << 22
_BLOCK_ROWS: Final = 16_384


@dataclass(frozen=True, eq=False)
class Quantizer:
    """Representative values and the codes made of them.

    Attributes:
        levels: float32 [D, 2^bits], ascending in each row; equal rows if they are shared.
        bits: 2, 4 or 8.
        shared: Whether all dimensions have the same levels.
    """

    levels: Float32
    bits: int
    shared: bool

    @property
    def dim(self) -> int:
        """Width D of the vectors."""
        return len(self.levels)

    @property
    def num_bytes(self) -> int:
        """Bytes of one packed code."""
        return -(-self.dim * self.bits // 8)

    def encode(self, vectors: npt.ArrayLike) -> UInt8:
        """Packed codes of the nearest levels, uint8 [N, num_bytes].

        Dimension d is in byte `d * bits // 8`, the first of a byte in its lowest bits.

        Raises:
            UserError: Not [N, D], or a value is not finite.
        """
        array = _checked(vectors, self.dim)
        thresholds = (self.levels[:, 1:] + self.levels[:, :-1]) / 2
        if self.shared:
            codes = np.searchsorted(thresholds[0], array).astype(np.uint8)
        else:
            codes = np.empty(array.shape, np.uint8)
            for column in range(self.dim):
                codes[:, column] = np.searchsorted(thresholds[column], array[:, column])
        per_byte = 8 // self.bits
        padded = np.zeros((len(codes), self.num_bytes * per_byte), np.uint8)
        padded[:, : self.dim] = codes
        packed = np.zeros((len(codes), self.num_bytes), np.uint8)
        for place in range(per_byte):
            packed |= padded[:, place::per_byte] << (place * self.bits)
        return packed

    def unpack(self, packed: UInt8) -> UInt8:
        """Number of the level of each dimension, uint8 [N, D]."""
        per_byte = 8 // self.bits
        codes = np.empty((len(packed), self.num_bytes * per_byte), np.uint8)
        for place in range(per_byte):
            codes[:, place::per_byte] = (packed >> (place * self.bits)) & (len(self.levels[0]) - 1)
        return codes[:, : self.dim]

    def decode(self, packed: UInt8) -> Float32:
        """The representative values behind packed codes, float32 [N, D]."""
        return self.levels[np.arange(self.dim), self.unpack(packed)]

    def lengths(self, packed: UInt8) -> Float32:
        """Norms of the vectors behind packed codes, float32 [N], at least the smallest number above 0."""
        parts = [self.decode(packed[start : start + _BLOCK_ROWS]) for start in range(0, len(packed), _BLOCK_ROWS)]
        norms = np.concatenate([np.zeros(0, np.float32), *(np.linalg.norm(part, axis=1) for part in parts)])
        return np.maximum(norms, np.finfo(np.float32).tiny)

    def tables(self, queries: npt.ArrayLike, *, symmetric: bool = False) -> Float32:
        """What each value of each byte of a code adds to the dot product with each query.

        Args:
            queries: float [Q, D].
            symmetric: Quantise the queries too, so that every entry is made of products of two levels.

        Returns:
            float32 [Q, num_bytes, 256].

        Raises:
            UserError: Not [Q, D], or a value is not finite.
        """
        array = _checked(queries, self.dim)
        if symmetric:
            array = self.decode(self.encode(array))
        single = array[:, :, None] * self.levels
        per_byte = 8 // self.bits
        padded = np.zeros((len(array), self.num_bytes * per_byte, single.shape[2]), np.float32)
        padded[:, : self.dim] = single
        tables = np.zeros((len(array), self.num_bytes, 256), np.float32)
        values = np.arange(256)
        for place in range(per_byte):
            level = (values >> (place * self.bits)) & (single.shape[2] - 1)
            tables += padded[:, place::per_byte][:, :, level]
        return tables


def fit_quantizer(vectors: npt.ArrayLike, bits: int, *, shared: bool = False, seed: int = 0) -> Quantizer:
    """Levels with a locally minimal mean squared error (Lloyd), from the quantiles of the values on.

    Args:
        vectors: float [N, D]; of more than 65,536 rows (or 4 M values, if shared) a sample is used.
        bits: 2, 4 or 8 for each dimension.
        shared: One set of levels for all dimensions.
        seed: Of the sample.

    Raises:
        UserError: Other bits, not [N, D] with something in it, or a value is not finite.
    """
    if bits not in BITS:
        raise UserError(f"must be 2, 4 or 8, not {bits}", field="bits")
    array = np.asarray(vectors)
    if array.ndim != 2 or not array.size:
        raise UserError(f"vectors must be [N, D], not {list(array.shape)}")
    most = min(_SAMPLE_ROWS, max(1, _SAMPLE_VALUES // array.shape[1])) if shared else _SAMPLE_ROWS
    if len(array) > most:
        array = array[np.sort(np.random.default_rng(seed).choice(len(array), most, replace=False))]
    array = _checked(array, array.shape[1])
    if shared:
        return Quantizer(np.tile(_lloyd(array.ravel(), 1 << bits), (array.shape[1], 1)), bits, shared)
    return Quantizer(np.stack([_lloyd(column, 1 << bits) for column in array.T]), bits, shared)


def search_codes(
    quantizer: Quantizer, packed: UInt8, queries: npt.ArrayLike, k: int, *, symmetric: bool = False
) -> tuple[Int64, Float32]:
    """The k codes with the largest cosines with each query, by table look-ups.

    Decoded vectors are not of norm 1, and the dot products alone order them worse (`docs/results.md`). Their norms
    follow from the codes, so they take no bytes.

    Args:
        quantizer: What made the codes.
        packed: uint8 [N, num_bytes].
        queries: float [Q, D].
        k: How many; at most N come back.
        symmetric: Quantise the queries too.

    Returns:
        Rows int64 [Q, min(k, N)] and dot products with the decoded vectors at norm 1, float32, the largest first, equal
        ones by row: as `modeling.ranking_metrics.ranked_by_rows` takes them.

    Raises:
        UserError: k < 1, codes of another length, queries of another width.
    """
    if k < 1:
        raise UserError(f"must be at least 1, not {k}", field="k")
    if packed.ndim != 2 or packed.shape[1] != quantizer.num_bytes or packed.dtype != np.uint8:
        raise UserError(f"codes are {packed.dtype} {list(packed.shape)}, not uint8 [N, {quantizer.num_bytes}]")
    array = _checked(queries, quantizer.dim)
    k = min(k, len(packed))
    rows, best = np.empty((len(array), k), np.int64), np.empty((len(array), k), np.float32)
    by_byte, lengths = np.ascontiguousarray(packed.T), quantizer.lengths(packed)
    step = max(1, _BLOCK_SCORES // max(len(packed), quantizer.num_bytes * 256))
    for start in range(0, len(array) if k else 0, step):
        tables = quantizer.tables(array[start : start + step], symmetric=symmetric)
        scores = np.zeros((len(tables), len(packed)), np.float32)
        for byte, codes in enumerate(by_byte):
            scores += np.take(tables[:, byte], codes, axis=1)
        scores /= lengths
        for number, values in enumerate(scores, start):
            candidates = np.flatnonzero(values >= np.partition(values, len(values) - k)[len(values) - k])
            order = np.argsort(-values[candidates], kind="stable")[:k]
            rows[number], best[number] = candidates[order], values[candidates[order]]
    return rows, best


def _checked(vectors: npt.ArrayLike, dim: int) -> Float32:
    array = np.asarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise UserError(f"vectors must be [N, {dim}], not {list(array.shape)}")
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(f"{len(bad):,} vectors are not finite", record=int(bad[0]))
    return array


def _lloyd(values: Float32, num_levels: int) -> Float32:
    """Levels of one dimension: cells end half-way between levels, levels are the means of their cells."""
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    levels = np.quantile(ordered, (np.arange(num_levels) + 0.5) / num_levels)
    spread = max(float(ordered[-1] - ordered[0]), np.finfo(np.float64).tiny)
    for _ in range(_MAX_ITERATIONS):
        inner = np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2, side="right")
        ends = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(ends)
        means = np.diff(sums[ends]) / np.maximum(counts, 1)
        moved = np.sort(np.where(counts > 0, means, levels))  # an empty cell keeps its level
        done = np.abs(moved - levels).max() <= _TOLERANCE * spread
        levels = moved
        if done:
            break
    return levels.astype(np.float32)
