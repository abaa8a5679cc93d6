"""Everything a pretraining run can be told; read from YAML and the command line by jsonargparse."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vidsim.common.errors import UserError
from vidsim.data.corpus_tokenizer import TokenizerConfig
from vidsim.data.masking import MaskingConfig
from vidsim.engine.balance import BalanceConfig
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.session import SessionConfig
from vidsim.modeling.build import ModelConfig
from vidsim.modeling.objectives.contrastive import ContrastiveConfig
from vidsim.modeling.objectives.mfm import MfmConfig
from vidsim.modeling.objectives.mlm import MlmConfig
from vidsim.modeling.objectives.vtc import VtcConfig
from vidsim.modeling.objectives.vtm import VtmConfig


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of training with its own data, order and schedule."""

    data: list[str]
    """Data set folders."""
    num_epochs: float = 1.0
    """Passes over these data sets."""
    order: Literal["together", "sequential"] = "together"
    """`together`: all shuffled as one. `sequential`: one after another in every epoch (the winner's job 5)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, and what is kept away from training."""

    stages: list[StageConfig] = field(default_factory=list)
    """Walked through in order; a second stage is what the winner's job 4 has."""
    epoch_scale: float = 1.0
    """Factor on the epochs of all stages, to scale a recipe down."""
    bundled_sample: str | None = None
    """Convert the sample that ships with vidsim into this folder first, if it is not there yet."""
    exclude: list[str] = field(default_factory=list)
    """Files of video ids (.txt, one a line) or of pairs (.tsv) whose videos are never trained on. The published
    recipes exclude nothing: they pretrain on the videos of the validation pairs and, in job 5, of the tests."""
    tags: str | None = None
    """Tag vocabulary file, one tag a line; null: the most frequent tags of the training rows."""
    num_tags: int = 10_000
    """Size of the tag vocabulary (the competition's list has 10,000)."""
    min_tag_count: int = 2
    """A tag on fewer training rows is left out of a vocabulary that is built."""
    held_out_fraction: float = 0.02
    """Share of the rows, by a hash of their id, that is only evaluated on."""
    held_out_max_rows: int = 2_000
    """At most so many of them are evaluated on."""

    def validate(self) -> None:
        """Refuse empty stages, folders that are missing and impossible shares."""
        if not self.stages:
            raise UserError("no stage is given", field="data.stages", fix="name at least one data set folder")
        for number, stage in enumerate(self.stages):
            where = f"data.stages[{number}]"
            if not stage.data:
                raise UserError("no data set folder is given", field=f"{where}.data")
            if not stage.num_epochs > 0:
                raise UserError(f"{stage.num_epochs} is not above 0", field=f"{where}.num_epochs")
        if self.bundled_sample is None:
            if self.tags is not None and not Path(self.tags).is_file():
                fix = "`vidsim convert aiac` writes tags.txt; null takes the most frequent tags"
                raise UserError("no such file", file=self.tags, field="data.tags", fix=fix)
            for name in self.exclude:
                if not Path(name).is_file():
                    fix = "`vidsim split` writes holdout_ids.txt"
                    raise UserError("no such file", file=name, field="data.exclude", fix=fix)
        if not 0 <= self.held_out_fraction < 1:
            raise UserError(f"{self.held_out_fraction} is not within 0 and 1", field="data.held_out_fraction")
        if not self.epoch_scale > 0:
            raise UserError(f"{self.epoch_scale} is not above 0", field="data.epoch_scale")
        for name in ("num_tags", "min_tag_count", "held_out_max_rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{getattr(self, name)} is below 1", field=f"data.{name}")


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """Which objectives are trained; null leaves one out, together with its head."""

    vtc: VtcConfig | None = field(default_factory=VtcConfig)
    """Video tag classification."""
    mlm: MlmConfig | None = field(default_factory=MlmConfig)
    """Masked language modelling."""
    mfm: MfmConfig | None = field(default_factory=MfmConfig)
    """Masked frame modelling."""
    vtm: VtmConfig | None = None
    """Video-text matching."""
    contrastive: ContrastiveConfig | None = None
    """Video-text InfoNCE."""


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Labelled pairs whose Spearman is watched while pretraining, through the masked-mean hidden state.

    Untrained projections are not used: through one, the winner's pretraining Spearman fell from .60 to .48 while the
    finetuned score rose.
    """

    data: list[str]
    """Data set folders that hold the videos of the pairs."""
    pairs: str
    """File of pairs."""
    max_pairs: int = 5_000
    """The first so many pairs are used."""

    def validate(self) -> None:
        """Refuse too few pairs for a correlation."""
        if not self.data:
            raise UserError("no data set folder is given", field="probe.data")
        if self.max_pairs < 2:
            raise UserError(f"{self.max_pairs} is below 2", field="probe.max_pairs")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(SessionConfig):
    """A pretraining run."""

    data: DataConfig
    """Data sets."""
    output_dir: str = "runs/pretrain/base"
    """Run folder."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Where the tokenizer comes from; by default from `model.init_from`, else it is trained on the training rows."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder."""
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    """What it learns from."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """What is hidden from it."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its groups."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps of each stage."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """Weights of the objectives against each other."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length and cadence."""
    probe: ProbeConfig | None = None
    """Labelled pairs to watch."""

    def validate(self) -> None:
        """All checks that need no device.

        Raises:
            UserError: Names the field, its value and what to do.
        """
        for part in (self.data, self.tokenizer, self.model, self.masking, self.optimizer, self.schedule):
            part.validate()
        self.balance.validate()
        self.loop.validate()
        if self.probe is not None:
            self.probe.validate()
        self.validate_session()
        objectives = self.objectives
        active = {name: objective for name, objective in vars(objectives).items() if objective is not None}
        if not active:
            raise UserError("every objective is null", field="objectives", fix="train at least one")
        for name, objective in active.items():
            if not objective.weight > 0:
                raise UserError(
                    f"{objective.weight} is not above 0",
                    field=f"objectives.{name}.weight",
                    fix=f"set objectives.{name} to null to leave it out",
                )
        two_sided = objectives.vtm or objectives.contrastive
        if two_sided and not (self.model.use_text and self.model.use_frames):
            raise UserError("vtm and contrastive need text and frames", field="objectives")
        if objectives.mlm and not self.model.use_text:
            raise UserError("mlm needs text", field="objectives.mlm", fix="set objectives.mlm to null")
        if objectives.mfm and not self.model.use_frames:
            raise UserError("mfm needs frames", field="objectives.mfm", fix="set objectives.mfm to null")
