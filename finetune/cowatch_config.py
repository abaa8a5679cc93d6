"""Everything a co-watch run can be told; read from YAML and the command line by jsonargparse."""

from __future__ import annotations

from dataclasses import dataclass, field

from vidsim.common.errors import UserError
from vidsim.engine.ema import EmaConfig
from vidsim.engine.loop import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.session import SessionConfig
from vidsim.finetune.tasks.cowatch import CowatchTaskConfig


@dataclass(frozen=True, kw_only=True)
class CowatchConfig(SessionConfig):
    """A co-watch run."""

    graph: str
    """Folder of the graph, from `vidsim cowatch`."""
    features: dict[str, str]
    """Name of each stream and its features: a .npy array or embeddings."""
    ids: str | None = None
    """Ids of the rows of .npy arrays, one on each line; null: row numbers."""
    output_dir: str = "runs/finetune/cowatch"
    """Run folder; the embeddings of all videos are written into its folder `embeddings`."""
    num_epochs: float = 10.0
    """Passes over the training edges."""
    task: CowatchTaskConfig = field(default_factory=CowatchTaskConfig)
    """Network, loss and mining."""
    k: int = 10
    """Cut-off of recall and NDCG."""
    max_queries: int = 5000
    """Queries of each direction that are evaluated, at most."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, head_learning_rate=1e-3)
    )
    """AdamW; only `learning_rate` counts, there are no heads."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning rate over the steps."""
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(micro_batch_size=7200, eval_batch_size=4096))
    """Length and cadence; published: 7,200 triplets, with fewer it was worse."""
    ema: EmaConfig | None = None
    """Moving average of the weights that is evaluated and saved; null: none."""

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
        if not self.num_epochs > 0:
            raise UserError(f"{self.num_epochs} is not above 0", field="num_epochs")
        for name, least in (("k", 1), ("max_queries", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{getattr(self, name)} is below {least}", field=name)
        if self.ema is not None:
            self.ema.validate()
        if self.loop.micro_batch_tokens is not None:
            raise UserError("triplets have no tokens", field="loop.micro_batch_tokens", fix="set loop.micro_batch_size")
