"""`vidsim generate`: a made-up competition in the exact layout of AIAC 2021 Track 1, of any size.

    OUT/pointwise/pretrain_0.tfrecords ...   unlabelled videos with tags and category
    OUT/pairwise/pairwise.tfrecords          the videos of the labelled pairs
    OUT/pairwise/label.tsv                   query, candidate, score
    OUT/test_a/test_a.tfrecords, OUT/test_b  videos without tags and category
    OUT/tag_list.txt                         the most frequent tags
    OUT/hidden/                              what the organisers would keep: scores of the test pairs

Lengths, counts, scores and the graph of pairs follow the published statistics; what the videos are about, and
what a model can learn from them, is told in `synthetic_world.py`. The same arguments give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, require_free_space, require_new, write_json
from vidsim.common.progress import progress
from vidsim.data.synthetic_errors import (
    PLANTED_FILE,
    Planted,
    dirty_labels,
    dirty_tags,
    insert_dirty_records,
    plan_records,
    plan_truncation,
)
from vidsim.data.synthetic_pairs import PairGraph, score_levels
from vidsim.data.synthetic_world import Latents, World
from vidsim.data.tf_example import Features
from vidsim.data.tfrecord import write_frames
from vidsim.data.workers import Advance, run_jobs

_POINTWISE, _PAIRWISE, _TEST_A, _TEST_B = "pointwise", "pairwise", "test_a", "test_b"
_PARTS = (_POINTWISE, _PAIRWISE, _TEST_A, _TEST_B)
_TEXT_BYTES = 500  # of one video, about
_MEAN_FRAMES = 17
_VIDEOS_PER_PAIR = 0.94  # as published
# Ids are an affine permutation of the numbers below this prime, so that no two are the same.
_PRIME = 2**63 - 25
_FACTOR = 6_364_136_223_846_793_005


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What to generate.

    Attributes:
        num_videos: Unlabelled (pointwise) videos.
        num_pairs: Labelled pairs; about 0.94 times as many videos. Default: as many for a video as published.
        num_test_pairs: Hidden pairs of each of the two test sets. Default: half of `num_pairs`.
        seed: Same seed, same bytes.
        frame_dim: Width of a frame feature.
        num_files: Pointwise files.
        num_tags: Length of the tag list. Default: 10,000 for a million videos, fewer for fewer.
        plant_errors: Add one dirty row of each kind and say where in `planted_errors.json`.
    """

    num_videos: int = 10_000
    num_pairs: int | None = None
    num_test_pairs: int | None = None
    seed: int = 0
    frame_dim: int = 1536
    num_files: int = 20
    num_tags: int | None = None
    plant_errors: bool = False

    def resolved(self) -> GeneratorConfig:
        """Check the values and fill in the defaults that depend on the size.

        Raises:
            UserError: A number that is too small.
        """
        pairs = max(20, round(0.0679 * self.num_videos)) if self.num_pairs is None else self.num_pairs
        tests = pairs // 2 if self.num_test_pairs is None else self.num_test_pairs
        tags = int(np.clip(self.num_videos // 100, 100, 10_000)) if self.num_tags is None else self.num_tags
        files = min(self.num_files, self.num_videos)
        config = dataclasses.replace(self, num_pairs=pairs, num_test_pairs=tests, num_tags=tags, num_files=files)
        at_least_one = ("num_videos", "num_files", "frame_dim")
        least = dict.fromkeys(at_least_one, 1) | {"num_pairs": 0, "num_test_pairs": 0, "num_tags": 20, "seed": 0}
        for name, value in least.items():
            if getattr(config, name) < value:
                raise UserError(f"is {getattr(self, name)}, must be at least {value}", field=f"--{name}")
        return config


@dataclass(frozen=True)
class _Job:
    """One TFRecord file to write: videos [start, start + count) of a part."""

    part: str
    file: str
    start: int
    count: int
    latents: Latents | None  # None: drawn video by video
    planted: tuple[Planted, ...] = ()


def generate(out: str | Path, config: GeneratorConfig, *, num_processes: int = 1) -> None:
    """Write a competition into a new folder.

    Args:
        out: The folder; must be empty or not there.
        config: What to generate.
        num_processes: Files written at the same time; does not change them.

    Raises:
        UserError: A bad number, a folder that is not empty, too little disk space.
    """
    out = Path(out)
    config = config.resolved()
    require_new(out)
    # Before anything is drawn, for a size that no disk has would take hours to draw.
    paired = (config.num_pairs or 0) + 2 * (config.num_test_pairs or 0)
    about = config.num_videos + round(_VIDEOS_PER_PAIR * paired)
    require_free_space(out, about * (_MEAN_FRAMES * config.frame_dim * 2 + _TEXT_BYTES))
    world = _world(config)
    graphs = _draw_graphs(config, world)
    num_videos = config.num_videos + sum(len(graph.latents) for graph in graphs.values())
    jobs, planted = _plan_files(config, graphs)
    write = functools.partial(_write_file, out, config)
    run_jobs(write, jobs, num_processes, total=num_videos, desc="generating", unit="videos")
    planted += _write_labels(out, config, world, graphs)
    planted += _write_tags(out, world, config.plant_errors)
    if config.plant_errors:
        empty = f"{_POINTWISE}/pretrain_{config.num_files}.tfrecords"
        write_frames(out / empty, [])
        planted.append(Planted(kind="empty_file", file=empty, record=None, field=None))
        write_json(out / PLANTED_FILE, [item.to_json() for item in planted])
    write_json(out / "hidden" / "generator.json", dataclasses.asdict(config))


def video_id(part: str, index: int, seed: int) -> str:
    """Id of a video: up to 19 decimal digits, different for every part and index."""
    number = _PARTS.index(part) * 2**60 + index + 1
    return str((number * _FACTOR + seed * 1_442_695_040_888_963_407 + 1) % _PRIME)


@functools.lru_cache(maxsize=1)
def _world(config: GeneratorConfig) -> World:
    return World(seed=config.seed, num_tags=config.num_tags or 0, frame_dim=config.frame_dim)


def _draw_graphs(config: GeneratorConfig, world: World) -> dict[str, PairGraph]:
    sizes = {_PAIRWISE: config.num_pairs, _TEST_A: config.num_test_pairs, _TEST_B: config.num_test_pairs}
    return {
        part: PairGraph(world, np.random.default_rng([config.seed, 1, number]), size)
        for number, (part, size) in enumerate(sizes.items())
        if size
    }


def _plan_files(config: GeneratorConfig, graphs: dict[str, PairGraph]) -> tuple[list[_Job], list[Planted]]:
    bounds = np.linspace(0, config.num_videos, config.num_files + 1).astype(int).tolist()
    jobs = [
        _Job(_POINTWISE, f"{_POINTWISE}/pretrain_{number}.tfrecords", start, stop - start, None)
        for number, (start, stop) in enumerate(itertools.pairwise(bounds))
    ]
    planted = plan_records([(job.file, job.count) for job in jobs]) if config.plant_errors else []
    for part, graph in graphs.items():
        jobs.append(_Job(part, f"{part}/{part}.tfrecords", 0, len(graph.latents), graph.latents))
    if config.plant_errors and _TEST_B in graphs:
        planted.append(plan_truncation(jobs[-1].file, jobs[-1].count))
    here = [tuple(item for item in planted if item.file == job.file) for job in jobs]
    jobs = [dataclasses.replace(job, planted=items) for job, items in zip(jobs, here, strict=True)]
    return jobs, planted


def _write_file(
    out: Path, config: GeneratorConfig, job: _Job, /, *, advance: Advance | None = None, show: bool = False
) -> None:
    clean = progress(_videos(config, job, advance), total=job.count, desc=job.file, unit="videos", enabled=show)
    # The raw material of the dirty records: a video with a number that is not used.
    extra = _features(config, job.part, 2**59, None) if job.planted else {}
    first = video_id(job.part, job.start, config.seed).encode()
    other = video_id(job.part, 0, config.seed).encode()
    write_frames(out / job.file, insert_dirty_records(clean, job.planted, extra, first, other))


def _videos(config: GeneratorConfig, job: _Job, advance: Advance | None) -> Iterator[Features]:
    for index in range(job.start, job.start + job.count):
        yield _features(config, job.part, index, None if job.latents is None else job.latents[index])
        if advance:
            advance(1)


def _features(config: GeneratorConfig, part: str, index: int, latent: np.void | None) -> Features:
    """The record of one video, a pure function of its arguments."""
    world = _world(config)
    rng = np.random.default_rng([config.seed, 2, _PARTS.index(part), index])
    if latent is None:
        latent = world.draw(rng, 1)[0]
    frames = world.frames(rng, latent)
    tags = world.tags(rng, latent)
    features: dict[str, list[bytes] | list[int]] = {
        "id": [video_id(part, index, config.seed).encode()],
        "title": [world.title(rng, latent).encode()],
        "asr_text": [world.asr(rng, latent).encode()],
        "frame_feature": [frame.tobytes() for frame in frames],
    }
    if part in (_POINTWISE, _PAIRWISE):
        features |= {"tag_id": tags, "category_id": [world.category(latent)]}
    return features


def _write_labels(out: Path, config: GeneratorConfig, world: World, graphs: dict[str, PairGraph]) -> list[Planted]:
    """`label.tsv` and the hidden scores; one scale of scores over all of them."""
    if not graphs:
        return []
    levels = score_levels(np.concatenate([graph.similarity(world) for graph in graphs.values()]))
    planted: list[Planted] = []
    start = 0
    for part, graph in graphs.items():
        scores = levels[start : start + len(graph.pairs)].tolist()
        start += len(graph.pairs)
        lines = [
            f"{video_id(part, left, config.seed)}\t{video_id(part, right, config.seed)}\t{level / 20:g}"
            for (left, right), level in zip(graph.pairs.tolist(), scores, strict=True)
        ]
        name = f"{part}/label.tsv"
        if part != _PAIRWISE:
            name = f"hidden/{part}_pairs.tsv"
            lines.insert(0, "id1\tid2\tscore")
        elif config.plant_errors:
            planted = dirty_labels(lines, name)
        _write_lines(out / name, lines)
    return planted


def _write_tags(out: Path, world: World, plant_errors: bool) -> list[Planted]:
    lines = [str(tag) for tag in world.tag_list]
    planted = dirty_tags(lines, "tag_list.txt") if plant_errors else []
    _write_lines(out / "tag_list.txt", lines)
    return planted


def _write_lines(path: Path, lines: list[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Entry point of `vidsim generate`."""
    parser = ArgumentParser(
        prog="vidsim generate",
        description="Write a made-up competition in the layout of AIAC 2021 Track 1 (TFRecords, label.tsv, "
        "tag_list.txt), with the published statistics and something to learn in every part, to be read by "
        "`vidsim convert aiac`. The scores of the test pairs go to OUT/hidden, as organisers would keep them.",
        epilog="example: vidsim generate --out competition --num_videos 2000 --num_processes 4 "
        "&& vidsim convert aiac competition --out data/made_up",
    )
    default = GeneratorConfig()
    add = parser.add_argument
    add("--out", required=True, help="a new folder")
    add("--num_videos", type=int, default=default.num_videos, help="unlabelled videos (default %(default)s)")
    add("--num_pairs", type=int, help="labelled pairs (default: 0.0679 for each video, as published)")
    add("--num_test_pairs", type=int, help="hidden pairs of each test set (default: half of --num_pairs)")
    add("--num_files", type=int, default=default.num_files, help="pointwise files (default %(default)s)")
    add("--num_tags", type=int, help="length of the tag list (default: 1 %% of --num_videos, 100 to 10,000)")
    add("--frame_dim", type=int, default=default.frame_dim, help="width of a feature (default %(default)s)")
    add("--seed", type=int, default=default.seed, help="same seed, same bytes (default %(default)s)")
    add(
        "--plant_errors",
        action="store_true",
        help="add one dirty row of each kind, listed in planted_errors.json",
    )
    add("--num_processes", type=int, default=1, help="files written at the same time (default %(default)s)")
    values = vars(parser.parse_args(argv))
    out, num_processes = values.pop("out"), values.pop("num_processes")
    config = GeneratorConfig(**values)
    generate(out, config, num_processes=num_processes)
    resolved = config.resolved()
    print(
        f"{out}: {resolved.num_videos:,} unlabelled videos in {resolved.num_files} files, "
        f"{resolved.num_pairs:,} labelled pairs, 2 x {resolved.num_test_pairs:,} hidden test pairs, "
        f"{resolved.num_tags:,} tags (seed {resolved.seed})"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
