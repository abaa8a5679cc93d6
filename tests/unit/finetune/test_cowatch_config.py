from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.settings import parse_settings
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.tasks.cowatch import CowatchTaskConfig


def read(tmp_path: Path, *arguments: str) -> CowatchConfig:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("graph: data/cowatch\nfeatures:\n  visual: a.npy\n  audio: b.npy\n", encoding="utf-8")
    words = ["--config", str(recipe), *arguments]
    config: CowatchConfig = parse_settings(CowatchConfig, words, prog="vidsim", description="").config
    config.validate()
    return config


def test_the_defaults_are_the_published_network_and_batch(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.task == CowatchTaskConfig(
        fusion="late", hidden=[4000], embedding_dim=256, loss="hinge", margin=0.1, mining="semihard"
    )
    assert config.loop.micro_batch_size == 7200
    assert config.features == {"visual": "a.npy", "audio": "b.npy"}
    other = read(tmp_path, "--task.mining", "hardest", "--features", "{emb: runs/emb}")
    assert (other.features, other.task.mining) == ({"emb": "runs/emb"}, "hardest")


def test_settings_out_of_range_are_refused_by_name(tmp_path: Path) -> None:
    good = read(tmp_path)
    for bad, name in (
        (replace(good, features={}), "features"),
        (replace(good, num_epochs=0.0), "num_epochs"),
        (replace(good, seed=-1), "seed"),
        (replace(good, max_queries=0), "max_queries"),
        (replace(good, loop=LoopConfig(micro_batch_tokens=5)), "micro_batch_tokens"),
        (replace(good, task=CowatchTaskConfig(margin=0.0)), "task.margin"),
    ):
        with pytest.raises(UserError, match=name):
            bad.validate()
    for bad, name in (  # what towers do not read
        (replace(good, loop=LoopConfig(compile=True)), "'loop.compile': .*Fix: leave it out"),
        (replace(good, loop=LoopConfig(gradient_checkpointing=True)), "'loop.gradient_checkpointing'"),
        (replace(good, projection="principal"), "'projection'"),
        (replace(good, optimizer=OptimizerConfig(layer_decay=0.9)), "'optimizer.layer_decay'"),
        (replace(good, optimizer=OptimizerConfig(head_parameters=["encoder"])), "'optimizer.head_parameters'"),
    ):
        with pytest.raises(UserError, match=name):
            bad.validate()
    with pytest.raises(UserError, match="minning"):
        read(tmp_path, "--task.minning", "hardest")


def test_what_the_encoder_does_not_read_is_refused_by_name(tmp_path: Path) -> None:
    good = replace(
        read(tmp_path),
        features={},
        videos=["data/mine"],
        init_from="runs/a",
        projection="principal",
        loop=LoopConfig(compile=True, gradient_checkpointing=True),
        optimizer=OptimizerConfig(layer_decay=0.9),
    )
    good.validate()
    for bad, name in (
        (replace(good, ids="ids.txt"), "'ids': .*Fix: leave it out"),
        (replace(good, task=CowatchTaskConfig(fusion="early")), "'task.fusion'"),
        (replace(good, task=CowatchTaskConfig(hidden=[8])), "'task.hidden'"),
        (replace(good, task=CowatchTaskConfig(embedding_dim=8)), "'task.embedding_dim'"),
        (replace(good, task=CowatchTaskConfig(dropout=0.1)), "'task.dropout'"),
    ):
        with pytest.raises(UserError, match=name):
            bad.validate()
