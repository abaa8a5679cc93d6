"""The faiss objects behind a `VectorIndex`: made, trained, filtered, searched, decoded.

faiss is an extra (`pip install 'vidsim[retrieval]'`) and is imported only when an index is made or read.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.retrieval.quantization import fit_quantizer

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Kind = Literal["exact", "compact", "large"]
KINDS: Final[tuple[str, ...]] = get_args(Kind)

BITS: Final = 4
_TRAIN_LEVELS: Final = 16_384
# What faiss draws for k-means at most; more would be read and thrown away.
_TRAIN_PER_LIST: Final = 64
# The range of the 8-bit codes is that of the sample and somewhat more; what lies outside is cut.
_TRAIN_RANGE: Final = 65_536
_RANGE_MARGIN: Final = 0.1
_STEP_OF_CONSTANT: Final = 1e-3
_FEWEST_PER_LIST: Final = 39
_DECODE_BLOCK: Final = 65_536


def faiss_module() -> Any:
    """The faiss package.

    Raises:
        UserError: It is not installed; names the extra.
    """
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            f"an index needs faiss, which cannot be imported ({error})", fix="pip install 'vidsim[retrieval]'"
        ) from error


def number_of_lists(num_vectors: int) -> int:
    """Cells of a `large` index: twice the root of the number of vectors, with some vectors for each."""
    return max(1, min(round(2 * math.sqrt(num_vectors)), num_vectors // _FEWEST_PER_LIST))


def num_to_train(kind: str, num_lists: int) -> int:
    """How many vectors are worth reading for training."""
    large = max(num_lists * _TRAIN_PER_LIST, _TRAIN_RANGE)
    return {"exact": 0, "compact": _TRAIN_LEVELS, "large": large}[kind]


def make_backend(kind: str, dim: int, num_lists: int, sample: Float32) -> Any:
    """A trained faiss index without vectors; scores are inner products.

    `exact` is flat float32. `compact` has the 16 levels for each dimension of `fit_quantizer`, read by fast table
    look-ups; it is kept as an inverted file of one list because only those can be filtered. `large` is an inverted
    file of 8-bit codes, of the residuals to the centre of the list.

    Args:
        kind: One of `KINDS`.
        dim: Width D.
        num_lists: Lists of a `large` index.
        sample: float32 [S, D], unit vectors to train on.

    Raises:
        UserError: Fewer vectors than lists.
    """
    faiss = faiss_module()
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "exact":
        return faiss.IndexFlatIP(dim)
    coarse = faiss.IndexFlatIP(dim)
    coarse.this.disown()
    if kind == "compact":
        index = faiss.IndexIVFPQFastScan(coarse, dim, 1, dim, BITS, metric)
        index.own_fields = True
        index.by_residual = False  # one list: its centre says nothing, and the tables serve all queries alike
        # Not faiss's k-means, which starts at random: better levels, in a fraction of the time.
        coarse.add(np.zeros((1, dim), np.float32))
        levels = fit_quantizer(sample, BITS).levels.copy()
        constant = levels[:, 0] == levels[:, -1]  # faiss finds nothing if all levels are one, as with one video
        levels[constant] += np.arange(1 << BITS, dtype=np.float32) * _STEP_OF_CONSTANT
        faiss.copy_array_to_vector(levels.ravel(), index.pq.centroids)
        index.is_trained = True
        return index
    if len(sample) < num_lists:
        message = f"{num_lists} lists need at least as many vectors, there are {len(sample)}"
        raise UserError(message, fix="ask for fewer, or use kind 'exact', which is fast up to a million videos")
    index = faiss.IndexIVFScalarQuantizer(coarse, dim, num_lists, faiss.ScalarQuantizer.QT_8bit, metric)
    index.own_fields = True
    index.cp.max_points_per_centroid = _TRAIN_PER_LIST
    index.cp.min_points_per_centroid = 1  # no warning on standard error about few vectors
    index.sq.rangestat_arg = _RANGE_MARGIN
    index.train(sample)
    return index


def add_to(backend: Any, vectors: Float32, keys: Int64) -> None:
    """Add unit vectors float32 [n, D] under keys int64 [n]; an `exact` index numbers them by itself."""
    if is_inverted(backend):
        forget_places(backend)
        backend.add_with_ids(vectors, keys)
    else:
        backend.add(vectors)


def remove_from(backend: Any, removed: Int64, kept: Int64) -> None:
    """Remove vectors by key; those that are kept stay in their order."""
    faiss = faiss_module()
    if not isinstance(backend, faiss.IndexIVFPQFastScan):
        if is_inverted(backend):
            forget_places(backend)
        backend.remove_ids(removed)
        return
    # faiss 1.15 leaves old bits behind in its packed blocks, and vectors that are added later are or-ed into
    # them. Levels are encoded as themselves, so decoding and adding again changes no code.
    vectors = [decode(backend, kept[start : start + _DECODE_BLOCK]) for start in range(0, len(kept), _DECODE_BLOCK)]
    forget_places(backend)
    backend.reset()
    for number, block in enumerate(vectors):
        backend.add_with_ids(block, kept[number * _DECODE_BLOCK :][: len(block)])


def is_inverted(backend: Any) -> bool:
    """Whether it is an inverted file, with keys of its own."""
    return isinstance(backend, faiss_module().IndexIVF)


def nearest(
    backend: Any, queries: Float32, depth: int, num_probes: int, allowed_keys: npt.NDArray[np.bool_] | None
) -> tuple[Int64, Float32]:
    """Keys and scores of the best `depth` of each query, the best first.

    Args:
        backend: From `make_backend`.
        queries: float32 [Q, D], unit vectors.
        depth: How many.
        num_probes: Lists of a `large` index to look into.
        allowed_keys: bool by key; None for all.

    Returns:
        int64 [Q, depth], -1 where the lists held no more, and float32 [Q, depth].
    """
    faiss = faiss_module()
    # The selector does not own its bits: they stay in a variable until the search is over.
    bits = None if allowed_keys is None else np.packbits(allowed_keys, bitorder="little")
    selector = None if bits is None else faiss.IDSelectorBitmap(bits)
    options: dict[str, Any] = {} if selector is None else {"sel": selector}
    if is_inverted(backend):
        parameters = faiss.SearchParametersIVF(nprobe=min(num_probes, backend.nlist), **options)
    else:
        parameters = faiss.SearchParameters(**options)
    scores, keys = backend.search(queries, depth, params=parameters)
    return keys, scores


def decode(backend: Any, keys: Int64) -> Float32:
    """The vectors behind codes, float32 [n, D]; of a lossy kind not of norm 1."""
    faiss = faiss_module()
    if is_inverted(backend) and backend.direct_map.type == faiss.DirectMap.NoMap:
        backend.set_direct_map_type(faiss.DirectMap.Hashtable)
    if not len(keys):
        return np.zeros((0, backend.d), np.float32)
    vectors: Float32 = backend.reconstruct_batch(keys)
    return vectors


def flat_vectors(backend: Any) -> Float32:
    """The vectors of an `exact` index without a copy, float32 [N, D]; valid until it is added to or removed from."""
    faiss = faiss_module()
    if not backend.ntotal:
        return np.zeros((0, backend.d), np.float32)
    view: Float32 = faiss.rev_swig_ptr(backend.get_xb(), backend.ntotal * backend.d)
    return view.reshape(backend.ntotal, backend.d)


def forget_places(backend: Any) -> None:
    """Drop the map from key to code, which is made when codes are decoded and is in the way of changes."""
    backend.set_direct_map_type(faiss_module().DirectMap.NoMap)
