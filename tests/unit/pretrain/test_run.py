"""What a run decides before its first step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.convert.table import main as convert
from vidsim.data.corpus import Corpus
from vidsim.data.tags import TagVocabulary
from vidsim.engine.accelerator import make_accelerator
from vidsim.engine.loop_config import LoopConfig
from vidsim.modeling.objectives.mlm import MlmConfig
from vidsim.pretrain.config import DataConfig, ObjectivesConfig, PretrainConfig, ProbeConfig, StageConfig
from vidsim.pretrain.run import (
    describe,
    main,
    make_hooks,
    open_probe,
    open_training_corpus,
    stage_batches,
    stage_steps,
    tag_vocabulary,
)

FRAMES = {"frames": 6}  # the streams of `small_data`


@pytest.fixture
def config(small_data: Any, tmp_path: Path) -> PretrainConfig:
    stage = StageConfig(data=[str(small_data.folder / "videos")], num_epochs=3)
    data = DataConfig(stages=[stage, replace(stage, num_epochs=0.01)], held_out_fraction=0.3, num_tags=3)
    return PretrainConfig(data=data, output_dir=str(tmp_path / "run"), loop=LoopConfig(micro_batch_size=4))


@pytest.fixture
def corpus(config: PretrainConfig) -> Corpus:
    return open_training_corpus(config)


def test_the_corpus_of_all_stages(corpus: Corpus, config: PretrainConfig) -> None:
    (rows,) = corpus.trainable.values()
    assert len(rows) + len(corpus.held_out) == 24
    assert len(corpus.held_out) > 2


def test_excluded_videos_are_in_no_batch(config: PretrainConfig, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("3\n5\n", encoding="utf-8")
    corpus = open_training_corpus(replace(config, data=replace(config.data, exclude=[str(tmp_path / "ids.txt")])))
    (rows,) = corpus.trainable.values()
    assert not {3, 5} & {*rows.tolist(), *corpus.held_out.tolist()}
    assert corpus.num_excluded == 2


def test_steps_are_epochs_in_global_batches(config: PretrainConfig, corpus: Corpus) -> None:
    """17 rows: 51 in 3 epochs, 12.75 batches of 4, 3.2 of 16; the short stage has one step at least."""
    folder = config.data.stages[0].data[0]
    corpus = replace(corpus, trainable={folder: np.arange(17)})
    assert stage_steps(config, corpus, 1) == [13, 1]
    accumulated = replace(config, loop=LoopConfig(micro_batch_size=4, gradient_accumulation_steps=2))
    assert stage_steps(accumulated, corpus, 2) == [3, 1]
    scaled = replace(config, data=replace(config.data, epoch_scale=0.5))
    assert stage_steps(scaled, corpus, 1) == [6, 1]


def test_the_stages_draw_other_orders_of_the_same_rows(
    config: PretrainConfig, corpus: Corpus, setup: Callable[..., Any]
) -> None:
    collator = setup(objectives={"mlm": MlmConfig()}).collator
    stages = stage_batches(config, corpus, collator, make_accelerator("fp32"))
    (rows,) = corpus.trainable.values()
    wanted = {str(row) for row in rows}
    orders = []
    for stage in stages:
        batches = list(replace(stage, num_steps=9).batches(0))
        ids = [row_id for batch in batches for row_id in batch["row_ids"]]
        assert set(ids) <= wanted
        orders.append(ids)
    assert set(orders[0]) == wanted
    assert orders[1] != orders[0][: len(orders[1])]
    again = [row_id for batch in stages[0].batches(3) for row_id in batch["row_ids"]]
    assert again == orders[0][3 * 4 :]


def test_tags_are_built_from_training_rows_and_kept(config: PretrainConfig, corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "tags.txt"
    folder = config.data.stages[0].data[0]
    corpus = replace(corpus, trainable={folder: np.array([0, 4, 1, 12])})  # tags t0 t0 t1 t0, and `all` on each
    tags = tag_vocabulary(config, corpus, path, keep=False)
    assert tags is not None
    assert (tags.tags, tags.counts) == (("all", "t0"), (4, 3))  # t1 stands on one row only
    path.write_text("kept\n", encoding="utf-8")
    assert tag_vocabulary(config, corpus, path, keep=True) == TagVocabulary(("kept",))
    given = replace(config, data=replace(config.data, tags=str(path)))
    path.write_text("a\nb\nc\nd\n", encoding="utf-8")
    assert tag_vocabulary(given, corpus, tmp_path / "other.txt", keep=False) == TagVocabulary(("a", "b", "c"))
    without = replace(config, objectives=ObjectivesConfig(vtc=None))
    assert tag_vocabulary(without, corpus, path, keep=False) is None


def test_the_probe(config: PretrainConfig, small_data: Any, tmp_path: Path) -> None:
    assert open_probe(config, FRAMES) is None
    videos = [str(small_data.folder / "videos")]
    opened = open_probe(
        replace(config, probe=ProbeConfig(data=videos, pairs=str(small_data.pairs), max_pairs=5)), FRAMES
    )
    assert opened is not None
    assert opened[1].id1 == ["0", "0", "1", "1", "2"]

    def refused(content: str) -> str:
        (tmp_path / "pairs.tsv").write_text(content, encoding="utf-8")
        with pytest.raises(UserError) as error:
            open_probe(replace(config, probe=ProbeConfig(data=videos, pairs=str(tmp_path / "pairs.tsv"))), FRAMES)
        return str(error.value)

    assert "first nobody" in refused("1\tnobody\t0.5\n1\t2\t0.1\n")
    assert "pairs.tsv, field 'score': all scores are equal" in refused("1\t2\t0.5\n3\t4\t0.5\n")


def test_data_without_frames_is_refused_before_anything_is_built(
    config: PretrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"id": str(n), "title": f"w{n % 5} w{n % 3}", "tags": ["a"]}) + "\n" for n in range(20))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    convert([str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "text")])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{stages: [{{data: [{tmp_path / 'text'}]}}], held_out_fraction: 0.2}}\n")
    words = ["--config", str(recipe), "--dry_run", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=r"text, field 'objectives\.mfm': the videos have no frames.*mfm null"):
        main(words)
    assert main([*words, "--objectives.mfm", "null"]) == 0


def test_a_probe_of_other_features_is_refused(
    small_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"id": str(n), "title": "w1"}) + "\n" for n in range(24))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    convert([str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "text")])
    recipe = tmp_path / "recipe.yaml"
    probe = f"probe: {{data: [{tmp_path / 'text'}], pairs: {small_data.pairs}}}\n"
    recipe.write_text(
        f"data: {{stages: [{{data: [{small_data.folder / 'videos'}]}}], held_out_fraction: 0.2}}\n{probe}"
    )
    with pytest.raises(UserError, match=r"text, field 'probe\.data': has the streams none, the training data"):
        main(["--config", str(recipe), "--dry_run", "--output_dir", str(tmp_path / "run")])


def test_a_later_stage_draws_masks_that_no_earlier_one_drew(
    config: PretrainConfig, corpus: Corpus, setup: Callable[..., Any]
) -> None:
    """Three epochs in the first stage: the second begins with the fourth."""
    collator = setup(objectives={"mlm": MlmConfig()}).collator
    stages = stage_batches(config, corpus, collator, make_accelerator("fp32"))
    (drawn,) = stages[1].batches(0)
    labels = {}
    for epoch in range(4):  # the ids of the videos are their row numbers
        rows = [{**corpus.videos[int(row_id)], "epoch": epoch} for row_id in drawn["row_ids"]]
        labels[epoch] = collator(rows)["mlm_labels"].tolist()
    assert drawn["mlm_labels"].tolist() == labels[3]
    assert all(labels[epoch] != labels[3] for epoch in range(3))


def test_held_out_rows_are_no_more_than_asked_for(
    config: PretrainConfig, corpus: Corpus, setup: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def losses(module: Any, accelerator: Any, videos: Any, rows: Any, *rest: Any) -> dict[str, float]:
        seen.append(rows.tolist())
        return {}

    monkeypatch.setattr("vidsim.pretrain.run.held_out_losses", losses)
    made = setup(objectives={"mlm": MlmConfig()})
    for most in (2, 1000):
        hooks(replace(config, data=replace(config.data, held_out_max_rows=most)), corpus, made).evaluate()
    assert len(seen[0]) == 2
    assert set(seen[0]) < set(corpus.held_out.tolist())
    assert seen[1] == corpus.held_out.tolist()


def hooks(config: PretrainConfig, corpus: Corpus, made: Any, *, probe: Any = None, processes: int = 1) -> Any:
    accelerator: Any = SimpleNamespace(num_processes=processes, process_index=0)
    return make_hooks(config, corpus, probe, made.module, made.collator, accelerator)


def test_the_best_has_the_lowest_loss_or_the_best_probe(
    config: PretrainConfig, corpus: Corpus, small_data: Any, setup: Callable[..., Any]
) -> None:
    made = setup(objectives={"mlm": MlmConfig()})
    probe_config = ProbeConfig(data=[str(small_data.folder / "videos")], pairs=str(small_data.pairs))
    probe = open_probe(replace(config, probe=probe_config), FRAMES)
    both = hooks(config, corpus, made, probe=probe)
    assert (both.select, both.select_mode) == ("held_out/loss", "min")
    nothing_held_out = replace(corpus, held_out=np.arange(0))
    alone = hooks(config, nothing_held_out, made, probe=probe)
    assert (alone.select, alone.select_mode) == ("probe/spearman", "max")
    with pytest.raises(UserError, match="nothing to evaluate on"):
        hooks(config, nothing_held_out, made)


def test_every_process_needs_held_out_rows(config: PretrainConfig, corpus: Corpus, setup: Callable[..., Any]) -> None:
    made = setup(objectives={"mlm": MlmConfig()})
    num_rows = len(corpus.held_out)
    hooks(config, corpus, made, processes=num_rows)
    with pytest.raises(UserError, match=rf"{num_rows} held-out rows, 64 at a time, on {num_rows + 1} processes"):
        hooks(config, corpus, made, processes=num_rows + 1)
    narrow = replace(config, loop=LoopConfig(eval_batch_size=2))
    with pytest.raises(UserError, match=r"loop\.eval_batch_size"):
        hooks(narrow, corpus, made, processes=3)


def test_the_banner_warns_where_nothing_is_excluded(config: PretrainConfig, corpus: Corpus) -> None:
    lines = describe(config, corpus, world_size=1)
    assert "0 excluded" in lines[0]
    assert "stage 1: " in lines[1]
    assert "3 epochs" in lines[1]
    assert lines[3] == "objectives: vtc, mlm, mfm (balance: fixed)"
    assert "data.exclude is empty" in lines[-1]
    excluding = replace(config, data=replace(config.data, exclude=["ids.txt"]))
    assert "data.exclude" not in "".join(describe(excluding, corpus, world_size=1))


def test_a_dry_run_checks_and_writes_nothing(
    small_data: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {{stages: [{{data: [{small_data.folder / 'videos'}]}}], held_out_fraction: 0.2}}\n")
    assert main(["--config", str(recipe), "--dry_run", "--output_dir", str(tmp_path / "run")]) == 0
    assert "24 in 1 data sets" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="no/such/folder"):
        main(["--config", str(recipe), "--dry_run", "--data.stages", "[{data: [no/such/folder]}]"])
