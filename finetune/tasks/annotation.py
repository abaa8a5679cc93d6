"""Task `annotation`: which tags does a video carry?

Read top to bottom: settings, videos to batches, the loss. Lee et al. 2018 §4.4: block PCA over precomputed features,
a mixture of logistic experts for each tag, cross-entropy of every tag of every video.

Legend: B videos in a micro-batch, P (video, tag) pairs in it, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidsim.common.checks import require_at_least
from vidsim.data.annotation import Annotation
from vidsim.data.feature_streams import FeatureStreams
from vidsim.data.samplers import RowKey
from vidsim.data.schema import ROW_IDS, TAG_IDS, TAG_ROWS
from vidsim.modeling.distributed import all_reduce_sum
from vidsim.modeling.losses.tags import tag_bce
from vidsim.modeling.mixture_of_experts import Tagger

VIDEO = "video"  # of a row: its number
Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AnnotationTaskConfig:
    """The model."""

    model: Literal["mixture", "logistic"] = "mixture"
    """A mixture of logistic experts for each tag, or one logistic regression for each (the baseline)."""
    num_experts: int = 5
    """Experts a tag, besides the state in which the tag is not there (published: 5, 10, 30, 100)."""
    num_directions: int = 256
    """Principal directions that are kept of each stream."""

    def validate(self) -> None:
        """Refuse counts below 1."""
        require_at_least(vars(self), {"num_experts": 1, "num_directions": 1}, "task.")


class TrainingRows(Dataset[dict[str, Any]]):
    """Training videos by (epoch, position among them)."""

    def __init__(self, annotation: Annotation) -> None:
        """Keep the videos."""
        self.videos = annotation.train

    def __len__(self) -> int:
        """Number of training videos."""
        return len(self.videos)

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        """`video`: its number."""
        return {VIDEO: self.videos[key[1]]}


class AnnotationCollator:
    """Videos to a batch: their features and their tags, ragged."""

    def __init__(self, features: FeatureStreams, annotation: Annotation) -> None:
        """Keep both."""
        self.features = features
        self.annotation = annotation

    def __deepcopy__(self, memo: dict[int, Any]) -> AnnotationCollator:
        """Workers share the features."""
        return self

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        """A float32 tensor [B, D_s] of each stream, `tag_ids` and `tag_rows` int64 [P], `row_ids` for messages."""
        videos = torch.tensor([int(row[VIDEO]) for row in rows]).numpy()
        batch: Batch = {name: torch.from_numpy(vectors) for name, vectors in self.features.take(videos).items()}
        tag_rows, tag_ids = self.annotation.pairs(videos)
        batch[TAG_IDS], batch[TAG_ROWS] = torch.from_numpy(tag_ids), torch.from_numpy(tag_rows)
        batch[ROW_IDS] = [self.features.ids[video] for video in videos.tolist()]
        return batch


class AnnotationModule(nn.Module):
    """The tagger under the cross-entropy of its tags: a batch in, named losses out."""

    def __init__(self, tagger: Tagger) -> None:
        """Keep the network."""
        super().__init__()
        self.tagger = tagger
        # The loss is a mean over videos and tags; what is minimised is the sum over the tags of a video.
        self.weights = {"tags": float(tagger.config.num_tags)}

    def windows(self, batches: Sequence[Batch], step: int) -> list[Tensor]:
        """Videos in the global batch, for each micro-batch. Collective: call on every rank."""
        device = next(self.parameters()).device
        count = all_reduce_sum(torch.tensor(float(sum(len(batch[ROW_IDS]) for batch in batches)), device=device))
        return [count] * len(batches)

    def forward(self, batch: Batch, window: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of one micro-batch; summed over micro-batches and ranks, the mean of the global batch."""
        logits = self.tagger(**{name: batch[name] for name in self.tagger.config.streams})
        return {"tags": tag_bce(logits, batch[TAG_IDS], batch[TAG_ROWS], denominator=window)}
