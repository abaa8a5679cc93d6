"""Indexes of a million videos: time to build, size, peak memory, recall and queries a second, beside plain faiss.

    python benchmarks/index_scale.py --out runs/index_scale            1,000,000 x 256 vectors; 6 GB of disk
    python benchmarks/index_scale.py --out runs/index_quick --quick    20,000, in a minute

Vectors are made once, in blocks, into a memory-mapped file: topics on a 48-dimensional subspace with noise. Every
build and every search is a process of its own; its peak memory counts the pages of mapped files that it touched.
Searches of `VectorIndex`, memory-mapped, and of plain faiss objects with the same codes alternate for some rounds;
the table has medians and, in brackets, the range. Recall is against all true cosines. A run that was cut off goes
on with the indexes that are missing. Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vidsim.common.files import atomic_path, read_json, write_json
from vidsim.common.progress import progress
from vidsim.retrieval.backends import faiss_module
from vidsim.retrieval.index import NUM_CANDIDATES, VectorIndex

BLOCK = 65_536
RANK = 48
NUM_SINGLE = 100
OURS: dict[str, dict[str, Any]] = {
    "exact": {"kind": "exact"},
    "compact": {"kind": "compact"},
    "compact+refine": {"kind": "compact", "refine": True},
    "large": {"kind": "large"},
    "large+refine": {"kind": "large", "refine": True},
}
# The plain faiss object beside each kind, and an inverted file, the usual other choice.
PEERS = {"exact": "Flat", "compact": "PQ{dim}x4fs", "large": "HNSW16,SQ8", "inverted": "IVF{lists},SQ8"}
NUM_PROBES = 64


def make_vectors(path: Path, num: int, dim: int, seed: int) -> None:
    """Write float32 [num, dim] unit vectors to an .npy file, block by block; one that is there already is kept."""
    if path.exists():
        if np.load(path, mmap_mode="r").shape != (num, dim):
            raise SystemExit(f"{path} is of another size: choose another --out")
        return
    shared = np.random.default_rng(0)  # the same topics for videos and queries
    basis = shared.normal(size=(RANK, dim)).astype(np.float32)
    topics = shared.normal(size=(4000, RANK)).astype(np.float32)
    generator = np.random.default_rng(seed)
    with atomic_path(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(num, dim))
        for start in progress(range(0, num, BLOCK), desc=path.stem, unit="blocks"):
            count = min(BLOCK, num - start)
            noise = generator.normal(size=(count, RANK)).astype(np.float32)
            block = (topics[generator.integers(0, len(topics), count)] + 0.8 * noise) @ basis
            block += generator.normal(size=block.shape).astype(np.float32)
            array[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
        array.flush()
        del array


def true_neighbours(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest cosines of each query, int64 [Q, k], block by block."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    for start in progress(range(0, len(vectors), BLOCK), desc="truth", unit="blocks"):
        scores = np.concatenate([best, queries @ vectors[start : start + BLOCK].T], axis=1)
        numbers = np.concatenate(
            [rows, np.broadcast_to(np.arange(start, start + scores.shape[1] - k), (len(rows), scores.shape[1] - k))],
            axis=1,
        )
        first = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        best, rows = np.take_along_axis(scores, first, axis=1), np.take_along_axis(numbers, first, axis=1)
    return rows


def build(out: Path, name: str) -> dict[str, float]:
    """Build one index from the memory-mapped vectors and write it; seconds and bytes."""
    vectors = np.load(out / "vectors.npy", mmap_mode="r")
    start = time.perf_counter()
    if name in OURS:
        index = VectorIndex.build([f"video{row}" for row in range(len(vectors))], vectors, **OURS[name])
        built = time.perf_counter()
        index.save(out / name)
        num_bytes = sum(path.stat().st_size for path in (out / name).iterdir())
    else:
        faiss = faiss_module()
        num_lists = round(2 * len(vectors) ** 0.5)
        factory = PEERS[name.removeprefix("faiss ")].format(dim=vectors.shape[1], lists=num_lists)
        plain = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        plain.train(np.ascontiguousarray(vectors[: max(BLOCK, 64 * num_lists)]))
        for first in range(0, len(vectors), BLOCK):
            plain.add(np.ascontiguousarray(vectors[first : first + BLOCK]))
        built = time.perf_counter()
        faiss.write_index(plain, str(out / f"{name}.faiss"))
        num_bytes = (out / f"{name}.faiss").stat().st_size
    return {"build_s": built - start, "save_s": time.perf_counter() - built, "bytes": num_bytes}


def search(out: Path, name: str, k: int) -> dict[str, float]:
    """Load one index memory-mapped and search: all queries at once, then some one by one."""
    queries, truth = np.load(out / "queries.npy"), np.load(out / "truth.npy")
    start = time.perf_counter()
    if name in OURS:
        index = VectorIndex.load(out / name, mmap=True)

        def find(some: np.ndarray) -> np.ndarray:
            return index.search(some, k).rows
    else:
        faiss = faiss_module()
        plain = faiss.read_index(str(out / f"{name}.faiss"), faiss.IO_FLAG_MMAP_IFC)
        if hasattr(plain, "nprobe"):
            plain.nprobe = NUM_PROBES
        if hasattr(plain, "hnsw"):
            plain.hnsw.efSearch = NUM_CANDIDATES

        def find(some: np.ndarray) -> np.ndarray:
            rows: np.ndarray = plain.search(some, k)[1]
            return rows

    load_s = time.perf_counter() - start
    find(queries[:64])  # pages in what is mapped
    start = time.perf_counter()
    rows = find(queries)
    batch_s = time.perf_counter() - start
    start = time.perf_counter()
    for query in queries[:NUM_SINGLE]:
        find(query[None])
    single_s = (time.perf_counter() - start) / min(NUM_SINGLE, len(queries))
    recall = np.mean([len(set(a) & set(b)) / k for a, b in zip(rows.tolist(), truth.tolist(), strict=True)])
    return {
        "load_s": load_s,
        "batch_qps": len(queries) / batch_s,
        "single_ms": 1000 * single_s,
        "recall": float(recall),
    }


def peak_mb() -> float:
    """The most memory that this process had; `getrusage` would count the process that started it too."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def in_child(out: Path, step: str, name: str, k: int) -> dict[str, float]:
    """Run `build` or `search` in a process of its own; adds its peak memory."""
    command = [sys.executable, __file__, "--out", str(out), "-k", str(k), "--step", step, name]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def spread(values: list[float], digits: int) -> str:
    """Median with the range in brackets."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    names = ["index", "recall@k", "bytes a video", "build s", "build peak MB", "load s", "queries/s, batch"]
    names += ["ms, one by one", "search peak MB"]
    lines = [f"| {' | '.join(names)} |", "| --- " * len(names) + "|"]
    for name, entry in results["indexes"].items():
        made, rounds = entry["build"], entry["search"]
        if not rounds:  # built so far
            continue
        cells = [
            name,
            f"{rounds[0]['recall']:.3f}",
            f"{made['bytes'] / results['num']:,.0f}",
            f"{made['build_s']:,.1f}",
            f"{made['peak_mb']:,.0f}",
            spread([one["load_s"] for one in rounds], 2),
            spread([one["batch_qps"] for one in rounds], 0),
            spread([one["single_ms"] for one in rounds], 2),
            f"{max(one['peak_mb'] for one in rounds):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Make vectors, build, search in turn, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="of searching; 0 builds only")
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=[*OURS, *(f"faiss {name}" for name in PEERS)])
    parser.add_argument("--quick", action="store_true", help="20,000 videos, 200 queries, one round")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step, name = args.step
        found = build(args.out, name) if step == "build" else search(args.out, name, args.k)
        print(json.dumps(found | {"peak_mb": peak_mb()}))
        return 0
    if args.quick:
        args.num, args.queries, args.rounds = 20_000, 200, 1
    args.out.mkdir(parents=True, exist_ok=True)
    make_vectors(args.out / "vectors.npy", args.num, args.dim, seed=1)
    make_vectors(args.out / "queries.npy", args.queries, args.dim, seed=2)
    vectors = np.load(args.out / "vectors.npy", mmap_mode="r")
    truth = args.out / "truth.npy"
    if not truth.exists() or np.load(truth, mmap_mode="r").shape != (args.queries, args.k):
        with atomic_path(truth) as temporary, temporary.open("wb") as file:
            np.save(file, true_neighbours(vectors, np.load(args.out / "queries.npy"), args.k))
    names = args.only or [*OURS, *(f"faiss {name}" for name in PEERS)]
    path = args.out / "results.json"
    size = {"num": args.num, "dim": args.dim, "queries": args.queries, "k": args.k}
    results: dict[str, Any] = read_json(path) if path.exists() else {}
    if {key: results.get(key) for key in size} != size:
        results = {**size, "indexes": {}}
    for name in names:
        if "build" not in results["indexes"].get(name, {}):  # a run that was cut off goes on
            results["indexes"][name] = {"build": in_child(args.out, "build", name, args.k), "search": []}
            write_json(path, results)
    for _ in range(args.rounds):
        for name in names:
            results["indexes"][name]["search"].append(in_child(args.out, "search", name, args.k))
        write_json(path, results)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
