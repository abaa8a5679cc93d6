"""Everything a co-watch run can be told; read from YAML and the command line by jsonargparse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.engine.ema import EmaConfig
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.optimizer import OptimizerConfig
from vidsim.engine.schedule import ScheduleConfig
from vidsim.engine.session import SessionConfig
from vidsim.finetune.checks import check_epochs, refuse_encoder_settings, refuse_unread
from vidsim.finetune.tasks.cowatch import CowatchTaskConfig


@dataclass(frozen=True, kw_only=True)
class CowatchConfig(SessionConfig):
    """A co-watch run."""

    graph: str
    """Folder of the graph, from `vidsim cowatch`."""
    features: dict[str, str] = field(default_factory=dict)
    """Name of each stream and its features: a .npy array or embeddings; towers over them are trained."""
    videos: list[str] = field(default_factory=list)
    """Instead of features: data set folders; the encoder of `init_from` is trained on them from end to end."""
    init_from: str | None = None
    """Checkpoint folder, or a run folder whose best checkpoint is taken; with `videos`."""
    projection: Literal["keep", "principal"] = "keep"
    """How the encoder's projection starts, as in `vidsim finetune`; with `videos`."""
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
    """AdamW; of towers only `learning_rate` counts, they have no heads."""
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
        if bool(self.features) == bool(self.videos):
            what = "no stream is given" if not self.features else "features and videos exclude each other"
            raise UserError(what, field="features", fix="name streams, as {visual: features.npy}, or else data sets")
        if bool(self.videos) != (self.init_from is not None):
            raise UserError("videos and init_from go together", field="init_from", fix="set both or none")
        self._refuse_unread()
        check_epochs(self.num_epochs)
        require_at_least(vars(self), {"k": 1, "max_queries": 1})
        if self.ema is not None:
            self.ema.validate()
        if self.loop.micro_batch_tokens is not None:
            raise UserError("triplets have no tokens", field="loop.micro_batch_tokens", fix="set loop.micro_batch_size")

    def _refuse_unread(self) -> None:
        """Refuse what towers read and the encoder does not, or the other way round."""
        defaults = CowatchConfig(graph=self.graph)
        if self.videos:
            refuse_unread(self, defaults, ("ids",), "data sets")
            names = ("fusion", "hidden", "embedding_dim", "dropout")
            refuse_unread(self.task, defaults.task, names, "the encoder", "task.")
        else:
            refuse_unread(self, defaults, ("projection",), "towers")
            refuse_encoder_settings(self.loop, self.optimizer, "towers")
