"""A whole run on a small world: it learns, resumes to the bit, tags new videos, and the test leaves no trace."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.common.files import read_json
from vidsim.data.annotation import split_videos
from vidsim.data.cowatch_graph import EVAL, TRAIN
from vidsim.engine.metrics_file import read_metrics
from vidsim.finetune import annotation as script
from vidsim.finetune.annotation import main
from vidsim.finetune.annotation_tag import main as tag_main
from vidsim.modeling.mixture_of_experts import Tagger

NUM_VIDEOS, NUM_TOPICS = 300, 6
NAMES = ("visual", "audio")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of six topics, told by features of quite different scale; a tag a topic, and one for two topics."""
    folder = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    topic = np.arange(NUM_VIDEOS) % NUM_TOPICS
    for name, scale in zip(NAMES, (100.0, 0.01), strict=True):
        noise = generator.standard_normal((NUM_VIDEOS, 8))
        mixed = (
            np.concatenate([4 * np.eye(NUM_TOPICS)[topic], noise], axis=1)
            @ np.linalg.qr(generator.standard_normal((14, 14)))[0]
        )
        np.save(folder / f"{name}.npy", (scale * mixed + scale).astype(np.float32))
    with (folder / "tags.jsonl").open("w", encoding="utf-8") as file:
        for video, number in enumerate(topic.tolist()):
            file.write(json.dumps({"id": str(video), "tags": [f"topic {number}", f"pair {number // 2}"]}) + "\n")
    return folder


def arguments(world: Path, out: Path, **options: object) -> list[str]:
    settings: dict[str, object] = {
        "tags": world / "tags.jsonl",
        "features": f"{{visual: {world / 'visual.npy'}, audio: {world / 'audio.npy'}}}",
        "output_dir": out,
        "k": 5,
        "task.num_experts": 2,
        "loop.micro_batch_size": 64,
        "loop.eval_every_steps": 10,
        "num_epochs": 30,
    } | {name.replace("__", "."): value for name, value in options.items()}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def weights(run: Path) -> str:
    return hashlib.sha256((run / "checkpoints" / "best" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("model", ["mixture", "logistic"])
def test_it_learns_and_is_judged_by_the_test(
    world: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(world, tmp_path / "run", task__model=model)) == 0
    out = capsys.readouterr().out
    floor = next(line for line in out.splitlines() if line.startswith("the most frequent tags, test"))
    assert "visual: 13 of 14 directions, 100.0% of the variance" in out  # one-hot topics sum to 1
    test = read_json(tmp_path / "run" / "test.json")
    assert test["gap@5"] > float(floor.split("gap@5 ")[1].split(",")[0]) + 0.5
    assert test["map_class@5"] > 0.9
    assert test["num_videos"] == int((split_videos([str(n) for n in range(300)], 0.3, 0.1, 0, None) == EVAL).sum())
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "validation/gap@5" in line]
    assert {"validation/map_sample@5", "validation/map_class@5"} <= set(lines[0])


def with_other_content(world: Path, changed: np.ndarray, folder: Path) -> None:
    """The same world, but for features and tags of some videos, bool [NUM_VIDEOS]."""
    for name in NAMES:
        array = np.load(world / f"{name}.npy")
        array[changed] = array[changed][::-1] * 3
        np.save(folder / f"{name}.npy", array)
    with (folder / "tags.jsonl").open("w", encoding="utf-8") as file:
        for line, other in zip((world / "tags.jsonl").read_text().splitlines(), changed.tolist(), strict=True):
            row = json.loads(line)
            file.write(json.dumps({"id": row["id"], "tags": ["topic 0", "new"] if other else row["tags"]}) + "\n")


def test_the_validation_only_chooses_the_checkpoint(world: Path, tmp_path: Path) -> None:
    with_other_content(world, split_videos([str(n) for n in range(NUM_VIDEOS)], 0.3, 0.1, 0, None) != TRAIN, tmp_path)
    for folder, run in ((world, "one"), (tmp_path, "other")):  # with one checkpoint there is nothing to choose
        assert main(arguments(folder, tmp_path / run, loop__max_steps=6, loop__eval_every_steps=6)) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")


def test_the_test_leaves_no_trace_in_the_model(world: Path, tmp_path: Path) -> None:
    ids = [str(number) for number in range(NUM_VIDEOS)]
    with_other_content(world, split_videos(ids, 0.3, 0.1, 0, None) == EVAL, tmp_path)
    for folder, run in ((world, "one"), (tmp_path, "other")):
        assert main(arguments(folder, tmp_path / run, loop__max_steps=20)) == 0
    assert weights(tmp_path / "one") == weights(tmp_path / "other")
    assert read_json(tmp_path / "one" / "test.json") != read_json(tmp_path / "other" / "test.json")


def test_a_resumed_run_is_the_straight_one(world: Path, tmp_path: Path) -> None:
    options: dict[str, object] = {"loop__eval_every_steps": 4, "num_epochs": 4}
    assert main(arguments(world, tmp_path / "straight", **options)) == 0
    assert main(arguments(world, tmp_path / "resumed", loop__max_steps=4, **options)) == 0
    assert main([*arguments(world, tmp_path / "resumed", **options), "--resume"]) == 0
    assert weights(tmp_path / "straight") == weights(tmp_path / "resumed")
    assert read_json(tmp_path / "straight" / "test.json") == read_json(tmp_path / "resumed" / "test.json")


def test_without_a_learning_rate_the_directions_stay(world: Path, tmp_path: Path) -> None:
    for rate, run in ((0.0, "kept"), (0.001, "learned")):
        assert main(arguments(world, tmp_path / run, optimizer__learning_rate=rate, loop__max_steps=5)) == 0
    kept, learned = (Tagger.load(tmp_path / run / "checkpoints" / "best") for run in ("kept", "learned"))
    centred = np.load(world / "audio.npy").astype(np.float64)
    centred = centred[split_videos([str(n) for n in range(300)], 0.3, 0.1, 0, None) == 0]
    covariance = np.cov(centred.T)
    rotated = kept.projections["audio"].weight.detach().double().numpy()
    turned = rotated @ covariance @ rotated.T
    np.testing.assert_allclose(turned, np.diag(np.diag(turned)), atol=1e-6 * turned.max())
    assert not torch.allclose(kept.projections["audio"].weight, learned.projections["audio"].weight)


def test_new_videos_are_tagged(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(world, tmp_path / "run")) == 0
    for name in NAMES:
        np.save(tmp_path / f"{name}.npy", np.load(world / f"{name}.npy")[[5, 9, 2]])
    (tmp_path / "ids.txt").write_text("x\ny\nz\n", encoding="utf-8")
    words = [str(tmp_path / "run"), "--features", *(f"{name}={tmp_path / name}.npy" for name in NAMES)]
    words += ["--ids", str(tmp_path / "ids.txt"), "--out", str(tmp_path / "new.jsonl"), "--batch_size", "2"]
    assert tag_main([*words, "-k", "2"]) == 0
    assert "3 videos, 2 of 9 tags each" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == ["x", "y", "z"]
    assert [set(row["tags"]) for row in rows] == [
        {"topic 5", "pair 2"},
        {"topic 3", "pair 1"},
        {"topic 2", "pair 1"},
    ]
    tagger = Tagger.load(tmp_path / "run" / "checkpoints" / "best").eval()
    with torch.no_grad():
        logits = tagger(**{name: torch.from_numpy(np.load(tmp_path / f"{name}.npy")) for name in NAMES})
    assert [row["probabilities"][0] for row in rows] == pytest.approx(logits.sigmoid().max(dim=1)[0].tolist(), rel=1e-4)
    with pytest.raises(UserError, match=r"new\.jsonl, --out: is there already\. Fix: .*--overwrite"):
        tag_main([*words, "--k", "99"])
    assert tag_main([*words, "--k", "99", "--overwrite"]) == 0
    row = json.loads((tmp_path / "new.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert sorted(row["probabilities"], reverse=True) == row["probabilities"]
    assert len(set(row["tags"])) == 9

    for change, message in (
        (
            ["--features", f"visual={world}/visual.npy"],
            "reads audio, visual, given are visual. Fix: give --features visual=PATH audio=PATH",
        ),
        (["--k", "0"], "--k: 0 is below 1"),
        (["--batch_size", "0"], "--batch_size: 0 is below 1"),
        (["--features", "visual"], "is not NAME=PATH"),
    ):
        with pytest.raises(UserError, match=message):
            tag_main([*words, "--out", str(tmp_path / "bad"), *change])
    (tmp_path / "run" / "checkpoints" / "best" / "tags.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(UserError, match="is damaged"):
        tag_main([*words, "--out", str(tmp_path / "bad")])
    assert not (tmp_path / "bad").exists()


def test_a_dry_run_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(world, tmp_path / "run"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "streams: visual 14, audio 14" in out
    assert "tags: 9, each on at least 5 training videos" in out
    assert "the most frequent tags, test: gap@5 0." in out
    assert "steps: 8" in out
    assert not (tmp_path / "run").exists()


def test_the_test_may_be_a_list_of_ids(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.txt").write_text("7\n8\n9\n", encoding="utf-8")
    assert main(arguments(world, tmp_path / "run", test_ids=tmp_path / "test.txt", loop__max_steps=1)) == 0
    assert "test: 3 videos; 0 without" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "test.json")["num_videos"] == 3
    (tmp_path / "test.txt").write_text("7\nx\n", encoding="utf-8")
    with pytest.raises(UserError, match="1 of 2 videos have no features: x"):
        main(arguments(world, tmp_path / "bad", test_ids=tmp_path / "test.txt"))


def test_what_does_not_fit_is_refused(world: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"tags": tmp_path / "none.jsonl"}, "no such file"),
        ({"features": "{}"}, "no stream is given"),
        ({"ids": world / "tags.jsonl"}, "is not one id|have tags, none to train on"),
        ({"min_count": 1000}, "no tag occurs 1000 times"),
        ({"id_column": "key"}, "field 'key': is missing"),
        ({"loop__micro_batch_tokens": 9}, "have no tokens"),
    ):
        with pytest.raises(UserError, match=message):
            main(arguments(world, tmp_path / "run", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.multi_process
def test_two_processes_train_as_one(world: Path, tmp_path: Path, on_two_processes: Any) -> None:
    options: dict[str, Any] = {"loop__max_steps": 6, "loop__log_every_steps": 1, "loop__eval_every_steps": 3}
    assert main(arguments(world, tmp_path / "one", **options)) == 0
    words = arguments(world, tmp_path / "two", **{**options, "loop__micro_batch_size": 32})
    on_two_processes(script.__file__, *words)
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    alone, together = (read_json(tmp_path / name / "test.json") for name in ("one", "two"))
    assert alone == pytest.approx(together, abs=1e-3)
