"""The benchmark's items without a model: loading, conversion, ensemble, scoring."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks import published
from tests.benchmarks.measure import Comparison, Report, interleave
from tests.benchmarks.workload import (
    NUM_TAGS,
    Sizes,
    draw_rows,
    make_collator,
    make_processor,
    make_tokenizer,
    write_videos,
)
from vidsim.data.arrow import Videos, open_videos
from vidsim.data.collators import PretrainCollator, VideoRows
from vidsim.data.convert.aiac import AiacConversion
from vidsim.data.embeddings import Embeddings
from vidsim.data.loading import step_batches
from vidsim.data.pair_cosines import cosines_of_pairs
from vidsim.data.pairs import Pairs
from vidsim.data.samplers import MicroBatchSampler, RowOrder
from vidsim.data.tfrecord import write_tfrecords
from vidsim.ensemble.projection import fit_projection
from vidsim.modeling.metrics import spearman

NUM_TEST_VIDEOS, NUM_PAIRS = 43_027, 67_899  # of the competition: test_b, labelled pairs
NUM_MEMBERS, MEMBER_DIM, FUSED_DIM = 6, 256, 256


def our_loader(
    videos: Videos, rows: np.ndarray, collator: PretrainCollator, batch_size: int, num_workers: int, num_steps: int
) -> Iterable[dict[str, Any]]:
    """The training's loader over rows of a data set."""
    sampler = MicroBatchSampler(
        RowOrder([rows], seed=0),
        micro_batch_size=batch_size,
        gradient_accumulation_steps=1,
        rank=0,
        world_size=1,
        start_step=0,
        num_steps=num_steps,
    )
    return step_batches(VideoRows(videos), sampler, collator, num_workers=num_workers)


def loading(report: Report, work: Path, sizes: Sizes, *, rounds: int, num_videos: int, num_workers: int) -> None:
    """Batches from an Arrow data set against batches from Python objects, and the time to the first."""
    folder = work / "loading"
    videos = write_videos(folder, num_videos, sizes.frame_dim, sizes.lengths)
    tokenizer = make_tokenizer(work / "tokenizer")
    num_steps = num_videos // sizes.batch_size
    first: dict[str, list[float]] = {"ours": [], "yardstick": []}

    def run(name: str) -> float:
        began = time.perf_counter()
        if name == "ours":
            mapped = open_videos(folder)
            collator = make_collator(make_processor(sizes, tokenizer))
            rows = np.arange(num_videos)
            batches = iter(our_loader(mapped, rows, collator, sizes.batch_size, num_workers, num_steps))
        else:
            objects = published.PublishedRows(videos, tokenizer, NUM_TAGS)
            batches = iter(published.loader(objects, sizes.batch_size, num_workers))
        next(batches)
        first[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        for _ in batches:
            pass
        return time.perf_counter() - began

    times = interleave({"ours": lambda _: run("ours"), "yardstick": lambda _: run("yardstick")}, rounds, warmup=0)
    note = (
        "worker processes, Python objects, a padded dict a row, dense targets; masks come in the step, ours have them"
    )
    amount = (num_steps - 1) * sizes.batch_size
    name = f"loading, {num_workers} workers"
    report.comparisons += [
        Comparison(name=name, unit="videos/s", amount=amount, note=note, **times),
        Comparison(
            name=f"first batch of {num_videos:,} videos", unit="s", amount=1, note="reads all rows first", **first
        ),
    ]
    shutil.rmtree(folder)


def conversion(report: Report, work: Path, sizes: Sizes, *, rounds: int, num_videos: int) -> None:
    """TFRecords to Arrow in one process."""
    source = work / "competition" / "pointwise" / "pretrain_0.tfrecords"
    source.parent.mkdir(parents=True)
    rows = draw_rows(num_videos, sizes.frame_dim, sizes.lengths)
    write_tfrecords(source, (_features(row) for row in rows))

    def ours(number: int) -> float:
        out = work / f"converted-{number}"
        run = AiacConversion(
            source=work / "competition", out=out, frame_dim=sizes.frame_dim, say=lambda line: None, num_processes=1
        )
        began = time.perf_counter()
        run.run()
        seconds = time.perf_counter() - began
        shutil.rmtree(out)
        return seconds

    times = interleave({"ours": ours, "yardstick": lambda _: published.convert(source, work / "plain.arrow")}, rounds)
    report.comparisons.append(
        Comparison(
            name="conversion, 1 process",
            unit="records/s",
            amount=num_videos,
            note="protobuf messages into one list, then one Arrow table; no checksum, check, digest or statistics, "
            "and all records in memory",
            **times,
        )
    )
    report.facts["conversion"] = {"bytes a record": source.stat().st_size // num_videos}
    shutil.rmtree(work / "competition")


def _features(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": [row["id"].encode()],
        "title": [row["title"].encode()],
        "asr_text": [row["title"].encode()],
        "tag_id": [int(tag) for tag in row["tags"]],
        "category_id": [101],
        "frame_feature": [frame.tobytes() for frame in row["frames"]],
    }


def draw_members(num_videos: int) -> list[Embeddings]:
    """Embeddings of six related models: 200 common factors and noise."""
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((num_videos, 200), dtype=np.float32)
    factors *= (np.arange(1, 201) ** -0.5).astype(np.float32)
    ids = [str(number) for number in range(num_videos)]
    members = []
    for number in range(NUM_MEMBERS):
        mixing = rng.standard_normal((200, MEMBER_DIM), dtype=np.float32)
        noise = rng.standard_normal((num_videos, MEMBER_DIM), dtype=np.float32)
        members.append(Embeddings(ids, factors @ mixing + noise, name=f"member {number}"))
    return members


def ensemble(report: Report, *, rounds: int, num_videos: int) -> None:
    """Six models of 256 to one of 256."""
    members = draw_members(num_videos)
    weights = [1 / NUM_MEMBERS] * NUM_MEMBERS
    found: dict[str, np.ndarray] = {}

    def ours(number: int) -> None:
        projection = fit_projection(members, weights, FUSED_DIM)
        projection.apply(members)
        found["ours"] = projection.components.astype(np.float64)

    def theirs(number: int) -> None:
        found["published"] = published.fuse([member.vectors for member in members], FUSED_DIM)[1]

    times = interleave({"ours": ours, "yardstick": theirs}, rounds, warmup=0)
    report.comparisons.append(
        Comparison(
            name=f"ensemble, {num_videos:,} x {NUM_MEMBERS} x {MEMBER_DIM} to {FUSED_DIM}",
            unit="s",
            amount=1,
            note="TruncatedSVD(n_iter=50) in float64; ours checks, fits exactly and applies",
            **times,
        )
    )
    parts = [member.vectors / np.linalg.norm(member.vectors, axis=1, keepdims=True) for member in members]
    rows = np.concatenate(parts, axis=1).astype(np.float64) / np.sqrt(NUM_MEMBERS)
    errors = {
        f"relative reconstruction error, {name}": float(
            np.linalg.norm(rows - rows @ components @ components.T) / np.linalg.norm(rows)
        )
        for name, components in found.items()
    }
    report.facts["ensemble"] = {name: f"{error:.9f}" for name, error in errors.items()}


def scoring(report: Report, *, rounds: int, num_videos: int, num_pairs: int) -> None:
    """Spearman correlation of labelled pairs."""
    embeddings = draw_members(num_videos)[0]
    rng = np.random.default_rng(1)
    id1, id2 = ([embeddings.ids[row] for row in rng.integers(num_videos, size=num_pairs)] for _ in range(2))
    pairs = Pairs(id1, id2, rng.integers(21, size=num_pairs) / 20)
    vectors = {name: vector.tolist() for name, vector in zip(embeddings.ids, embeddings.vectors, strict=True)}
    values: dict[str, float] = {}

    def ours(number: int) -> None:
        values["ours"] = spearman(cosines_of_pairs(embeddings, pairs), pairs.score)

    def theirs(number: int) -> None:
        values["published"] = published.score(vectors, id1, id2, pairs.score.tolist())

    times = interleave({"ours": ours, "yardstick": theirs}, rounds, min_seconds=0.2)
    if abs(values["ours"] - values["published"]) > 1e-6:
        raise RuntimeError(f"the scores differ: {values}")
    note = "one sklearn cosine a pair"
    report.comparisons.append(
        Comparison(name=f"scoring, {num_pairs:,} pairs", unit="pairs/s", amount=num_pairs, note=note, **times)
    )
