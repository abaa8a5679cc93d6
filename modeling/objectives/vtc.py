"""Video tag classification: predict the tags of a video from the whole sequence (arXiv 2111.01677 §2.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn
from torch.nn import functional

from ..config import VidsimConfig
from ..heads import TagHead
from ..losses.tags import sample_log_uniform, sampled_softmax, tag_bce
from .base import Encoder, WindowContext
from .inputs import Batch

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


_TAGS_PER_VIDEO = 5  # of the vocabulary, about; 4.76 in the competition


@dataclass(frozen=True, kw_only=True)
class VtcConfig:
    """How tags are predicted."""

    weight: float = 1250 / 3
    """Factor of the loss. First place: 1250 / 3 for `bce` (a mean over 10,000 tags, so small).
    `sampled_softmax` is a cross-entropy of a few nats: the third place weighed it alone, beside other
    objectives try about 1."""
    input: Literal["cls", "embedding"] = "cls"
    """What the head reads, after a relu: the state of [CLS] (first place, jobs 1, 4, 5, 6), or the embedding
    before its L2 normalisation (jobs 2, 3), which trains the projection already in pretraining."""
    loss: Literal["bce", "sampled_softmax"] = "bce"
    """`bce`: one yes/no per tag (first place). `sampled_softmax`: each tag against sampled others (third
    place, for a vocabulary of all tags: +.047 Spearman over the sigmoid in its ablation)."""
    num_negatives: int = 1000
    """Tags drawn per step for `sampled_softmax`, log-uniform; 0 = all tags, exact. Third place: 1000."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.num_negatives < 0:
            raise ValueError(f"vtc.num_negatives must be 0 or more, not {self.num_negatives}")


class VtcObjective(nn.Module):
    """Tag head and its loss.

    Items of the mean: videos with tags (`bce`), (video, tag) pairs (`sampled_softmax`). The head's parameters
    are the same for both losses: one vector and one bias per tag.

    Args:
        config: How tags are predicted.
        encoder_config: Of the encoder whose output is read.
        num_tags: Size of the tag vocabulary, most frequent tag first.
    """

    name = "vtc"
    needs_frame_candidates = False

    def __init__(self, config: VtcConfig, encoder_config: VidsimConfig, *, num_tags: int) -> None:
        """Build the head."""
        super().__init__()
        self.config = config
        width = encoder_config.hidden_size if config.input == "cls" else encoder_config.embedding_dim
        self.head = TagHead(width, num_tags)
        # Otherwise the first steps only push thousands of logits down, all through the same few directions of the
        # encoder, and a small one collapses to a constant (arXiv 1708.02002 §3.3 starts a rare class so, too).
        odds = max(num_tags / _TAGS_PER_VIDEO - 1, 1.0)
        nn.init.constant_(self.head.classifier.bias, -math.log(odds))

    def counts(self, batch: Batch) -> Tensor:
        """Items of the micro-batch: float scalar."""
        has_tags = batch["has_tags"].bool()
        if self.config.loss == "sampled_softmax":
            has_tags = has_tags[batch["tag_rows"]]
        return has_tags.sum().float()

    def forward(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Loss of the micro-batch, its share of the window's mean: float scalar."""
        x = output.cls_hidden if self.config.input == "cls" else output.projection
        tag_ids, tag_rows, has_tags = batch["tag_ids"], batch["tag_rows"], batch["has_tags"]
        denominator = window.denominators[self.name]
        if self.config.loss == "bce":
            return tag_bce(self.head(x), tag_ids, tag_rows, has_tags, denominator)
        classifier = self.head.classifier
        negatives = None
        if self.config.num_negatives:
            drawn = sample_log_uniform(
                self.config.num_negatives, classifier.out_features, window.generator(local=False)
            )
            negatives = drawn.to(x.device, non_blocking=True)
        return sampled_softmax(
            functional.relu(x),
            classifier.weight,
            classifier.bias,
            tag_ids,
            tag_rows,
            negatives,
            has_tags,
            denominator,
        )
