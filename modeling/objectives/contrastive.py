"""Video-text contrast: the frames and the text of one item, each alone, shall be alike (arXiv 2103.00020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import FRAMES, VidsimConfig, stream_keys
from ..distributed import gather_rows, gather_rows_with_gradient, rank
from ..losses.reduction import full_precision
from ..losses.video_text import info_nce
from .base import Encoder, WindowContext
from .inputs import Batch, clean_frames, clean_ids, rows_with_both, stream_inputs

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """How videos and texts are contrasted."""

    weight: float = 1.0
    """Factor of the loss. Fourth place: 10, beside a tag loss that it summed, so not comparable."""
    temperature: float = 0.07
    """Divides the cosines; fourth place: .07."""
    projection_dim: int = 256
    """Width in which they are compared."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.temperature <= 0:
            raise ValueError(f"contrastive.temperature must be above 0, not {self.temperature}")


class ContrastiveObjective(nn.Module):
    """InfoNCE between masked means of two passes, each of which sees one modality, before masking.

    Cost: two extra passes of the encoder, one over the text (T positions), one over the streams (F + 1 or 2
    positions), so about one more joint pass. The joint output cannot be used: there each side has seen the
    other. Items of the mean: rows with frames and text. Negatives are the rows of the same micro-batch on all
    ranks (gathered with gradient): a larger micro-batch gives more of them, accumulation does not.

    Args:
        config: How they are contrasted.
        encoder_config: Of the encoder; needs the stream `frames`.

    Raises:
        ValueError: The encoder has no frames.
    """

    name = "contrastive"
    needs_frame_candidates = False

    def __init__(self, config: ContrastiveConfig, encoder_config: VidsimConfig) -> None:
        """Build the two projections."""
        super().__init__()
        if FRAMES not in (encoder_config.streams or {}):
            raise ValueError(f"contrastive needs the stream {FRAMES!r}")
        self.config = config
        self.encoder_config = encoder_config
        self.video_projection = nn.Linear(encoder_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(encoder_config.hidden_size, config.projection_dim)

    def counts(self, batch: Batch) -> Tensor:
        """Rows of the micro-batch with frames and text: float scalar."""
        return rows_with_both(batch, self.encoder_config).sum().float()

    def forward(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Loss of the micro-batch, its share of the window's mean: float scalar.

        Collective: call on every rank.
        """
        # The gradients are summed over the ranks in the type that is gathered.
        video = full_precision(self.video_projection(self._video(batch, encoder)))
        text = full_precision(self.text_projection(self._text(batch, encoder)))
        valid = rows_with_both(batch, self.encoder_config)
        counts = [rows[window.micro_batch] for rows in window.num_rows]
        return info_nce(
            video,
            text,
            all_video=gather_rows_with_gradient(video, counts),
            all_text=gather_rows_with_gradient(text, counts),
            offset=sum(counts[: rank()]),
            valid=valid,
            all_valid=gather_rows(valid.to(torch.uint8), counts),
            temperature=self.config.temperature,
            denominator=window.denominators[self.name],
        )

    def _video(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Masked mean over the frames of a pass without text: float [B, H]."""
        features, mask = stream_keys(FRAMES)
        streams = {**stream_inputs(batch, self.encoder_config.streams or {}), features: clean_frames(batch)}
        # The streams stand between [CLS] and [SEP], or before [CLS]: those tokens are all that is kept.
        num_tokens = 2 if self.encoder_config.layout == "cls_first" else 1
        alone = encoder(
            input_ids=batch["input_ids"][:, :num_tokens],
            attention_mask=batch["attention_mask"][:, :num_tokens],
            **streams,
        )
        if alone.frame_hidden is None:
            return alone.cls_hidden * 0.0
        return _masked_mean(alone.frame_hidden, batch[mask])

    def _text(self, batch: Batch, encoder: Encoder) -> Tensor:
        """Masked mean over the tokens of a pass without streams: float [B, H]."""
        alone = encoder(input_ids=clean_ids(batch), attention_mask=batch["attention_mask"])
        return _masked_mean(alone.text_hidden, batch["attention_mask"])


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    hidden = full_precision(hidden)
    weights = mask.to(hidden).unsqueeze(-1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
