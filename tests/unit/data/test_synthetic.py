from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

from vidsim.common.errors import UserError
from vidsim.data.pairs import read_pairs
from vidsim.data.synthetic import GeneratorConfig, generate, main, video_id
from vidsim.data.synthetic_pairs import LEVEL_SHARES, PairGraph, score_levels
from vidsim.data.synthetic_world import World
from vidsim.data.tf_example import FeatureValues, parse_example
from vidsim.data.tfrecord import read_records

TINY = GeneratorConfig(num_videos=30, num_pairs=12, num_test_pairs=6, num_files=3, num_tags=40, frame_dim=8)


def examples(path: Path) -> list[dict[str, FeatureValues]]:
    return [parse_example(record.data) for record in read_records(path)]


def digest(folder: Path) -> str:
    state = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return state.hexdigest()


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made_up") / "competition"
    generate(out, TINY)
    return out


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=3, num_tags=1000, frame_dim=16)


def test_layout_is_the_competitions(competition: Path) -> None:
    found = {str(path.relative_to(competition)) for path in competition.rglob("*") if path.is_file()}
    assert found == {
        *(f"pointwise/pretrain_{number}.tfrecords" for number in range(3)),
        "pairwise/pairwise.tfrecords",
        "pairwise/label.tsv",
        "test_a/test_a.tfrecords",
        "test_b/test_b.tfrecords",
        "tag_list.txt",
        "hidden/test_a_pairs.tsv",
        "hidden/test_b_pairs.tsv",
        "hidden/generator.json",
    }
    assert len((competition / "tag_list.txt").read_text().split()) == 40


def test_records_have_the_published_features(competition: Path) -> None:
    rows = [row for path in (competition / "pointwise").iterdir() for row in examples(path)]
    assert len(rows) == 30
    tagged = {"id", "title", "asr_text", "tag_id", "category_id", "frame_feature"}
    for row in [*rows, *examples(competition / "pairwise" / "pairwise.tfrecords")]:
        assert row.keys() == tagged
        assert row["id"][0].decode().isdecimal()  # type: ignore[union-attr]
        assert {len(frame) for frame in row["frame_feature"]} == {16}  # type: ignore[arg-type]
        assert 1 <= len(row["frame_feature"]) <= 32
        assert 101 <= row["category_id"][0] <= 2008  # type: ignore[operator]
    for part in ("test_a", "test_b"):
        for row in examples(competition / part / f"{part}.tfrecords"):
            assert row.keys() == tagged - {"tag_id", "category_id"}


def test_pairs_name_videos_that_are_there_and_parts_are_disjoint(competition: Path) -> None:
    seen: set[str] = set()
    for part, labels in (
        ("pairwise", "pairwise/label.tsv"),
        ("test_a", "hidden/test_a_pairs.tsv"),
        ("test_b", "hidden/test_b_pairs.tsv"),
    ):
        ids = {row["id"][0].decode() for row in examples(competition / part / f"{part}.tfrecords")}  # type: ignore[union-attr]
        pairs = read_pairs(competition / labels)
        assert len(pairs) == (12 if part == "pairwise" else 6)
        assert set(pairs.unique_ids()) == ids
        assert not ids & seen
        seen |= ids
    pointwise = [row["id"][0] for path in (competition / "pointwise").iterdir() for row in examples(path)]
    assert len(set(pointwise)) == 30
    assert not {id.decode() for id in pointwise} & seen  # type: ignore[union-attr]


def test_ids_never_collide() -> None:
    ids = {video_id(part, index, 5) for part in ("pointwise", "pairwise", "test_a") for index in range(3000)}
    assert len(ids) == 9000
    assert max(len(id) for id in ids) == 19
    assert all(int(id) < 2**63 for id in ids)


def test_same_seed_same_bytes(competition: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", TINY)
    assert digest(tmp_path / "again") == digest(competition)
    config = GeneratorConfig(**{**vars(TINY), "seed": 1})
    generate(tmp_path / "other", config)
    assert digest(tmp_path / "other") != digest(competition)
    first = [next(iter(examples(path)))["title"] for path in sorted((competition / "pointwise").iterdir())]
    other = [next(iter(examples(p)))["title"] for p in sorted((tmp_path / "other" / "pointwise").iterdir())]
    assert first != other


@pytest.mark.multi_process
def test_processes_do_not_change_the_bytes(competition: Path, tmp_path: Path) -> None:
    generate(tmp_path / "two", TINY, num_processes=2)
    assert digest(tmp_path / "two") == digest(competition)


def test_text_and_tag_lengths_follow_the_published_ones(world: World) -> None:
    count = 3000
    latents = world.draw(np.random.default_rng(0), count)
    streams = [np.random.default_rng([1, index]) for index in range(count)]
    titles = np.array([len(world.title(rng, video)) for rng, video in zip(streams, latents, strict=True)])
    assert titles.mean() == pytest.approx(18.7, abs=0.5)
    assert np.quantile(titles, (0.5, 0.75, 0.99)) == pytest.approx([19, 23.5, 34.5], abs=1.5)
    assert titles.max() <= 60
    speech = np.array([len(world.asr(rng, video)) for rng, video in zip(streams, latents, strict=True)])
    assert speech.mean() == pytest.approx(40, abs=4)
    assert np.quantile(speech, (0.5, 0.75)) == pytest.approx([23, 51], abs=3)
    assert np.quantile(speech, 0.99) == pytest.approx(257, abs=50)
    assert (speech == 0).mean() == pytest.approx(0.2, abs=0.03)
    tags = [world.tags(rng, video) for rng, video in zip(streams, latents, strict=True)]
    lengths = np.array([len(found) for found in tags])
    assert lengths.mean() == pytest.approx(4.76, abs=0.2)
    assert np.quantile(lengths, (0.5, 0.99)) == pytest.approx([4, 12.5], abs=1)
    assert lengths.max() <= 29
    assert all(len(set(found)) == len(found) for found in tags)
    inside = np.mean([tag in set(world.tag_list) for found in tags[:300] for tag in found])
    assert 0.85 < inside < 0.99


def test_frames_follow_the_published_ones_and_share_structure(world: World) -> None:
    latents = world.draw(np.random.default_rng(0), 600)
    videos = [world.frames(np.random.default_rng([2, row]), video) for row, video in enumerate(latents)]
    assert {frames.dtype for frames in videos} == {np.dtype("float16")}
    lengths = np.array([len(frames) for frames in videos])
    assert lengths.mean() == pytest.approx(17, abs=0.6)
    assert lengths.min() >= 1
    assert lengths.max() == 32
    assert all(np.isfinite(frames).all() and frames.min() >= 0 for frames in videos)
    # A frame is nearer to another frame of its video than to one of another video: what MFM can learn.
    first = unit(np.stack([frames[0] for frames in videos]).astype(np.float32))
    last = unit(np.stack([frames[-1] for frames in videos]).astype(np.float32))
    own = (first * last).sum(axis=1)
    assert (own > (first * np.roll(last, 1, axis=0)).sum(axis=1)).mean() > 0.9


def test_scores_have_the_published_shares() -> None:
    assert sum(LEVEL_SHARES) == pytest.approx(1)
    assert len(LEVEL_SHARES) == 21
    similarities = np.random.default_rng(0).random(10_000)
    levels = score_levels(similarities)
    assert (np.bincount(levels, minlength=21) / 10_000)[[0, 20, 10]] == pytest.approx([0.364, 0.139, 0.069])
    assert (levels / 20).mean() == pytest.approx(0.359, abs=0.002)
    assert (levels / 20).std() == pytest.approx(0.379, abs=0.002)
    assert np.median(levels) == 4
    # What a perfect tie-free model reaches.
    assert spearmanr(similarities, levels).statistic == pytest.approx(0.974, abs=0.001)
    order = np.argsort(similarities)
    assert (np.diff(levels[order]) >= 0).all()


def test_graph_of_pairs_is_like_the_published_one(world: World) -> None:
    num_pairs = 6790  # a tenth
    graph = PairGraph(world, np.random.default_rng(4), num_pairs)
    num_videos = len(graph.latents)
    assert num_videos == pytest.approx(6361, rel=0.02)
    assert len({frozenset(pair) for pair in graph.pairs.tolist()}) == num_pairs  # no pair twice
    assert set(np.unique(graph.pairs)) == set(range(num_videos))  # no video without a pair
    ones = np.ones(num_pairs)
    matrix = coo_matrix((ones, (graph.pairs[:, 0], graph.pairs[:, 1])), shape=(num_videos, num_videos))
    num_components, component = connected_components(matrix, directed=False)
    sizes = np.sort(np.bincount(component))[::-1]
    assert num_components == pytest.approx(2204, rel=0.05)
    assert sizes[0] == pytest.approx(1666, rel=0.03)
    assert sizes[1] < 30
    assert (sizes[1:] == 2).mean() > 0.85


def unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_neither_text_nor_frames_alone_tell_the_score() -> None:
    world = World(seed=0, num_tags=1000, frame_dim=128)
    graph = PairGraph(world, np.random.default_rng(1), 900)
    levels = score_levels(graph.similarity(world))
    texts, tags, frames = [], [], []
    for row, video in enumerate(graph.latents):
        rng = np.random.default_rng([7, row])
        texts.append(world.title(rng, video) + world.asr(rng, video))
        tags.append(" ".join(str(tag) for tag in world.tags(rng, video)))
        frames.append(world.frames(rng, video).astype(np.float32).mean(axis=0))
    left, right = graph.pairs.T

    def cosine_of_words(documents: list[str], **options: object) -> npt.NDArray[np.float64]:
        matrix = TfidfVectorizer(**options).fit_transform(documents)
        return np.asarray(matrix[left].multiply(matrix[right]).sum(axis=1)).ravel()

    pictures = unit(np.stack(frames) - np.mean(frames, axis=0))
    by_text = cosine_of_words(texts, analyzer="char", ngram_range=(1, 2))
    by_tags = cosine_of_words(tags, token_pattern=r"\S+")
    by_frames = (pictures[left] * pictures[right]).sum(axis=1)
    joint = by_text / by_text.std() + by_frames / by_frames.std()
    scores = {
        name: spearmanr(found, levels).statistic
        for name, found in (("text", by_text), ("frames", by_frames), ("tags", by_tags), ("joint", joint))
    }
    # Each says something, none says it all: there is room for a model that learns what matters in each.
    assert 0.5 < scores["text"] < 0.8
    assert 0.25 < scores["frames"] < 0.7
    assert 0.5 < scores["tags"] < 0.85
    assert scores["joint"] < 0.85
    assert spearmanr(by_text, by_frames).statistic < 0.6


def test_planted_errors_are_listed_with_their_place(tmp_path: Path) -> None:
    generate(tmp_path / "dirty", GeneratorConfig(**{**vars(TINY), "plant_errors": True}))
    planted = json.loads((tmp_path / "dirty" / "planted_errors.json").read_text())
    kinds = [entry["kind"] for entry in planted]
    assert len(set(kinds)) == len(kinds) == 27
    places = [(entry["file"], entry["record"]) for entry in planted]
    assert len(set(places)) == len(places)
    assert all((tmp_path / "dirty" / entry["file"]).exists() for entry in planted)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_videos", 0), ("num_pairs", -1), ("frame_dim", 0), ("num_tags", 5), ("num_files", 0), ("seed", -1)],
)
def test_bad_numbers_are_refused(tmp_path: Path, field: str, value: int) -> None:
    with pytest.raises(UserError) as caught:
        generate(tmp_path / "out", GeneratorConfig(**{field: value}))  # type: ignore[arg-type]
    assert caught.value.field == f"--{field}"
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="not empty"):
        generate(tmp_path, TINY)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    argv = f"--out {out} --num_videos 5 --num_pairs 0 --num_test_pairs 0 --frame_dim 4 --num_tags 20"
    assert main(argv.split()) == 0
    assert "5 unlabelled videos in 5 files, 0 labelled pairs" in capsys.readouterr().out
    assert len(list((out / "pointwise").iterdir())) == 5
    assert not (out / "pairwise").exists()
