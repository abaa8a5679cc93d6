from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.data.masking import MaskingConfig
from vidsim.engine.balance import BalanceConfig
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.settings import parse_settings
from vidsim.modeling.build import ModelConfig
from vidsim.modeling.objectives.contrastive import ContrastiveConfig
from vidsim.modeling.objectives.mfm import MfmConfig
from vidsim.modeling.objectives.mlm import MlmConfig
from vidsim.modeling.objectives.vtc import VtcConfig
from vidsim.modeling.objectives.vtm import VtmConfig
from vidsim.pretrain.config import DataConfig, ObjectivesConfig, PretrainConfig, ProbeConfig, StageConfig

STAGE = StageConfig(data=["corpus"])
NOTHING: dict[str, Any] = {"vtc": None, "mlm": None, "mfm": None}


def config(**changes: Any) -> PretrainConfig:
    return replace(PretrainConfig(data=DataConfig(stages=[STAGE])), **changes)


def data(**changes: Any) -> PretrainConfig:
    return config(data=replace(DataConfig(stages=[STAGE]), **changes))


def test_the_defaults_are_fine() -> None:
    config().validate()
    config(probe=ProbeConfig(data=["corpus"], pairs="pairs.tsv")).validate()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (data(stages=[]), r"field 'data\.stages': no stage is given.*Fix: name at least one data set folder"),
        (data(stages=[STAGE, StageConfig(data=[])]), r"field 'data\.stages\[1\]\.data': no data set folder"),
        (data(stages=[StageConfig(data=["a"], num_epochs=0)]), r"'data\.stages\[0\]\.num_epochs': 0 is not above 0"),
        (data(stages=[StageConfig(data=["a"], num_epochs=float("nan"))]), r"'data\.stages\[0\]\.num_epochs'"),
        (data(epoch_scale=0.0), r"'data\.epoch_scale': 0\.0 is not above 0"),
        (data(tags="no_tags.txt"), r"no_tags\.txt, field 'data\.tags': no such file"),
        (data(exclude=["no_list.txt"]), r"no_list\.txt, field 'data\.exclude': no such file"),
        (data(held_out_fraction=1.0), r"'data\.held_out_fraction': 1\.0 is not within 0 and 1"),
        (data(held_out_fraction=-0.1), r"'data\.held_out_fraction'"),
        (data(held_out_max_rows=-1), r"'data\.held_out_max_rows': -1 is below 1"),
        (data(num_tags=0), r"'data\.num_tags': 0 is below 1"),
        (data(min_tag_count=0), r"'data\.min_tag_count'"),
        (config(seed=-1), r"field 'seed': -1 is below 0"),
        (config(objectives=ObjectivesConfig(**NOTHING)), r"every objective is null\. Fix: train at least one"),
        (
            config(objectives=ObjectivesConfig(mlm=MlmConfig(weight=0.0))),
            r"'objectives\.mlm\.weight': 0\.0 is not above 0\. Fix: set objectives\.mlm to null",
        ),
        (config(objectives=ObjectivesConfig(vtc=VtcConfig(weight=float("nan")))), r"'objectives\.vtc\.weight'"),
        (config(probe=ProbeConfig(data=["a"], pairs="p.tsv", max_pairs=1)), r"'probe\.max_pairs': 1 is below 2"),
        (config(probe=ProbeConfig(data=[], pairs="p.tsv")), r"'probe\.data': no data set folder"),
        (config(trackers=["nothing"]), r"nothing"),
        # What the parts refuse reaches the user.
        (config(model=ModelConfig(num_layers=0)), r"'model\.num_layers'"),
        (config(masking=MaskingConfig(mlm_probability=2.0)), r"'masking\.mlm_probability'"),
        (config(optimizer=OptimizerConfig(learning_rate=-1.0)), r"'optimizer\.learning_rate'"),
        (config(schedule=ScheduleConfig(warmup_fraction=2.0)), r"'schedule\.warmup_fraction'"),
        (config(balance=BalanceConfig(every_steps=0)), r"'balance\.every_steps'"),
        (config(loop=LoopConfig(micro_batch_size=0)), r"'loop\.micro_batch_size'"),
    ],
)
def test_what_cannot_work_is_named(wrong: PretrainConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong.validate()


@pytest.mark.parametrize(
    ("objectives", "use_text", "use_frames", "message"),
    [
        ({"vtm": VtmConfig()}, False, True, "vtm and contrastive need text and frames"),
        ({"contrastive": ContrastiveConfig()}, True, False, "vtm and contrastive need text and frames"),
        ({"mlm": MlmConfig()}, False, True, r"mlm needs text\. Fix: set objectives\.mlm to null"),
        ({"mfm": MfmConfig()}, True, False, r"mfm needs frames\. Fix: set objectives\.mfm to null"),
        ({"mlm": MlmConfig(), "vtc": VtcConfig()}, True, False, None),
        ({"mfm": MfmConfig(), "vtc": VtcConfig()}, False, True, None),
    ],
)
def test_objectives_need_what_they_predict(
    objectives: dict[str, Any], use_text: bool, use_frames: bool, message: str | None
) -> None:
    model = ModelConfig(use_text=use_text, use_frames=use_frames)
    made = config(objectives=ObjectivesConfig(**{**NOTHING, **objectives}), model=model)
    if message is None:
        made.validate()
        return
    with pytest.raises(UserError, match=message):
        made.validate()


def test_files_of_the_bundled_sample_need_not_be_there_yet() -> None:
    data(exclude=["made/later.txt"], tags="made/tags.txt", bundled_sample="made").validate()


def test_an_overlay_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "data: {stages: [{data: [x], num_epochs: 3}], num_tags: 7}\n"
        "objectives: {vtc: {input: embedding, weight: 5}, mfm: null}\n"
        "optimizer: {learning_rate: 1e-3, head_parameters: [objectives.vtc]}\n",
        encoding="utf-8",
    )
    (tmp_path / "b.yaml").write_text(
        "data: {num_tags: 8}\nobjectives: {vtc: {weight: 6}}\noptimizer: {learning_rate: 2e-3}\n", encoding="utf-8"
    )
    arguments = [
        "--config",
        str(tmp_path / "a.yaml"),
        "--config",
        str(tmp_path / "b.yaml"),
        "--objectives.vtm.weight=2",
    ]
    parsed = parse_settings(PretrainConfig, arguments, prog="x", description="d").config
    assert parsed == PretrainConfig(
        data=DataConfig(stages=[StageConfig(data=["x"], num_epochs=3.0)], num_tags=8),
        objectives=ObjectivesConfig(vtc=VtcConfig(input="embedding", weight=6.0), mfm=None, vtm=VtmConfig(weight=2.0)),
        optimizer=OptimizerConfig(learning_rate=2e-3, head_parameters=["objectives.vtc"]),
    )
