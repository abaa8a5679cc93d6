"""Small pretraining modules with everything that feeds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from vidsim.data.arrow import Videos
from vidsim.data.collators import PretrainCollator
from vidsim.data.masking import MaskingConfig
from vidsim.data.tags import TagVocabulary
from vidsim.modeling.build import ModelConfig, build_encoder, build_processor
from vidsim.pretrain.config import ObjectivesConfig
from vidsim.pretrain.module import PretrainModule

HALF = MaskingConfig(mlm_probability=0.5, mfm_probability=0.5)
SIZES: dict[str, Any] = {
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "embedding_dim": 4,
    "max_title_tokens": 4,
    "max_frames": 4,
}


@dataclass(frozen=True)
class Setup:
    """A module in training mode, its collator and the videos."""

    module: PretrainModule
    collator: PretrainCollator
    videos: Videos

    def batch(self, rows: Sequence[int], epoch: int = 0) -> dict[str, Any]:
        """Videos as the training sees them."""
        return self.collator([{**self.videos[row], "epoch": epoch} for row in rows])

    def losses(self, *batches: dict[str, Any], step: int = 0) -> dict[str, torch.Tensor]:
        """Losses of a step, summed over its micro-batches."""
        totals: dict[str, torch.Tensor] = {}
        for batch, window in zip(batches, self.module.windows(batches, step), strict=True):
            for name, loss in self.module(batch, window).items():
                totals[name] = totals[name] + loss if name in totals else loss
        return totals


@pytest.fixture
def setup(small_data: Any) -> Callable[..., Setup]:
    def make(*, masking: MaskingConfig = HALF, dropout: float = 0.0, **settings: Any) -> Setup:
        """Take `objectives` as a dict of configs (null: not trained) and fields of the model."""
        everything = dict.fromkeys(("vtc", "mlm", "mfm", "vtm", "contrastive"))
        objectives = ObjectivesConfig(**{**everything, **settings.pop("objectives")})
        model = ModelConfig(**{**SIZES, **settings}, dropout=dropout)
        videos, tokenizer = small_data.videos, small_data.tokenizer()
        tags = TagVocabulary.build(videos, size=4) if objectives.vtc else None
        torch.manual_seed(0)
        encoder, _ = build_encoder(model, tokenizer, videos.streams)
        module = PretrainModule(encoder, objectives, num_tags=tags.size if tags else 0, seed=3)
        collator = PretrainCollator(
            build_processor(model, tokenizer, videos.streams),
            tags=tags,
            masking=masking,
            seed=3,
            mask_text=objectives.mlm is not None,
            mask_frames=objectives.mfm is not None,
        )
        return Setup(module.train(), collator, videos)

    return make
