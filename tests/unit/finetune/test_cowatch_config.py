from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.loop_config import LoopConfig
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
    with pytest.raises(UserError, match="minning"):
        read(tmp_path, "--task.minning", "hardest")
