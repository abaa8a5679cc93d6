"""A whole run on a small world of topics: it learns, resumes to the bit, and refuses what does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data.cowatch import main as make_graph
from vidsim.data.cowatch_graph import TRAIN, read_graph
from vidsim.data.embeddings import read_embeddings, write_embeddings
from vidsim.engine.metrics_file import read_metrics
from vidsim.finetune import cowatch as script
from vidsim.finetune.cowatch import main
from vidsim.finetune.cowatch_embed import main as embed_main
from vidsim.modeling.towers import FusionTowers

NUM_VIDEOS, NUM_TOPICS = 240, 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of six topics, told by features through noise; a session stays within a topic."""
    folder = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    topic = np.arange(NUM_VIDEOS) % NUM_TOPICS
    telling = np.eye(NUM_TOPICS)[topic]
    for name in ("visual", "audio"):
        noise = generator.standard_normal((NUM_VIDEOS, 8)) * 1.5
        mixed = np.concatenate([telling, noise], axis=1) @ generator.standard_normal((14, 14))
        np.save(folder / f"{name}.npy", mixed.astype(np.float32))
    watches: dict[str, list[Any]] = {"user": [], "video": [], "time": []}
    for user in range(300):
        mine = np.flatnonzero(topic == user % NUM_TOPICS)
        for second, video in enumerate(generator.permutation(mine)[:8].tolist()):
            watches["user"].append(f"u{user}")
            watches["video"].append(video)
            watches["time"].append(float(second))
    pq.write_table(pa.table(watches), folder / "watches.parquet")
    make_graph([str(folder / "watches.parquet"), "--out", str(folder / "graph"), "--min_weight", "1"])
    return folder


def arguments(world: Path, out: Path, **options: object) -> list[str]:
    settings: dict[str, object] = {
        "graph": world / "graph",
        "features": f"{{visual: {world / 'visual.npy'}, audio: {world / 'audio.npy'}}}",
        "output_dir": out,
        "task.hidden": "[32]",
        "task.embedding_dim": 16,
        "task.margin": 0.3,
        "loop.micro_batch_size": 64,
        "loop.eval_every_steps": 10,
        "num_epochs": 30,
        "optimizer.learning_rate": 0.003,
    } | {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("fusion", ["early", "late"])
def test_it_learns_what_the_features_do_not_show(
    world: Path, tmp_path: Path, fusion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(world, tmp_path / "run", task__fusion=fusion)) == 0
    out = capsys.readouterr().out
    assert "eval, untrained features: t2e_ndcg@10" in out
    figures = json.loads((tmp_path / "run" / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["trained"]["ndcg@10"] > figures["untrained features"]["ndcg@10"] + 0.1
    assert figures["trained"]["e2t_ndcg@10"] > figures["popularity in training"]["e2t_ndcg@10"] + 0.1
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation/ndcg@10" in line]
    assert {"validation/t2e_recall@10", "validation/e2t_ndcg@10", "validation/t2e_map"} <= set(lines[0])

    found = read_embeddings(tmp_path / "run" / "embeddings")
    assert found.ids == [str(number) for number in range(NUM_VIDEOS)]
    assert found.metadata["normalized"] is True
    towers = FusionTowers.load(tmp_path / "run" / "checkpoints" / "best").eval()
    with torch.no_grad():
        again = towers(**{name: torch.from_numpy(np.load(world / f"{name}.npy")) for name in ("visual", "audio")})
    np.testing.assert_allclose(found.vectors, again.numpy(), atol=1e-5)


def test_a_resumed_run_is_the_straight_one(world: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"loop__eval_every_steps": 4, "num_epochs": 2, "task__mining": "random"}
    assert main(arguments(world, tmp_path / "straight", **options)) == 0
    assert main(arguments(world, tmp_path / "resumed", loop__max_steps=4, **options)) == 0
    assert main([*arguments(world, tmp_path / "resumed", **options), "--resume"]) == 0
    straight, resumed = (read_embeddings(tmp_path / name / "embeddings") for name in ("straight", "resumed"))
    assert np.array_equal(straight.vectors, resumed.vectors)
    steps = [line["step"] for line in read_metrics(tmp_path / "resumed" / "metrics.jsonl")]
    assert max(steps) > 4


def test_new_videos_are_embedded_by_the_trained_towers(world: Path, tmp_path: Path) -> None:
    assert main(arguments(world, tmp_path / "run", loop__max_steps=2)) == 0
    trained = read_embeddings(tmp_path / "run" / "embeddings")
    for name in ("visual", "audio"):
        np.save(tmp_path / f"{name}.npy", np.load(world / f"{name}.npy")[[5, 9, 2]])
    (tmp_path / "ids.txt").write_text("x\ny\nz\n", encoding="utf-8")
    words = ["--features", f"audio={tmp_path / 'audio.npy'}", f"visual={tmp_path / 'visual.npy'}"]
    words += ["--ids", str(tmp_path / "ids.txt"), "--out", str(tmp_path / "new")]
    assert embed_main([str(tmp_path / "run"), *words, "--batch_size", "2"]) == 0
    found = read_embeddings(tmp_path / "new")
    assert found.ids == ["x", "y", "z"]
    np.testing.assert_allclose(found.vectors, trained.vectors[[5, 9, 2]], atol=1e-5)

    narrow = np.load(world / "audio.npy")[:, :5]
    np.save(tmp_path / "narrow.npy", narrow)
    for features, message in (
        ([f"visual={world / 'visual.npy'}"], "reads audio, visual, given are visual"),
        (
            [f"visual={world / 'visual.npy'}", f"audio={tmp_path / 'narrow.npy'}"],
            "width 5, the model was trained on 14. Fix: give features of the same extractor",
        ),
        (["visual"], "is not NAME=PATH"),
    ):
        with pytest.raises(UserError, match=message):
            embed_main([str(tmp_path / "run"), "--features", *features, "--out", str(tmp_path / "bad")])
    with pytest.raises(UserError, match="no checkpoint"):
        embed_main([str(world), "--features", "a=b", "--out", str(tmp_path / "bad")])
    assert not (tmp_path / "bad").exists()


def test_all_videos_can_train(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(world / "watches.parquet"), "--out", str(tmp_path / "graph"), "--eval_fraction", "0"]
    assert make_graph([*words, "--validation_fraction", "0"]) == 0
    options: dict[str, object] = {"graph": tmp_path / "graph", "loop__max_steps": 4, "loop__eval_every_steps": 2}
    assert main(arguments(world, tmp_path / "run", **options)) == 0
    out = capsys.readouterr().out
    assert "240 train, 0 validation, 0 eval" in out
    assert "no edge joins a training and a validation video: the last checkpoint is kept" in out
    assert (tmp_path / "run" / "checkpoints" / "best").resolve().name == "step_000004"
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert len(read_embeddings(tmp_path / "run" / "embeddings").ids) == NUM_VIDEOS


def test_a_dry_run_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(world, tmp_path / "run"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "streams: visual 14, audio 14" in out
    assert "steps:" in out
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    few = np.load(world / "visual.npy")[:100]
    np.save(tmp_path / "few.npy", few)
    for options, message in (
        ({"features": f"{{visual: {tmp_path / 'few.npy'}}}"}, "of its 240 videos have no features: 100"),
        ({"features": "{}"}, "no stream is given"),
        ({"graph": tmp_path}, "holds no co-watch graph"),
        ({"task__margin": 0}, "nothing would be learned"),
        ({"k": 0}, "below 1"),
        ({"loop__micro_batch_tokens": 9}, "triplets have no tokens"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments(world, tmp_path / "run", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multi_process
@pytest.mark.parametrize("loss", ["hinge", "contrastive", "cosent"])
def test_two_processes_mine_in_the_batch_of_both(
    world: Path, tmp_path: Path, loss: str, on_two_processes: Callable[..., str]
) -> None:
    options: dict[str, object] = {"task__mining": "hardest", "task__loss": loss}
    options |= {"loop__max_steps": 4, "loop__log_every_steps": 1}
    assert main(arguments(world, tmp_path / "one", **options)) == 0
    words = arguments(world, tmp_path / "two", **{**options, "loop__micro_batch_size": 32})
    on_two_processes(script.__file__, *words)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    alone, together = (read_embeddings(tmp_path / name / "embeddings").vectors for name in ("one", "two"))
    np.testing.assert_allclose(alone, together, atol=1e-3)


def test_embeddings_of_other_ids_or_features_are_not_kept(world: Path, tmp_path: Path) -> None:
    assert main(arguments(world, tmp_path / "run", loop__max_steps=2)) == 0
    out, visual, audio = tmp_path / "new", tmp_path / "visual.npy", tmp_path / "audio"
    np.save(visual, np.load(world / "visual.npy")[[5, 9, 2]])

    def embed(ids: str, *options: str) -> int:
        (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
        words = [str(tmp_path / "run"), "--features", f"visual={visual}", f"audio={audio}"]
        return embed_main([*words, "--ids", str(tmp_path / "ids.txt"), "--out", str(out), *options])

    vectors = np.load(world / "audio.npy")[[5, 9, 2]]
    write_embeddings(audio, list("abc"), vectors)
    assert embed("abc") == 0
    assert embed("abc") == 0  # the same again goes on where it stopped: at the end
    before = read_embeddings(out)

    write_embeddings(audio, list("xyz"), vectors)
    with pytest.raises(UserError, match=r"not the same: data, ids\)\. Fix: .*--overwrite"):
        embed("xyz")
    assert embed("xyz", "--overwrite") == 0
    assert read_embeddings(out).ids == list("xyz")

    write_embeddings(audio, list("xyz"), -vectors)  # the same name and ids
    with pytest.raises(UserError, match=r"not the same: data\)"):
        embed("xyz")
    assert embed("xyz", "--overwrite") == 0
    assert np.abs(read_embeddings(out).vectors - before.vectors).max() > 1e-3
    with pytest.raises(UserError, match="--batch_size: 0 is below 1"):
        embed("xyz", "--batch_size", "0")


def test_only_the_training_videos_scale_the_inputs(world: Path, tmp_path: Path) -> None:
    held_out = np.flatnonzero(read_graph(world / "graph").part != TRAIN)
    assert len(held_out) > 20
    ids = [int(read_graph(world / "graph").ids[video]) for video in held_out]
    for name in ("visual", "audio"):
        array = np.load(world / f"{name}.npy")
        array[ids] = 3 * array[ids][::-1] + 5
        np.save(tmp_path / f"{name}.npy", array)
    weights = []
    for run, folder in (("one", world), ("other", tmp_path)):
        options: dict[str, object] = {"features": f"{{visual: {folder / 'visual.npy'}, audio: {folder / 'audio.npy'}}}"}
        options |= {"loop__max_steps": 4, "loop__eval_every_steps": 4}  # one checkpoint, whatever the validation says
        assert main(arguments(world, tmp_path / run, **options)) == 0
        weights.append((tmp_path / run / "checkpoints" / "best" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    one, other = (read_embeddings(tmp_path / run / "embeddings") for run in ("one", "other"))
    assert not np.array_equal(one.vectors, other.vectors)  # the held-out videos' own
