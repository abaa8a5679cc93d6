"""The faiss objects behind a `VectorIndex`: made, trained, filtered, searched, decoded.

faiss is an extra (`pip install 'vidsim[retrieval]'`) and is imported only when an index is made or read.
"""

from __future__ import annotations

import importlib
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
# The range of the 8-bit codes is that of the sample and somewhat more; what lies outside is cut.
_TRAIN_RANGE: Final = 65_536
_RANGE_MARGIN: Final = 0.1
_STEP_OF_CONSTANT: Final = 1e-3
_NUM_LINKS: Final = 16
# Where a filter leaves so few that the graph would be walked over that much of it, all codes are looked at instead.
_LARGEST_WALK: Final = 0.1
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


def num_to_train(kind: str) -> int:
    """How many vectors are worth reading for training."""
    return {"exact": 0, "compact": _TRAIN_LEVELS, "large": _TRAIN_RANGE}[kind]


def make_backend(kind: str, dim: int, sample: Float32) -> Any:
    """A trained faiss index without vectors; scores are inner products.

    `exact` is flat float32. `compact` has the 16 levels for each dimension of `fit_quantizer`, read by fast table
    look-ups; it is kept as an inverted file of one list because only those can be filtered. `large` is a graph of
    neighbours (HNSW) over 8-bit codes.

    Args:
        kind: One of `KINDS`.
        dim: Width D.
        sample: float32 [S, D], unit vectors to train on.
    """
    faiss = faiss_module()
    metric = faiss.METRIC_INNER_PRODUCT
    if kind == "exact":
        return faiss.IndexFlatIP(dim)
    if kind == "large":
        graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, _NUM_LINKS, metric)
        faiss.downcast_index(graph.storage).sq.rangestat_arg = _RANGE_MARGIN
        graph.train(sample)
        return graph
    coarse = faiss.IndexFlatIP(dim)
    coarse.this.disown()
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


def has_keys(backend: Any) -> bool:
    """Whether vectors keep the keys they are added under; otherwise a key is a vector's place."""
    return isinstance(backend, faiss_module().IndexIVF)


def add_to(backend: Any, vectors: Float32, keys: Int64) -> None:
    """Add unit vectors float32 [n, D]; where keys are places, `keys` must be the next ones."""
    if has_keys(backend):
        forget_places(backend)
        backend.add_with_ids(vectors, keys)
    else:
        backend.add(vectors)


def remove_from(backend: Any, removed: Int64, kept: Int64) -> bool:
    """Remove vectors by key; those that are kept stay in their order.

    A graph has no removal: its vectors stay as way-marks that no search may return, until they are the majority;
    then the graph is made anew, which takes as long as at first.

    Returns:
        Whether the places of the vectors, and so their keys, are new: 0, 1, ... in the order of `kept`.
    """
    faiss = faiss_module()
    if isinstance(backend, faiss.IndexFlat):
        backend.remove_ids(removed)
        return True
    is_graph = isinstance(backend, faiss.IndexHNSW)
    if is_graph and 2 * len(kept) >= backend.ntotal:
        return False
    # faiss 1.15 leaves old bits behind in the packed blocks of `compact`, and vectors that are added later are or-ed
    # into them. Levels are encoded as themselves, so decoding and adding again changes no code.
    vectors = [decode(backend, kept[start : start + _DECODE_BLOCK]) for start in range(0, len(kept), _DECODE_BLOCK)]
    if not is_graph:
        forget_places(backend)
    backend.reset()
    for number, block in enumerate(vectors):
        add_to(backend, block, kept[number * _DECODE_BLOCK :][: len(block)])
    return is_graph


def nearest(
    backend: Any, queries: Float32, depth: int, num_candidates: int, allowed_keys: npt.NDArray[np.bool_] | None
) -> tuple[Int64, Float32]:
    """Keys and scores of the best `depth` of each query, the best first.

    Args:
        backend: From `make_backend`.
        queries: float32 [Q, D], unit vectors.
        depth: How many, at most as many as are allowed.
        num_candidates: How many a search keeps while it walks over a graph.
        allowed_keys: bool by key; None for all.

    Returns:
        int64 [Q, depth] and float32 [Q, depth]; of a `compact` index -1 where faiss lost some of many equal codes.
    """
    faiss = faiss_module()
    # The selector does not own its bits: they stay in a variable until the search is over.
    bits = None if allowed_keys is None else np.packbits(allowed_keys, bitorder="little")
    options: dict[str, Any] = {} if bits is None else {"sel": faiss.IDSelectorBitmap(bits)}
    if has_keys(backend):
        scores, keys = backend.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=1, **options))
        return keys, scores
    every = faiss.SearchParameters(**options)
    if not isinstance(backend, faiss.IndexHNSW):
        scores, keys = backend.search(queries, depth, params=every)
        return keys, scores
    num_allowed = backend.ntotal if allowed_keys is None else int(allowed_keys.sum())
    codes = faiss.downcast_index(backend.storage)
    walk = -(-max(num_candidates, depth) * backend.ntotal // max(1, num_allowed))
    if walk > _LARGEST_WALK * backend.ntotal:
        scores, keys = codes.search(queries, depth, params=every)
        return keys, scores
    scores, keys = backend.search(queries, depth, params=faiss.SearchParametersHNSW(efSearch=walk, **options))
    short = np.flatnonzero((keys < 0).any(axis=1))
    if len(short):
        scores[short], keys[short] = codes.search(queries[short], depth, params=every)
    return keys, scores


def decode(backend: Any, keys: Int64) -> Float32:
    """The vectors behind codes, float32 [n, D]; of a lossy kind not of norm 1."""
    faiss = faiss_module()
    if has_keys(backend) and backend.direct_map.type == faiss.DirectMap.NoMap:
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
