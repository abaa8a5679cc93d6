"""The cross-modal encoder itself on the co-watch graph: it learns, and its checkpoint is one like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.cowatch import main as make_graph
from vidsim.data.cowatch_graph import TRAIN, read_graph
from vidsim.data.embeddings import read_embeddings
from vidsim.data.manifest import StreamInfo
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.engine.metrics_file import read_metrics
from vidsim.finetune.cowatch import main
from vidsim.finetune.embed import embed

NUM_VIDEOS, NUM_TOPICS = 120, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of the four words of a title tells the topic; a session stays within a topic."""
    folder = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    with ShardWriter(folder / "videos" / "data-00000.arrow", {"frames": 6}) as writer:
        for number in range(NUM_VIDEOS):
            words = [f"w{number % NUM_TOPICS}", *(f"w{word}" for word in generator.integers(5, 10, 3))]
            frames = generator.normal(size=(2, 6)).astype(np.float16)
            title = " ".join(generator.permutation(words))
            writer.write({"id": f"v{number}", "title": title, "asr": "", "tags": [], "frames": frames})
    streams = {"frames": StreamInfo(dim=6, extractor=None)}
    write_manifest(folder / "videos", [writer.info], streams, has_tags=True, command="test")
    watches: dict[str, list[Any]] = {"user": [], "video": [], "time": []}
    for user in range(150):
        mine = [number for number in range(NUM_VIDEOS) if number % NUM_TOPICS == user % NUM_TOPICS]
        for second, video in enumerate(generator.permutation(mine)[:8].tolist()):
            watches["user"].append(f"u{user}")
            watches["video"].append(f"v{video}")
            watches["time"].append(float(second))
    pq.write_table(pa.table(watches), folder / "watches.parquet")
    make_graph([str(folder / "watches.parquet"), "--out", str(folder / "graph"), "--min_weight", "1"])
    return folder


def arguments(world: Path, checkpoint: Path, out: Path, **options: object) -> list[str]:
    settings: dict[str, object] = {
        "graph": world / "graph",
        "videos": f"[{world / 'videos'}]",
        "init_from": checkpoint,
        "output_dir": out,
        "projection": "principal",
        "task.loss": "contrastive",
        "loop.micro_batch_size": 64,
        "loop.max_steps": 40,
        "num_epochs": 20,
        "optimizer.learning_rate": 0.01,
        "optimizer.head_learning_rate": 0.01,
    } | {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_it_learns_and_is_a_checkpoint_like_any_other(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert main(arguments(world, checkpoint, tmp_path / "run")) == 0
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["trained"]["ndcg@10"] > figures["untrained features"]["ndcg@10"] + 0.1
    found = read_embeddings(tmp_path / "run" / "embeddings")
    assert found.ids == [f"v{number}" for number in range(NUM_VIDEOS)]
    videos, best = open_videos(world / "videos"), tmp_path / "run" / "checkpoints" / "best"
    embed(best, videos, np.arange(NUM_VIDEOS), tmp_path / "again", {}, vector="embedding")
    np.testing.assert_allclose(read_embeddings(tmp_path / "again").vectors, found.vectors, atol=1e-5)


def test_a_resumed_run_is_the_straight_one(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"loop__eval_every_steps": 2, "loop__max_steps": 4, "task__loss": "hinge"}
    assert main(arguments(world, checkpoint, tmp_path / "straight", **options)) == 0
    assert main(arguments(world, checkpoint, tmp_path / "resumed", **(options | {"loop__max_steps": 2}))) == 0
    assert main([*arguments(world, checkpoint, tmp_path / "resumed", **options), "--resume"]) == 0
    straight, resumed = (read_embeddings(tmp_path / name / "embeddings") for name in ("straight", "resumed"))
    assert np.array_equal(straight.vectors, resumed.vectors)
    assert max(line["step"] for line in read_metrics(tmp_path / "resumed" / "metrics.jsonl")) == 4


def test_what_does_not_fit_is_refused(world: Path, checkpoint: Path, tmp_path: Path, small_data: Any) -> None:
    for options, message in (
        ({"features": "{visual: a.npy}"}, "exclude each other"),
        ({"init_from": "null"}, "videos and init_from go together"),
        ({"videos": f"[{small_data.folder / 'videos'}]"}, "of its 120 videos have no features"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments(world, checkpoint, tmp_path / "run", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_only_the_training_videos_start_the_projection(world: Path, checkpoint: Path, tmp_path: Path) -> None:
    graph = read_graph(world / "graph")
    trained = {graph.ids[video] for video in np.flatnonzero(graph.part == TRAIN)}
    assert 0 < len(trained) < NUM_VIDEOS
    with ShardWriter(tmp_path / "videos" / "data-00000.arrow", {"frames": 6}) as writer:
        for row in open_videos(world / "videos"):
            changed = {"title": "w1 w2", "frames": np.full((2, 6), 3, np.float16)}
            writer.write(row if row["id"] in trained else row | changed)
    streams = {"frames": StreamInfo(dim=6, extractor=None)}
    write_manifest(tmp_path / "videos", [writer.info], streams, has_tags=True, command="test")
    weights = []
    for name, folder in (("one", world), ("other", tmp_path)):
        options: dict[str, object] = {"videos": f"[{folder / 'videos'}]", "loop__max_steps": 2}
        assert main(arguments(world, checkpoint, tmp_path / name, **options)) == 0
        weights.append((tmp_path / name / "checkpoints" / "best" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
