"""Masked frame modelling: tell which frame stood there, with the text in view (arXiv 2111.01677 §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..config import FRAMES, VidsimConfig
from ..heads import MfmHead
from ..losses.masked import masked_frame
from .base import Encoder, WindowContext
from .inputs import Batch, frame_positions, mfm_positions

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


@dataclass(frozen=True, kw_only=True)
class MfmConfig:
    """How masked frames are predicted; what is masked is decided by the collator."""

    weight: float = 1 / 9
    """Factor of the loss; first place: 1 / 9."""
    normalize: bool = False
    """Compare directions only (L2 norm on both sides). First place: no; its author found no difference."""
    temperature: float = 1.0
    """Divides the products; with `normalize` about .07 is usual. First place: 1, without `normalize`."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.temperature <= 0:
            raise ValueError(f"mfm.temperature must be above 0, not {self.temperature}")


class MfmObjective(nn.Module):
    """Frame head on the masked rows only; candidates are all valid frames of the window.

    Items of the mean: masked frames. The number of negatives grows with the global batch, not with the
    micro-batch.

    Args:
        config: How masked frames are predicted.
        encoder_config: Of the encoder whose output is read; needs the stream `frames`.

    Raises:
        ValueError: The encoder has no frames.
    """

    name = "mfm"
    needs_frame_candidates = True

    def __init__(self, config: MfmConfig, encoder_config: VidsimConfig) -> None:
        """Build the head."""
        super().__init__()
        streams = encoder_config.streams or {}
        if FRAMES not in streams:
            raise ValueError(f"mfm needs the stream {FRAMES!r}; the encoder has {sorted(streams)}")
        self.config = config
        self.head = MfmHead(encoder_config.hidden_size, streams[FRAMES]["dim"])

    def counts(self, batch: Batch) -> float:
        """Masked frames of the micro-batch."""
        return float(mfm_positions(batch).numel())

    def forward(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Loss of the micro-batch, its share of the window's mean: float scalar.

        Raises:
            ValueError: The window was built without candidates, or (seen on a CPU) a masked frame is not
                valid.
        """
        if window.frame_candidates is None:
            raise ValueError("the window has no candidate frames; build it with this objective")
        masked = mfm_positions(batch)
        hidden = output.cls_hidden[:0]  # no frames: the head still takes part, with a gradient of zeros
        if output.frame_hidden is not None:
            hidden = output.frame_hidden.flatten(0, 1)[masked]  # [M, H]
        return masked_frame(
            self.head(hidden),
            window.frame_candidates,
            _places(masked, frame_positions(batch)) + window.frame_offsets[window.micro_batch],
            normalize=self.config.normalize,
            temperature=self.config.temperature,
            denominator=window.denominators[self.name],
        )


def _places(masked: Tensor, valid: Tensor) -> Tensor:
    """Place of each masked frame among the rising flat indices of the valid ones: int64 [M]."""
    places = torch.searchsorted(valid, masked)
    # On an accelerator it would wait for the device; a collator that is wrong is wrong on a CPU as well.
    if masked.device.type == "cpu" and not torch.isin(masked, valid).all():
        raise ValueError("a masked frame is not among the valid frames")
    return places
