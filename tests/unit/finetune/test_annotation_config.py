from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.settings import parse_settings
from vidsim.finetune.annotation_config import AnnotationConfig
from vidsim.finetune.tasks.annotation import AnnotationTaskConfig


def read(tmp_path: Path, *arguments: str) -> AnnotationConfig:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("tags: tags.jsonl\nfeatures:\n  visual: a.npy\n", encoding="utf-8")
    words = ["--config", str(recipe), *arguments]
    config: AnnotationConfig = parse_settings(AnnotationConfig, words, prog="vidsim", description="").config
    config.validate()
    return config


def test_the_defaults_are_the_published_model_and_batch(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.task == AnnotationTaskConfig(model="mixture", num_experts=5, num_directions=256)
    assert config.loop.micro_batch_size == 512
    assert config.optimizer.head_learning_rate == 0.008
    assert config.k == 20
    other = read(tmp_path, "--task.model", "logistic", "--tag_columns", "[genres, words]", "--test_ids", "t.txt")
    assert (other.task.model, other.tag_columns, other.test_ids) == ("logistic", ["genres", "words"], "t.txt")


def test_settings_out_of_range_are_refused_by_name(tmp_path: Path) -> None:
    good = read(tmp_path)
    replace(good, test_fraction=0.95, test_ids="t.txt").validate()  # a share that is not used
    for bad, name in (
        (replace(good, features={}), "features"),
        (replace(good, num_epochs=0.0), "num_epochs"),
        (replace(good, k=0), "field 'k'"),
        (replace(good, min_count=0), "min_count"),
        (replace(good, max_tags=0), "max_tags"),
        (replace(good, split_seed=-1), "split_seed"),
        (replace(good, test_fraction=1.0), "test_fraction"),
        (replace(good, validation_fraction=0.0), "validation_fraction"),
        (replace(good, test_fraction=0.9), "validation_fraction"),
        (replace(good, tag_columns=[]), "tag_columns"),
        (replace(good, tag_separator=""), "tag_separator"),
        (replace(good, loop=LoopConfig(micro_batch_tokens=5)), "micro_batch_tokens"),
        (replace(good, loop=LoopConfig(compile=True)), "'loop.compile': .*Fix: leave it out"),
        (replace(good, loop=LoopConfig(gradient_checkpointing=True)), "'loop.gradient_checkpointing'"),
        (replace(good, optimizer=OptimizerConfig(layer_decay=0.9)), "'optimizer.layer_decay'"),
        (replace(good, optimizer=OptimizerConfig(head_parameters=["tagger"])), "'optimizer.head_parameters'"),
        (replace(good, num_epochs=float("nan")), "'num_epochs': nan is not above 0"),
        (replace(good, task=AnnotationTaskConfig(num_experts=0)), "task.num_experts"),
    ):
        with pytest.raises(UserError, match=name):
            bad.validate()
