"""Everything an annotation run can be told; read from YAML and the command line by jsonargparse."""

from __future__ import annotations

from dataclasses import dataclass, field

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.session import SessionConfig
from vidsim.finetune.checks import check_epochs, refuse_encoder_settings
from vidsim.finetune.tasks.annotation import AnnotationTaskConfig


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig(SessionConfig):
    """An annotation run."""

    tags: str
    """Tags of the videos: a data set folder, or a table (JSONL, CSV, TSV, Parquet)."""
    features: dict[str, str]
    """Name of each stream and its features: a .npy array [videos, width] or [videos, frames, width], or embeddings."""
    ids: str | None = None
    """Ids of the rows of .npy arrays, one on each line; null: row numbers."""
    id_column: str = "id"
    """Column of a table that holds the id."""
    tag_columns: list[str] = field(default_factory=lambda: ["tags"])
    """Columns of a table that hold tags, as lists or as separated text."""
    tag_separator: str = ","
    """Stands between tags in text."""
    min_count: int = 5
    """A tag on fewer training videos is not learned."""
    max_tags: int | None = None
    """At most so many tags, the most frequent; null: no limit."""
    test_fraction: float = 0.3
    """Share of the videos, by a hash of their id, that is only reported on."""
    test_ids: str | None = None
    """Ids to report on instead, one on each line."""
    validation_fraction: float = 0.1
    """Share of the videos, by the same hash, that chooses the checkpoint."""
    split_seed: int = 0
    """Of the hash; with the shares of a co-watch graph and its seed, the parts are the same."""
    output_dir: str = "runs/finetune/annotation"
    """Run folder."""
    num_epochs: float = 60.0
    """Passes over the training videos."""
    task: AnnotationTaskConfig = field(default_factory=AnnotationTaskConfig)
    """The model."""
    k: int = 20
    """Tags of a video that are judged."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, head_learning_rate=8e-3)
    )
    """AdamW; `learning_rate` is that of the directions, 0 keeps the principal ones; `head_learning_rate` that of the
    experts (published: Adam, .008, then both in turn by RPROP over the full batch)."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(micro_batch_size=512, eval_batch_size=512, eval_every_steps=50)
    )
    """Length and cadence; published: batches of 512."""

    def validate(self) -> None:
        """All checks that need no file.

        Raises:
            UserError: Names the field, its value and what to do.
        """
        for part in (self.task, self.optimizer, self.schedule, self.loop):
            part.validate()
        self.validate_session()
        if not self.features:
            raise UserError("no stream is given", field="features", fix="name at least one, as {visual: features.npy}")
        if not self.tag_columns or not self.tag_separator:
            raise UserError("must not be empty", field="tag_separator" if self.tag_columns else "tag_columns")
        check_epochs(self.num_epochs)
        refuse_encoder_settings(self.loop, self.optimizer, "a tagger")
        require_at_least(vars(self), {"k": 1, "min_count": 1, "max_tags": 1, "split_seed": 0})
        if self.split_seed >= 2**32:
            raise UserError(f"{self.split_seed} is not below 2^32", field="split_seed")
        if not 0 <= self.test_fraction < 1:
            raise UserError(f"{self.test_fraction} is not within 0 and 1", field="test_fraction")
        held_out = self.validation_fraction + (0 if self.test_ids else self.test_fraction)
        if not (self.validation_fraction > 0 and held_out < 1):
            what = f"{self.validation_fraction} is not above 0, or leaves no video to train on"
            raise UserError(what, field="validation_fraction")
        if self.loop.micro_batch_tokens is not None:
            raise UserError("features have no tokens", field="loop.micro_batch_tokens", fix="set loop.micro_batch_size")
