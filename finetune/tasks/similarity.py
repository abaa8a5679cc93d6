"""Task `similarity`: the cosine of two videos follows people's judgement.

Read top to bottom: settings, pairs to batches, the loss, the evaluation. The published baseline is MSE between cosine
and rank-normalised label (arXiv 2111.01677 §2.3).

Legend: N pairs in a micro-batch; a batch holds 2N videos, first all left ones, then all right ones. E width of the
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidsim.common.checks import require_at_least
from vidsim.common.errors import UserError
from vidsim.data.arrow import Videos
from vidsim.data.collators import Batch, PretrainCollator, Processor, encode_rows, to_device
from vidsim.data.pairs import Pairs
from vidsim.data.samplers import RowKey
from vidsim.data.tags import TagVocabulary
from vidsim.engine.gather import map_rows
from vidsim.modeling.distributed import all_reduce_sum, gather_rows, gather_rows_with_gradient, world_size
from vidsim.modeling.encoder import VideoTextEncoder, VidsimOutput
from vidsim.modeling.labels import fit_label_transform, self_distilled_labels
from vidsim.modeling.losses import pairs as losses
from vidsim.modeling.metrics import mse, spearman
from vidsim.modeling.objectives.base import WindowContext, build_window
from vidsim.modeling.objectives.vtc import VtcConfig, VtcObjective

LABEL = "labels"  # float32 [N], transformed


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Loss and label of the pair task."""

    loss: Literal["mse", "lbpc", "cosent"] = "mse"
    """`mse` of cosine and label; `lbpc`: minus Pearson of softmax(cosine / T), +.003 on test with raw labels over
    `mse` with ranks; `cosent`: ranking within the batch."""
    label: Literal["raw", "rank", "quantile"] = "rank"
    """`rank`: average ranks scaled to 0..1 (+.006 on test); `quantile`: 100 quantiles (third place, +.001)."""
    temperature: float = 0.2
    """T of `lbpc`."""
    scale: float = 20.0
    """Of `cosent`."""
    tag_weight: float = 0.0
    """Weight of video tag classification beside the pair loss; needs `data.tags`."""
    kl_weight: float = 0.0
    """Weight of the Bernoulli KL between cosine and label (fourth place: .5, against overfitting)."""
    r_drop_weight: float = 0.0
    """Weight of the agreement between two passes with different dropout; doubles the cost of a step."""
    num_dropout_samples: int = 1
    """Dropout masks on the pooled state whose embeddings are averaged while training (third place: 5, +.006)."""
    dropout_sample_rate: float = 0.1
    """Rate of these masks."""
    distill_weight: float = 0.0
    """Share of `data.teacher`'s cosine in the label (sixth place: .3 of its own first model's)."""

    def validate(self) -> None:
        """Refuse values outside their range."""
        for name in ("tag_weight", "kl_weight", "r_drop_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{getattr(self, name)} is below 0", field=f"task.{name}")
        for name in ("temperature", "scale"):
            if getattr(self, name) <= 0:
                raise UserError(f"{getattr(self, name)} is not above 0", field=f"task.{name}")
        if not 0 <= self.distill_weight <= 1:
            raise UserError(f"{self.distill_weight} is not within 0 and 1", field="task.distill_weight")
        if not 0 <= self.dropout_sample_rate < 1:
            raise UserError(f"{self.dropout_sample_rate} is not in [0, 1)", field="task.dropout_sample_rate")
        require_at_least(vars(self), {"num_dropout_samples": 1}, "task.")


class PairRows(Dataset[dict[str, Any]]):
    """Pairs by (epoch, pair number): both video rows and the transformed label."""

    def __init__(self, videos: Videos, pairs: Pairs, labels: np.ndarray) -> None:
        """Look up the rows of all ids once; missing videos are named here."""
        self.videos = videos
        self.rows = videos.rows_of([*pairs.id1, *pairs.id2]).reshape(2, -1)
        self.labels = labels

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        """`left`, `right`: video rows; `label`: float."""
        _, number = key
        left, right = self.rows[:, number]
        return {"left": self.videos[int(left)], "right": self.videos[int(right)], "label": self.labels[number]}

    def __len__(self) -> int:
        """Number of pairs."""
        return self.rows.shape[1]


class PairCollator:
    """Pairs to a batch of 2N videos with `labels` float32 [N], and the tag keys where a vocabulary is given."""

    def __init__(self, processor: Processor, tags: TagVocabulary | None = None) -> None:
        """Keep the processor of the checkpoint."""
        self.processor = processor
        self.tags = tags

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """Encode left videos, then right ones."""
        rows = [pair["left"] for pair in pairs] + [pair["right"] for pair in pairs]
        batch = encode_rows(rows, self.processor)
        batch[LABEL] = torch.tensor([pair["label"] for pair in pairs], dtype=torch.float32)
        if self.tags is not None:
            PretrainCollator.add_tags(batch, rows, self.tags)
        return batch


@dataclass(frozen=True)
class PairWindow:
    """What the micro-batches of a step know of each other."""

    num_pairs: Tensor  # of the global batch
    num_parts: int  # micro-batches x ranks
    tags: WindowContext | None


class SimilarityModule(nn.Module):
    """The encoder under the pair loss: a batch in, named losses out.

    Args:
        encoder: From a checkpoint.
        config: Loss and extras.
        num_tags: Size of the tag vocabulary, where tags are learned too.
        seed: Seed of the run.
    """

    def __init__(self, encoder: VideoTextEncoder, config: SimilarityConfig, *, num_tags: int, seed: int) -> None:
        """Build the tag head where it is wanted."""
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.seed = seed
        self.weights = {"pair": 1.0}
        self.tags: VtcObjective | None = None
        if config.tag_weight > 0:
            self.tags = VtcObjective(VtcConfig(), encoder.config, num_tags=num_tags)
            self.weights["vtc"] = config.tag_weight
        if config.kl_weight > 0:
            self.weights["kl"] = config.kl_weight
        if config.r_drop_weight > 0:
            self.weights["r_drop"] = config.r_drop_weight

    def windows(self, batches: Sequence[Batch], step: int) -> list[PairWindow]:
        """Counts of the global batch, for each micro-batch. Collective: call on every rank."""
        device = next(self.parameters()).device
        count = torch.tensor(float(sum(len(batch[LABEL]) for batch in batches)), device=device)
        num_pairs, num_parts = all_reduce_sum(count), len(batches) * world_size()
        tags = None
        if self.tags is not None:
            tags = build_window(batches, [self.tags], step=step, seed=self.seed, device=device)
        return [
            PairWindow(num_pairs, num_parts, tags.for_micro_batch(index) if tags else None)
            for index in range(len(batches))
        ]

    def encode(self, batch: Batch) -> VidsimOutput:
        """Encode what is in a batch."""
        output: VidsimOutput = self.encoder(**self.encoder.inputs_of(batch))
        return output

    def embed(self, output: VidsimOutput) -> Tensor:
        """Embeddings float [2N, E], L2-normalised; while training the mean over several dropout masks."""
        config = self.config
        if not self.training or config.num_dropout_samples == 1:
            return output.embedding
        samples = [
            self.encoder.embedding_head(nn.functional.dropout(output.pooled, config.dropout_sample_rate))[0]
            for _ in range(config.num_dropout_samples)
        ]
        return nn.functional.normalize(torch.stack(samples).mean(0), dim=-1)

    def forward(self, batch: Batch, window: PairWindow) -> dict[str, Tensor]:
        """Losses of one micro-batch; summed over micro-batches and ranks they are those of the global batch."""
        # Not `self.encode`: what gathers a sharded module (engine/sharding.py) is around that, and around this already.
        output = SimilarityModule.encode(self, batch)
        embedding = self.embed(output)
        labels = batch[LABEL]
        cosines = pair_cosines(embedding)
        result = {"pair": self.pair_loss(cosines, labels, window)}
        if self.config.kl_weight > 0:
            result["kl"] = losses.bernoulli_kl(cosines, labels, window.num_pairs)
        if self.config.r_drop_weight > 0:
            again = self.embed(SimilarityModule.encode(self, batch))
            result["r_drop"] = losses.r_drop_embeddings(embedding, again, 2 * window.num_pairs)
            result["pair"] = (result["pair"] + self.pair_loss(pair_cosines(again), labels, window)) / 2
        if self.tags is not None and window.tags is not None:
            result["vtc"] = self.tags(output, batch, window.tags, self.encoder)
        return result

    def pair_loss(self, cosines: Tensor, labels: Tensor, window: PairWindow) -> Tensor:
        """This micro-batch's part of the pair loss.

        `lbpc` and `cosent` compare pairs with each other: they see the pairs of all ranks, but only of one
        micro-batch, so they depend on the accumulation.
        """
        if self.config.loss == "mse":
            return losses.mse(cosines, labels, window.num_pairs)
        all_cosines, all_labels = gather_rows_with_gradient(cosines), gather_rows(labels)
        if self.config.loss == "lbpc":
            return losses.lbpc(all_cosines, all_labels, self.config.temperature) / window.num_parts
        return losses.cosent(all_cosines, all_labels, self.config.scale) / window.num_parts


def pair_cosines(embedding: Tensor) -> Tensor:
    """Cosine of left and right, float32 [N], from normalised embeddings [2N, E]."""
    left, right = embedding.float().chunk(2)
    return (left * right).sum(-1)


def embed_videos(
    module: SimilarityModule,
    videos: Videos,
    rows: np.ndarray,
    processor: Processor,
    *,
    batch_size: int,
    accelerator: Accelerator,
) -> np.ndarray:
    """Embeddings float32 [len(rows), E]. Collective: call on every rank."""

    def encode(positions: np.ndarray) -> Tensor:
        batch = encode_rows([videos[int(row)] for row in rows[positions]], processor)
        return module.encode(to_device(batch, accelerator.device)).embedding

    width = module.encoder.config.embedding_dim
    return map_rows(encode, len(rows), width, batch_size=batch_size, accelerator=accelerator)


def evaluate_pairs(
    module: SimilarityModule,
    videos: Videos,
    pairs: Pairs,
    labels: np.ndarray,
    processor: Processor,
    *,
    batch_size: int,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Spearman with the labels as given, MSE with the transformed ones. Collective: call on every rank.

    Each video is embedded once, however many pairs it is in.
    """
    ids, positions = np.unique(np.array([*pairs.id1, *pairs.id2], dtype=object), return_inverse=True)
    rows = videos.rows_of(ids.tolist())
    vectors = embed_videos(module, videos, rows, processor, batch_size=batch_size, accelerator=accelerator)
    left, right = vectors[positions.reshape(2, -1)]
    cosines = (left * right).sum(1)
    return {
        "validation/spearman": spearman(cosines, pairs.score),
        "validation/mse": mse(cosines, labels),
    }


def pair_labels(
    config: SimilarityConfig, train: Pairs, other: Pairs, teacher: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the training pairs and of other pairs, transformed by what the training pairs' labels say.

    Args:
        config: Which transform.
        train: Pairs the transform is fitted on.
        other: Pairs it is only applied to.
        teacher: float [N], a teacher's cosines of the training pairs, mixed in by `distill_weight`.

    Returns:
        Two float64 arrays, within 0 and 1; raw labels in the range of the scores.
    """
    transform = fit_label_transform(config.label, train.score)
    labels = transform(train.score)
    if teacher is not None:
        labels = self_distilled_labels(labels, teacher, 1.0 - config.distill_weight)
    return labels, transform(other.score)
