"""Which pairs train and which validate, decided before any device is touched."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.data.embeddings import write_embeddings
from vidsim.data.manifest import StreamInfo
from vidsim.data.pairs import Pairs, read_pairs, write_pairs
from vidsim.data.shards import ShardWriter, write_manifest
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.config import FinetuneConfig, PairDataConfig
from vidsim.finetune.run import PairData, main, num_steps, open_pairs
from vidsim.finetune.tasks.similarity import SimilarityConfig
from vidsim.modeling.build import load_encoder


@pytest.fixture
def config(small_data: Any, checkpoint: Path) -> FinetuneConfig:
    data = PairDataConfig(videos=[str(small_data.folder / "videos")], pairs=str(small_data.pairs), num_folds=3)
    return FinetuneConfig(init_from=str(checkpoint), data=data)


def opened(config: FinetuneConfig, **data: Any) -> PairData:
    return open_pairs(replace(config, data=replace(config.data, **data)))


def ids(pairs: Pairs) -> set[str]:
    return {*pairs.id1, *pairs.id2}


def triples(*parts: Pairs) -> list[tuple[str, str, float]]:
    return sorted(triple for part in parts for triple in zip(part.id1, part.id2, part.score.tolist(), strict=True))


def test_by_default_no_video_of_a_validation_pair_is_trained_on(config: FinetuneConfig) -> None:
    seen = []
    for fold in range(3):
        data = opened(config, fold=fold)
        assert not ids(data.train) & ids(data.validation)
        assert "overlap train/validation: 0 of" in data.lines[0]
        seen.append(data.validation)
    everything = read_pairs(config.data.pairs)
    assert triples(*seen) == triples(everything)  # every pair validates in one fold


def test_the_winners_rule_leaks_and_says_so(config: FinetuneConfig) -> None:
    data = opened(config, split="pair_or", fold=1)
    assert {int(name) % 3 for name in ids(data.validation)} == {1}
    shared = ids(data.train) & ids(data.validation)
    assert shared
    assert f"overlap train/validation: {len(shared)} of" in data.lines[0]
    assert triples(data.train, data.validation) == triples(read_pairs(config.data.pairs))


def test_a_validation_file_is_taken_whatever_the_split(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "validation.tsv").write_text("0\t13\t0.2\n14\t15\t0.9\n", encoding="utf-8")
    data = opened(config, validation=str(tmp_path / "validation.tsv"), split="pair_or")
    assert triples(data.validation) == [("0", "13", 0.2), ("14", "15", 0.9)]
    assert len(data.train) == len(read_pairs(config.data.pairs)) == 30
    assert data.lines == [
        "pairs: 30 train, 2 validation from files; overlap: 4 videos of validation pairs are trained on"
    ]


def test_all_pairs_can_train(config: FinetuneConfig) -> None:
    data = opened(config, split="none")
    assert triples(data.train) == triples(data.validation) == triples(read_pairs(config.data.pairs))
    assert "the validation figures below are on training pairs" in data.lines[0]


def test_labels_are_those_of_the_training_pairs(config: FinetuneConfig) -> None:
    data = opened(config)
    known = dict(zip(data.train.score.tolist(), data.train_labels.tolist(), strict=True))
    assert (data.train_labels.min(), data.train_labels.max()) == (0.0, 1.0)
    assert all(
        label == pytest.approx(known[score])
        for score, label in zip(data.validation.score.tolist(), data.validation_labels.tolist(), strict=True)
        if score in known
    )
    raw = open_pairs(replace(config, task=SimilarityConfig(label="raw")))
    assert raw.train_labels.tolist() == data.train.score.tolist()


def test_a_teachers_cosines_are_mixed_in(config: FinetuneConfig, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(24, 3)) * np.arange(1, 25)[:, None]  # of any length
    write_embeddings(tmp_path / "teacher", [str(number) for number in range(24)], vectors)
    task = SimilarityConfig(label="raw", distill_weight=0.25)
    data = open_pairs(replace(config, task=task, data=replace(config.data, teacher=str(tmp_path / "teacher"))))
    for first, second, score, label in zip(
        data.train.id1, data.train.id2, data.train.score, data.train_labels, strict=True
    ):
        left, right = vectors[int(first)], vectors[int(second)]
        cosine = left @ right / (np.linalg.norm(left) * np.linalg.norm(right))
        assert label == pytest.approx(0.75 * score + 0.25 * max(cosine, 0.0), abs=1e-6)
    assert data.validation_labels.tolist() == data.validation.score.tolist()
    write_embeddings(tmp_path / "small", ["0", "1"], vectors[:2])
    with pytest.raises(UserError, match="has no embedding for"):
        open_pairs(replace(config, task=task, data=replace(config.data, teacher=str(tmp_path / "small"))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0\tnobody\t0.5\n1\t2\t0.1\n", "first nobody"),
        ("0\t1\t0.5\n2\t3\t0.5\n", r"v\.tsv, field 'score': all validation scores are equal.*Fix: give validation"),
        ("0\t1\t1.5\n", "1.5 is not within 0 to 1"),
    ],
)
def test_pairs_that_cannot_be_used(config: FinetuneConfig, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "v.tsv").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        opened(config, validation=str(tmp_path / "v.tsv"))


def test_equal_training_scores_have_no_ranks(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("0\t1\t0.5\n2\t3\t0.5\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.tsv, field 'score': a rank target needs at least 2 different labels"):
        opened(config, pairs=str(tmp_path / "train.tsv"), validation=config.data.pairs)


def test_a_wider_range_of_scores_must_be_said(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "grades.tsv").write_text("0\t1\t5\n2\t3\t1\n4\t5\t3\n6\t7\t2\n", encoding="utf-8")
    with pytest.raises(UserError, match="5 is not within 0 to 1"):
        opened(config, pairs=str(tmp_path / "grades.tsv"))
    data = opened(config, pairs=str(tmp_path / "grades.tsv"), score_range=[1.0, 5.0], num_folds=2)
    assert {*data.train_labels} == {0.0, 1.0}


def test_steps_are_epochs_in_global_batches(config: FinetuneConfig) -> None:
    data = opened(config, split="none")  # 30 pairs
    loop = LoopConfig(micro_batch_size=4, gradient_accumulation_steps=2)
    assert num_steps(replace(config, num_epochs=3, loop=loop), data, 1) == 11
    assert num_steps(replace(config, num_epochs=3, loop=loop), data, 2) == 6
    assert num_steps(replace(config, num_epochs=0.01, loop=loop), data, 1) == 1


def test_a_dry_run_says_what_would_be_done(
    config: FinetuneConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"init_from: {config.init_from}\ndata: {{videos: {config.data.videos}, pairs: {config.data.pairs}}}\n"
    )
    assert main(["--config", str(recipe), "--dry_run", "--output_dir", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "overlap train/validation: 0" in shown
    assert "steps: " in shown
    assert not (tmp_path / "run").exists()


def test_frames_of_another_width_are_refused_before_the_first_step(config: FinetuneConfig, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "videos/data-00000.arrow", {"frames": 3}) as writer:
        for number in range(24):
            writer.write({"id": str(number), "title": "w1", "tags": []})
    streams = {"frames": StreamInfo(dim=3, extractor=None)}
    write_manifest(tmp_path / "videos", [writer.info], streams, has_tags=False, command="test")
    arguments = ["--init_from", config.init_from, "--data.videos", f"[{tmp_path / 'videos'}]"]
    arguments += ["--data.pairs", config.data.pairs, "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"field 'frames': the data set has vectors of width 3.*of width 6"):
        main(arguments)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_principal_projection_is_where_the_run_starts(config: FinetuneConfig, tmp_path: Path) -> None:
    arguments = ["--init_from", config.init_from, "--data.videos", f"[{config.data.videos[0]}]"]
    arguments += ["--data.pairs", config.data.pairs, "--output_dir", str(tmp_path / "run")]
    assert main([*arguments, "--projection", "principal", "--loop.max_steps", "0"]) == 0
    started, _ = load_encoder(checkpoint_of(tmp_path / "run"))
    weight = started.embedding_head.projection.weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(4), rtol=0, atol=1e-5)


def with_other_held_out(config: FinetuneConfig, small_data: Any, folder: Path) -> FinetuneConfig:
    """The same training pairs and their videos; everything else is of other content and other scores."""
    data = opened(config)
    trained, streams = ids(data.train), {"frames": StreamInfo(dim=6, extractor=None)}
    assert 0 < len(trained) < 24
    generator = np.random.default_rng(1)
    with ShardWriter(folder / "videos/data-00000.arrow", {"frames": 6}) as writer:
        for row in small_data.videos:
            changed = {"title": f"w{int(row['id']) % 10}", "frames": generator.normal(2, 3, (3, 6)).astype(np.float16)}
            writer.write(row if row["id"] in trained else row | changed)
    write_manifest(folder / "videos", [writer.info], streams, has_tags=True, command="test")
    held_out = {*zip(data.validation.id1, data.validation.id2, strict=True)}
    pairs = read_pairs(config.data.pairs)
    is_held_out = [pair in held_out for pair in zip(pairs.id1, pairs.id2, strict=True)]
    write_pairs(folder / "pairs.tsv", replace(pairs, score=np.where(is_held_out, 0.1 + pairs.score / 4, pairs.score)))
    files = replace(config.data, videos=[str(folder / "videos")], pairs=str(folder / "pairs.tsv"))
    return replace(config, data=files)


def test_what_is_held_out_leaves_no_trace_in_the_model(config: FinetuneConfig, small_data: Any, tmp_path: Path) -> None:
    other = with_other_held_out(config, small_data, tmp_path)
    for label in ("rank", "quantile"):
        task = SimilarityConfig(label=label)  # type: ignore[arg-type]
        one, two = (open_pairs(replace(each, task=task)) for each in (config, other))
        assert triples(one.train) == triples(two.train)
        assert one.train_labels.tolist() == two.train_labels.tolist()
        assert one.validation_labels.tolist() != two.validation_labels.tolist()
    weights = []
    for name, each in (("one", config), ("other", other)):
        arguments = ["--init_from", each.init_from, "--data.videos", f"[{each.data.videos[0]}]"]
        arguments += ["--data.pairs", each.data.pairs, "--data.num_folds", "3", "--projection", "whitened"]
        arguments += ["--output_dir", str(tmp_path / name), "--loop.max_steps", "2"]
        assert main(arguments) == 0
        weights.append((checkpoint_of(tmp_path / name) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_teacher_of_zero_vectors_is_named(config: FinetuneConfig, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(24, 3))
    left = int(opened(config).train.id1[0])
    vectors[left] = 0
    write_embeddings(tmp_path / "teacher", [str(number) for number in range(24)], vectors)
    task = SimilarityConfig(distill_weight=0.25)
    match = rf"teacher: 1 embeddings are zero vectors, which have no cosine: {left}\. Fix: embed these videos again"
    with pytest.raises(UserError, match=match):
        open_pairs(replace(config, task=task, data=replace(config.data, teacher=str(tmp_path / "teacher"))))
