"""Masked language modelling on the text, the frames in view (arXiv 1810.04805; arXiv 2111.01677 §2.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..config import VidsimConfig
from ..heads import MlmHead
from ..losses.masked import masked_token
from .base import Encoder, WindowContext
from .inputs import Batch, mlm_positions

if TYPE_CHECKING:
    from ..encoder import VidsimOutput


@dataclass(frozen=True, kw_only=True)
class MlmConfig:
    """How masked tokens are predicted; what is masked is decided by the collator."""

    weight: float = 1 / 3.75
    """Factor of the loss; first place: 1 / 3.75."""


class MlmObjective(nn.Module):
    """Token head, tied to the encoder's word embeddings, on the masked rows only.

    Items of the mean: masked tokens.

    Args:
        config: How masked tokens are predicted.
        encoder_config: Of the encoder whose output is read.
    """

    name = "mlm"
    needs_frame_candidates = False

    def __init__(self, config: MlmConfig, encoder_config: VidsimConfig) -> None:
        """Build the head."""
        super().__init__()
        self.config = config
        text: Any = encoder_config.text_config
        self.head = MlmHead(
            encoder_config.hidden_size,
            # ELECTRA and ALBERT have narrower word embeddings than hidden states.
            getattr(text, "embedding_size", encoder_config.hidden_size),
            text.vocab_size,
            getattr(text, "layer_norm_eps", 1e-12),
        )

    def counts(self, batch: Batch) -> float:
        """Masked tokens of the micro-batch."""
        return float(mlm_positions(batch).numel())

    def forward(self, output: VidsimOutput, batch: Batch, window: WindowContext, encoder: Encoder) -> Tensor:
        """Loss of the micro-batch, its share of the window's mean: float scalar."""
        positions = mlm_positions(batch)
        hidden = output.text_hidden.flatten(0, 1)[positions]  # [M, H]
        labels = batch["mlm_labels"].flatten()[positions]  # [M]
        logits = self.head(hidden, encoder.word_embeddings())
        return masked_token(logits, labels, window.denominators[self.name])
