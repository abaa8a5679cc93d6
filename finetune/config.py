"""Everything a finetuning run can be told; read from YAML and the command line by jsonargparse."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.engine.adversarial import FgmConfig
from vidsim.engine.ema import EmaConfig
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.session import SessionConfig
from vidsim.finetune.checks import check_epochs
from vidsim.finetune.tasks.similarity import SimilarityConfig


@dataclass(frozen=True, kw_only=True)
class PairDataConfig:
    """Videos, labelled pairs and how they are split."""

    videos: list[str]
    """Data set folders that hold the videos of all pairs."""
    pairs: str
    """File of labelled pairs: id1, id2, score."""
    validation: str | None = None
    """File of validation pairs; null: `pairs` is split by `split`."""
    split: Literal["video_disjoint", "pair_or", "random", "none"] = "video_disjoint"
    """`video_disjoint`: no video of a validation pair is trained on. `pair_or`: the winner's rule (both ids % folds =
    fold), which lets validation videos leak: its validation-test gap is .050, the strict split's .008. `random`: by
    pair. `none`: all pairs train (a final fit with settings already chosen); the last step is taken."""
    fold: int = 0
    """Which fold validates."""
    num_folds: int = 5
    """Number of folds."""
    seed: int = 0
    """Of the split."""
    score_range: list[float] = field(default_factory=lambda: [0.0, 1.0])
    """Lowest and highest score that is allowed."""
    tags: str | None = None
    """Tag vocabulary, where `task.tag_weight` is above 0."""
    teacher: str | None = None
    """Embeddings whose cosines are mixed into the labels, where `task.distill_weight` is above 0."""
    bundled_sample: str | None = None
    """Convert the sample that ships with vidsim into this folder first, if it is not there yet."""

    def validate(self) -> None:
        """Refuse folds and ranges that cannot be."""
        require_at_least(vars(self), {"num_folds": 2, "seed": 0}, "data.")
        if not 0 <= self.fold < self.num_folds:
            raise UserError(f"{self.fold} is not within 0 and {self.num_folds - 1}", field="data.fold")
        if len(self.score_range) != 2 or self.score_range[0] >= self.score_range[1]:
            raise UserError(f"{self.score_range} is not [lowest, highest]", field="data.score_range")
        if not self.videos:
            raise UserError("no data set folder is given", field="data.videos")
        if self.split == "none" and self.validation is not None:
            raise UserError("'none' and a validation file exclude each other", field="data.split")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SessionConfig):
    """A finetuning run."""

    init_from: str
    """Checkpoint folder, or a run folder whose best checkpoint is taken."""
    data: PairDataConfig
    """Videos and pairs."""
    output_dir: str = "runs/finetune/similarity"
    """Run folder."""
    num_epochs: float = 10.0
    """Passes over the training pairs (the winner: 10; 98 % of the final score stands after one)."""
    task: SimilarityConfig = field(default_factory=SimilarityConfig)
    """Loss and label."""
    pooling: Literal["mean", "first", "attention", "mean_unmasked", "attention_unmasked"] | None = None
    """Another pooling than the checkpoint's; `attention` then starts untrained."""
    projection: Literal["keep", "random", "principal", "whitened"] = "keep"
    """How the projection to the embedding starts. `keep`: the checkpoint's, which pretraining leaves untrained unless
    `objectives.vtc.input` is `embedding`. `principal`: the principal directions of the training videos' pooled states,
    so that the first cosines are the encoder's own, seen from the mean. `whitened`: these, each divided by the root of
    its standard deviation, for encoders that only know MLM. `random`: anew, as most published jobs do in effect."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-5, head_learning_rate=5e-5)
    )
    """AdamW and its groups."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    loop: LoopConfig = field(default_factory=LoopConfig)
    """Length and cadence."""
    ema: EmaConfig | None = None
    """Moving average of the weights that is evaluated and saved (WeChat 2022: +1.0 F1 point); null: none."""
    fgm: FgmConfig | None = None
    """A second pass on adversarial word embeddings (WeChat 2022: +.5 to +.7 F1 points); doubles the cost of a step."""

    def validate(self) -> None:
        """All checks that need no device.

        Raises:
            UserError: Names the field, its value and what to do.
        """
        for part in (self.data, self.task, self.optimizer, self.schedule, self.loop):
            part.validate()
        self.validate_session()
        if self.loop.micro_batch_tokens is not None:
            raise UserError("pairs are counted by rows", field="loop.micro_batch_tokens", fix="set null")
        check_epochs(self.num_epochs)
        for extra in (self.ema, self.fgm):
            if extra is not None:
                extra.validate()
        if (self.task.tag_weight > 0) != (self.data.tags is not None):
            raise UserError(
                "data.tags and task.tag_weight go together", field="task.tag_weight", fix="set both or none"
            )
        if (self.task.distill_weight > 0) != (self.data.teacher is not None):
            raise UserError(
                "data.teacher and task.distill_weight go together", field="task.distill_weight", fix="set both or none"
            )
        if self.task.label == "raw":
            self._check_raw_labels()
        if not Path(self.init_from).is_dir():
            raise UserError("no such folder", file=self.init_from, field="init_from", fix="pretrain first")

    def _check_raw_labels(self) -> None:
        """Refuse to compare or mix raw labels with what lies in another range."""
        low, high = self.data.score_range
        labels = f"raw labels from {low:g} to {high:g}"
        outside = low < 0 or high > 1
        fix = "set task.label to rank or quantile"
        if self.task.kl_weight > 0 and outside:
            what = f"with {labels} there is no KL divergence: they are no probabilities"
            raise UserError(what, field="task.kl_weight", fix=fix)
        if self.task.distill_weight > 0 and outside:
            what = f"{labels} cannot be mixed with a teacher's cosines from 0 to 1"
            raise UserError(what, field="task.distill_weight", fix=fix)
        if self.task.loss == "mse" and (low < -1 or high > 1):
            raise UserError(f"a cosine never reaches {labels}", field="task.loss", fix=f"{fix}, or take another loss")
