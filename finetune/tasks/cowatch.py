"""Task `cowatch`: videos that are watched one after another lie near each other.

Read top to bottom: settings, triplets to batches, the loss. Lee et al. 2018: triplets of the co-watch graph, towers
over precomputed features, negatives mined in a large batch.

Legend: N triplets in a micro-batch, U distinct videos in it, each embedded once; M exclusions; E width of the
embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidsim.common.errors import UserError
from vidsim.data.cowatch_features import FeatureStreams
from vidsim.data.cowatch_graph import CowatchGraph, Integers, Neighbours, triplets_of
from vidsim.data.samplers import RowKey
from vidsim.modeling.distributed import all_reduce_sum, gather_rows, gather_rows_with_gradient
from vidsim.modeling.losses.triplet import check_margin, triplet
from vidsim.modeling.mining import NONE, mine_negatives
from vidsim.modeling.towers import FusionTowers

ANCHOR, POSITIVE, VIDEOS = "anchor", "positive", "videos"  # int64 [N], [N], [U]
TRIPLET = "triplet"  # of a row: int64 [3]
Batch = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CowatchTaskConfig:
    """Network, loss and mining."""

    fusion: Literal["early", "late"] = "late"
    """`late`: a tower each stream, multiplied; `early`: one tower over all joined."""
    hidden: list[int] = field(default_factory=lambda: [4000])
    """Widths of the ReLU layers (published: 4000; deeper was no better)."""
    embedding_dim: int = 256
    """Width of the embedding; published: 512 gives little more, 128 much less."""
    dropout: float = 0.0
    """Of the last hidden layer."""
    loss: Literal["hinge", "log", "exponential"] = "hinge"
    """What is made of |a - p|² - |a - n|² + margin."""
    margin: float = 0.1
    """In squared distance, which is 2 - 2 cosine; published: the best of .1, .3 and .5."""
    mining: Literal["random", "semihard", "hardest"] = "semihard"
    """Which video of the global batch is an anchor's negative; `semihard`: the nearest that is farther than the
    positive, `hardest`: the nearest."""
    mask_neighbours: bool = True
    """Whether videos that are linked to the anchor are kept from being its negatives."""

    def validate(self) -> None:
        """Refuse what cannot be learned."""
        try:
            check_margin(self.loss, self.mining, self.margin)
        except ValueError as error:
            raise UserError(str(error), field="task.margin", fix="set .1, .3 or .5") from error
        if min([*self.hidden, self.embedding_dim]) < 1:
            raise UserError("every width must be at least 1", field="task.hidden")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.dropout} is not in [0, 1)", field="task.dropout")


class TripletRows(Dataset[dict[str, Any]]):
    """Triplets by (epoch, number of the training edge)."""

    def __init__(self, graph: CowatchGraph, seed: int) -> None:
        """Keep the training edges."""
        self.graph = graph
        self.edges = graph.training_edges()
        self.seed = seed
        self._epochs: dict[int, Integers] = {}

    def __len__(self) -> int:
        """Number of training edges."""
        return len(self.edges)

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        """`triplet`: anchor, positive and negative, int64 [3]."""
        epoch, number = key
        drawn = self._epochs.get(epoch)
        if drawn is None:
            drawn = triplets_of(self.graph, self.edges, epoch, self.seed)
            self._epochs = {epoch - 1: self._epochs[epoch - 1]} if epoch - 1 in self._epochs else {}
            self._epochs[epoch] = drawn
        return {TRIPLET: drawn[:, number]}


class TripletCollator:
    """Triplets to a batch: features of the distinct videos, and where the triplets' videos stand among them."""

    def __init__(self, features: FeatureStreams) -> None:
        """Keep the features."""
        self.features = features

    def __deepcopy__(self, memo: dict[int, Any]) -> TripletCollator:
        """Workers share the features."""
        return self

    def __call__(self, triplets: Sequence[dict[str, Any]]) -> Batch:
        """A float32 tensor [U, D_s] of each stream, `anchor`, `positive`, `videos`, and `row_ids` for messages."""
        videos, places = np.unique(np.stack([row[TRIPLET] for row in triplets]), return_inverse=True)
        places = places.reshape(-1, 3)
        batch: Batch = {name: torch.from_numpy(vectors) for name, vectors in self.features.take(videos).items()}
        batch[VIDEOS] = torch.from_numpy(videos)
        batch[ANCHOR] = torch.from_numpy(places[:, 0].copy())
        batch[POSITIVE] = torch.from_numpy(places[:, 1].copy())
        batch["row_ids"] = [self.features.ids[video] for video in videos[places[:, 0]].tolist()]
        return batch


class CowatchModule(nn.Module):
    """Towers under the triplet loss: a batch in, named losses out.

    Args:
        towers: The network.
        config: Loss and mining.
        neighbours: Of the training edges, in the numbering of the features.
    """

    def __init__(self, towers: FusionTowers, config: CowatchTaskConfig, neighbours: Neighbours) -> None:
        """Keep the parts."""
        super().__init__()
        self.towers = towers
        self.config = config
        self.neighbours = neighbours
        self.weights = {"triplet": 1.0}

    def windows(self, batches: Sequence[Batch], step: int) -> list[Tensor]:
        """Triplets in the global batch, for each micro-batch. Collective: call on every rank."""
        device = next(self.parameters()).device
        count = all_reduce_sum(torch.tensor(float(sum(len(batch[ANCHOR]) for batch in batches)), device=device))
        return [count] * len(batches)

    def embed(self, batch: Batch) -> Tensor:
        """Embeddings float32 [U, E]."""
        output: Tensor = self.towers(**{name: batch[name] for name in self.towers.config.streams})
        return output

    def forward(self, batch: Batch, window: Tensor) -> dict[str, Tensor]:
        """The loss of one micro-batch; negatives come from this micro-batch of all ranks.

        Summed over micro-batches and ranks it is the mean over the triplets of the global batch. A triplet whose
        anchor is linked to every video of the batch has no negative and counts as 0.
        """
        embedding = self.embed(batch)
        candidates, candidate_videos = gather_rows_with_gradient(embedding), gather_rows(batch[VIDEOS])
        anchor, positive = embedding[batch[ANCHOR]], embedding[batch[POSITIVE]]
        excluded = self.excluded(
            batch[VIDEOS][batch[ANCHOR]].cpu().numpy(),
            batch[VIDEOS][batch[POSITIVE]].cpu().numpy(),
            candidate_videos.cpu().numpy(),
        )
        negative = mine_negatives(
            anchor,
            positive,
            candidates,
            strategy=self.config.mining,
            excluded=tuple(torch.from_numpy(part).to(anchor.device) for part in excluded),  # type: ignore[arg-type]
        )
        loss = triplet(
            anchor,
            positive,
            candidates[negative.clamp(min=0)],
            margin=self.config.margin,
            form=self.config.loss,
            valid=negative != NONE,
            denominator=window,
        )
        return {"triplet": loss}

    def excluded(self, anchors: Integers, positives: Integers, candidates: Integers) -> tuple[Integers, Integers]:
        """What is no negative of what: the anchor itself, its positive and, where wanted, its neighbours.

        Args:
            anchors: int64 [N], videos.
            positives: int64 [N].
            candidates: int64 [C].

        Returns:
            Two int64 [M], positions of anchors (ascending) and of candidates.
        """
        own = Neighbours(
            2 * np.arange(len(anchors) + 1), np.stack([anchors, positives], axis=1).reshape(-1), np.empty(0, np.int64)
        )
        rows, columns = own.pairs_within(np.arange(len(anchors)), candidates)
        if not self.config.mask_neighbours:
            return rows, columns
        more_rows, more_columns = self.neighbours.pairs_within(anchors, candidates)
        rows, columns = np.concatenate([rows, more_rows]), np.concatenate([columns, more_columns])
        order = np.argsort(rows, kind="stable")
        return rows[order], columns[order]
