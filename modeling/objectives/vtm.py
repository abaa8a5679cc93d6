"""Video-text matching: do these frames and this text belong together (ALBEF, arXiv 2107.07651 §3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..config import FRAMES, VidsimConfig
from ..losses.reduction import no_autocast
from ..losses.video_text import matching
from .base import Encoder, WindowContext
from .inputs import Batch, clean_frames, rows_with_both, stream_inputs

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


@dataclass(frozen=True, kw_only=True)
class VtmConfig:
    """How wrong partners are chosen."""

    weight: float = 1.0
    """Factor of the loss; ALBEF: 1 beside its other objectives."""
    hardness: float = 5.0
    """Wrong frames j for text i are drawn with probability ~ exp(hardness * similarity of their frames); 0 =
    uniform. Our choice, not tuned."""
    max_similarity: float = 0.95
    """Videos whose frames are more alike than this are near duplicates, whose text may well fit: never drawn.
    Our choice, not tuned."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.hardness < 0:
            raise ValueError(f"vtm.hardness must be 0 or more, not {self.hardness}")


class VtmObjective(nn.Module):
    """One linear head on [CLS]: high for the true pair, low for the same text with another video's streams.

    Cost: one extra pass of the encoder over the whole micro-batch. Wrong partners come from the micro-batch
    of the same rank; they are judged by the input frames (cosine of the mean frames, centred over the
    micro-batch), so the choice depends on (seed, step, rank, micro-batch) and the data, not on the model.
    Both passes see the masked inputs, so masking is no hint. Items of the mean: rows with frames, text and a
    possible wrong partner.

    Args:
        config: How wrong partners are chosen.
        encoder_config: Of the encoder; needs the stream `frames`.

    Raises:
        ValueError: The encoder has no frames.
    """

    name = "vtm"
    needs_frame_candidates = False

    def __init__(self, config: VtmConfig, encoder_config: VidsimConfig) -> None:
        """Build the head."""
        super().__init__()
        if FRAMES not in (encoder_config.streams or {}):
            raise ValueError(f"vtm needs the stream {FRAMES!r}")
        self.config = config
        self.encoder_config = encoder_config
        self.head = nn.Linear(encoder_config.hidden_size, 1)

    def counts(self, batch: Batch) -> Tensor:
        """Rows of the micro-batch for which there is a wrong partner: float scalar."""
        return self._allowed(batch)[1].any(dim=1).sum().float()

    def forward(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Loss of the micro-batch, its share of the window's mean: float scalar."""
        similarity, allowed = self._allowed(batch)
        partner, found = draw_partners(
            similarity, allowed, hardness=self.config.hardness, generator=window.generator(local=True)
        )
        streams = stream_inputs(batch, self.encoder_config.streams or {})
        wrong = encoder(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            **{key: values[partner] for key, values in streams.items()},
        )
        return matching(
            self.head(output.cls_hidden).squeeze(-1),
            self.head(wrong.cls_hidden).squeeze(-1),
            found,
            window.denominators[self.name],
        )

    def _allowed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Similarity float [B, B] and, for text i, which videos j may be its wrong partner: bool [B, B]."""
        valid = rows_with_both(batch, self.encoder_config)
        similarity = _similarity(clean_frames(batch), batch["frame_mask"], valid)
        others = ~torch.eye(len(valid), dtype=torch.bool, device=valid.device)
        near = similarity > self.config.max_similarity
        return similarity, valid[:, None] & valid[None, :] & others & ~near


def draw_partners(
    similarity: Tensor, allowed: Tensor, *, hardness: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one column per row: `P(j | i) ~ exp(hardness * similarity_ij)` over the allowed ones.

    Args:
        similarity: float [B, B], higher = more alike.
        allowed: bool [B, B].
        hardness: Inverse temperature; 0 = all allowed ones alike.
        generator: CPU generator (Gumbel noise).

    Returns:
        Partner int64 [B] and found bool [B]; where nothing is allowed the partner is the row itself.
    """
    num_rows = similarity.shape[0]
    found = allowed.any(dim=1)
    own = torch.arange(num_rows, device=similarity.device)
    if num_rows == 0:
        return own, found
    uniform = torch.rand(num_rows, num_rows, generator=generator, dtype=torch.float64)
    gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-300)))
    score = hardness * similarity.double() + gumbel.to(similarity.device, non_blocking=True)
    partner = score.masked_fill(~allowed, -torch.inf).argmax(dim=1)
    return torch.where(found, partner, own), found


@torch.no_grad()
def _similarity(frames: Tensor, frame_mask: Tensor, valid: Tensor) -> Tensor:
    """Cosine of the mean frames, centred over the valid rows: float32 [B, B]."""
    weights = frame_mask.to(torch.float32).unsqueeze(-1)
    means = (frames.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # [B, D]
    rows = valid.to(torch.float32).unsqueeze(-1)
    means = means - (means * rows).sum(dim=0) / rows.sum().clamp(min=1)
    means = functional.normalize(means, dim=-1)
    with no_autocast(means):  # counted outside autocast and used inside: the same numbers in both
        return means @ means.T
