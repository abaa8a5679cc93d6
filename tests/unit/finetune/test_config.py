from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.adversarial import FgmConfig
from vidsim.engine.ema import EmaConfig
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.finetune.config import FinetuneConfig, PairDataConfig
from vidsim.finetune.tasks.similarity import SimilarityConfig

HERE = str(Path(__file__).parent)
DATA = PairDataConfig(videos=["corpus"], pairs="pairs.tsv")


def config(**changes: Any) -> FinetuneConfig:
    return replace(FinetuneConfig(init_from=HERE, data=DATA), **changes)


def data(**changes: Any) -> FinetuneConfig:
    return config(data=replace(DATA, **changes))


def task(**settings: Any) -> FinetuneConfig:
    return config(task=SimilarityConfig(**settings))


def test_the_defaults_are_fine_and_leak_nothing() -> None:
    config().validate()
    assert config().data.split == "video_disjoint"
    assert (config().optimizer.learning_rate, config().optimizer.head_learning_rate) == (1e-5, 5e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (data(videos=[]), r"'data\.videos': no data set folder is given"),
        (data(num_folds=1), r"'data\.num_folds': 1 is below 2"),
        (data(fold=5), r"'data\.fold': 5 is not within 0 and 4"),
        (data(fold=-1), r"'data\.fold': -1"),
        (data(seed=-1), r"'data\.seed': -1 is below 0"),
        (data(score_range=[1.0, 0.0]), r"'data\.score_range'.*is not \[lowest, highest\]"),
        (data(score_range=[0.0, 0.5, 1.0]), r"'data\.score_range'"),
        (data(split="none", validation="v.tsv"), r"'none' and a validation file exclude each other"),
        (config(num_epochs=0), r"'num_epochs': 0 is not above 0.*Fix: set 1 or more"),
        (config(seed=-3), r"'seed': -3 is below 0"),
        (config(init_from="no/such/run"), r"no/such/run, field 'init_from': no such folder\. Fix: pretrain first"),
        (config(ema=EmaConfig(decay=1.0)), r"'ema\.decay'"),
        (config(fgm=FgmConfig(epsilon=0.0)), r"'fgm\.epsilon'"),
        (config(loop=LoopConfig(log_every_steps=0)), r"'loop\.log_every_steps'"),
        (config(loop=LoopConfig(micro_batch_tokens=100)), r"'loop\.micro_batch_tokens': pairs are counted by rows"),
        (config(optimizer=OptimizerConfig(layer_decay=0.0)), r"'optimizer\.layer_decay'"),
        (config(schedule=ScheduleConfig(min_ratio=2.0)), r"'schedule\.min_ratio'"),
        (config(trackers=["nothing"]), r"nothing"),
        (task(tag_weight=-1.0), r"'task\.tag_weight': -1\.0 is below 0"),
        (task(kl_weight=-1.0), r"'task\.kl_weight'"),
        (task(r_drop_weight=-1.0), r"'task\.r_drop_weight'"),
        (task(temperature=0.0), r"'task\.temperature': 0\.0 is not above 0"),
        (task(scale=0.0), r"'task\.scale'"),
        (task(dropout_sample_rate=1.0), r"'task\.dropout_sample_rate'"),
        (task(num_dropout_samples=0), r"'task\.num_dropout_samples': 0 is below 1"),
        (task(distill_weight=1.5), r"'task\.distill_weight': 1\.5 is not within 0 and 1"),
        (task(tag_weight=0.1), r"data\.tags and task\.tag_weight go together.*Fix: set both or none"),
        (data(tags="tags.txt"), r"data\.tags and task\.tag_weight go together"),
        (task(distill_weight=0.3), r"data\.teacher and task\.distill_weight go together.*Fix: set both or none"),
        (data(teacher="emb/a"), r"data\.teacher and task\.distill_weight go together"),
        (
            replace(task(kl_weight=0.5, label="raw"), data=replace(DATA, score_range=[0.0, 5.0])),
            r"'task\.kl_weight': with raw labels from 0 to 5 .*Fix: set task\.label to rank or quantile",
        ),
        (
            replace(
                task(distill_weight=0.5, label="raw", loss="cosent"),
                data=replace(DATA, score_range=[0.0, 5.0], teacher="emb/a"),
            ),
            r"'task\.distill_weight': raw labels from 0 to 5 .*Fix: set task\.label to rank or quantile",
        ),
        (
            replace(task(label="raw"), data=replace(DATA, score_range=[0.0, 5.0])),
            r"'task\.loss': a cosine never reaches raw labels from 0 to 5.*Fix: set task\.label to rank or quantile",
        ),
        (config(num_epochs=float("inf")), r"'num_epochs': inf is not above 0 and finite"),
    ],
)
def test_what_cannot_work_is_named(wrong: FinetuneConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        wrong.validate()


def test_extras_that_go_together_are_fine() -> None:
    extras = SimilarityConfig(tag_weight=0.1, distill_weight=1.0, kl_weight=0.5, r_drop_weight=1.0)
    files = replace(DATA, tags="tags.txt", teacher="emb/a", score_range=[0.0, 5.0])
    config(task=extras, data=files, ema=EmaConfig(), fgm=FgmConfig()).validate()


def test_raw_labels_of_any_range_may_be_ranked_or_lie_where_cosines_do() -> None:
    wide = replace(DATA, score_range=[1.0, 5.0])
    for loss in ("lbpc", "cosent"):
        replace(task(label="raw", loss=loss), data=wide).validate()
    replace(task(label="raw"), data=replace(DATA, score_range=[-1.0, 1.0])).validate()
