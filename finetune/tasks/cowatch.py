"""Task `cowatch`: videos that are watched one after another lie near each other.

Read top to bottom: settings, triplets to batches, the loss. Lee et al. 2018: triplets of the co-watch graph, towers
over precomputed features, negatives mined in a large batch. The cross-modal encoder may stand in for the towers.

Legend: N triplets in a micro-batch, U distinct videos in it, each embedded once; M exclusions; E width of the
embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vidsim.common.errors import UserError
from vidsim.data.collators import Batch
from vidsim.data.cowatch_graph import CowatchGraph, Integers, Neighbours, triplets_of
from vidsim.data.samplers import RowKey
from vidsim.modeling.distributed import all_reduce_sum, gather_rows, gather_rows_with_gradient, world_size
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.losses.pairs import cosent
from vidsim.modeling.losses.triplet import CowatchLoss, Mining, check_margin, contrastive, triplet
from vidsim.modeling.mining import NONE, mine_negatives
from vidsim.modeling.towers import FusionTowers

ANCHOR, POSITIVE, VIDEOS = "anchor", "positive", "videos"  # int64 [N], [N], [U]
TRIPLET = "triplet"  # of a row: int64 [3]
Network = FusionTowers | VideoTextEncoder


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
    loss: CowatchLoss = "hinge"
    """`hinge`, `log`, `exponential`: what is made of |a - p|² - |a - n|² + margin; `cosent`: every positive nearer than
    every mined negative; `contrastive`: the positive chosen among all videos of the batch, nothing is mined."""
    margin: float = 0.1
    """In squared distance, which is 2 - 2 cosine; published: the best of .1, .3 and .5."""
    temperature: float = 0.1
    """Of `contrastive`; `cosent` scales cosines by its inverse."""
    mining: Mining = "semihard"
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
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"{self.temperature} is not above 0", field="task.temperature")
        if min([*self.hidden, self.embedding_dim]) < 1:
            raise UserError("every width must be at least 1", field="task.hidden")
        if not 0 <= self.dropout < 1:
            raise UserError(f"{self.dropout} is not in [0, 1)", field="task.dropout")


class CowatchWindow(NamedTuple):
    """What a micro-batch must know of its step."""

    num_triplets: Tensor
    """Triplets in the global batch."""
    num_parts: int
    """Micro-batches in it, of all ranks."""


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
    """Triplets to a batch: the distinct videos, and where the triplets' videos stand among them."""

    def __init__(self, collate: Callable[[Integers], Batch], ids: Sequence[str]) -> None:
        """Keep what makes a batch of videos, and their ids."""
        self.collate = collate
        self.ids = ids

    def __deepcopy__(self, memo: dict[int, Any]) -> TripletCollator:
        """Workers share the features."""
        return self

    def __call__(self, triplets: Sequence[dict[str, Any]]) -> Batch:
        """What the network reads of U videos, `anchor`, `positive`, `videos`, and `row_ids` of anchors for messages."""
        videos, places = np.unique(np.stack([row[TRIPLET] for row in triplets]), return_inverse=True)
        places = places.reshape(-1, 3)
        batch = self.collate(videos)
        batch[VIDEOS] = torch.from_numpy(videos)
        batch[ANCHOR] = torch.from_numpy(places[:, 0].copy())
        batch[POSITIVE] = torch.from_numpy(places[:, 1].copy())
        batch["row_ids"] = [self.ids[video] for video in videos[places[:, 0]].tolist()]
        return batch


def embed(network: Network, batch: Batch) -> Tensor:
    """Embeddings of the videos of a batch, float32 [U, E], L2-normalised."""
    if isinstance(network, FusionTowers):
        embedding: Tensor = network(**{name: batch[name] for name in network.config.streams})
    else:
        embedding = network(**network.inputs_of(batch)).embedding
    return embedding


class CowatchModule(nn.Module):
    """A network under the triplet loss: a batch in, named losses out.

    Args:
        encoder: The network.
        config: Loss and mining.
        neighbours: Of the training edges, in the numbering of the features.
    """

    def __init__(self, encoder: Network, config: CowatchTaskConfig, neighbours: Neighbours) -> None:
        """Keep the parts."""
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.neighbours = neighbours
        self.weights = {"triplet": 1.0}

    def windows(self, batches: Sequence[Batch], step: int) -> list[CowatchWindow]:
        """Counts of the global batch, for each micro-batch. Collective: call on every rank."""
        device = next(self.parameters()).device
        count = all_reduce_sum(torch.tensor(float(sum(len(batch[ANCHOR]) for batch in batches)), device=device))
        return [CowatchWindow(count, len(batches) * world_size())] * len(batches)

    def forward(self, batch: Batch, window: CowatchWindow) -> dict[str, Tensor]:
        """The loss of one micro-batch; negatives come from this micro-batch of all ranks.

        Summed over micro-batches and ranks it is the mean over the triplets of the global batch. A triplet whose
        anchor is linked to every video of the batch has no negative and counts as 0.
        """
        embedding = embed(self.encoder, batch).float()
        candidates, videos = gather_rows_with_gradient(embedding), gather_rows(batch[VIDEOS]).cpu().numpy()
        if world_size() > 1:  # a video may be on several ranks
            videos, first = np.unique(videos, return_index=True)
            candidates = candidates[torch.from_numpy(first).to(candidates.device)]
        anchor, positive = embedding[batch[ANCHOR]], embedding[batch[POSITIVE]]
        own, other = (batch[VIDEOS][batch[name]].cpu().numpy() for name in (ANCHOR, POSITIVE))
        rows, columns = (torch.from_numpy(part).to(anchor.device) for part in self.excluded(own, other, videos))
        return {"triplet": self.loss(anchor, positive, candidates, (rows, columns), window)}

    def loss(
        self,
        anchor: Tensor,
        positive: Tensor,
        candidates: Tensor,
        excluded: tuple[Tensor, Tensor],
        window: CowatchWindow,
    ) -> Tensor:
        """This micro-batch's part of the loss.

        `cosent` compares triplets with each other: it sees those of all ranks, but only of one micro-batch, so it
        depends on the accumulation.
        """
        config = self.config
        if config.loss == "contrastive":
            return contrastive(
                anchor,
                positive,
                candidates,
                excluded=excluded,
                temperature=config.temperature,
                denominator=window.num_triplets,
            )
        found = mine_negatives(anchor, positive, candidates, strategy=config.mining, excluded=excluded)
        valid, negative = found != NONE, candidates[found.clamp(min=0)]
        if config.loss == "cosent":
            near, far = ((anchor * other).sum(-1)[valid] for other in (positive, negative))
            cosines = gather_rows_with_gradient(torch.cat([near, far]))
            labels = gather_rows(torch.cat([torch.ones_like(near), torch.zeros_like(far)]))
            return cosent(cosines, labels, 1 / config.temperature) / window.num_parts
        return triplet(
            anchor,
            positive,
            negative,
            margin=config.margin,
            form=config.loss,
            valid=valid,
            denominator=window.num_triplets,
        )

    def excluded(self, anchors: Integers, positives: Integers, candidates: Integers) -> tuple[Integers, Integers]:
        """What is no negative of what: the anchor itself, its positive and, where wanted, its neighbours.

        Args:
            anchors: int64 [N], videos.
            positives: int64 [N].
            candidates: int64 [C].

        Returns:
            Two int64 [M], positions of anchors (ascending) and of candidates.
        """
        own = Neighbours(2 * np.arange(len(anchors) + 1), np.stack([anchors, positives], axis=1).reshape(-1))
        rows, columns = own.pairs_within(np.arange(len(anchors)), candidates)
        if not self.config.mask_neighbours:
            return rows, columns
        more_rows, more_columns = self.neighbours.pairs_within(anchors, candidates)
        rows, columns = np.concatenate([rows, more_rows]), np.concatenate([columns, more_columns])
        order = np.argsort(rows, kind="stable")
        return rows[order], columns[order]
