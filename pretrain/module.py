"""The encoder and its objectives as the one module that is trained: a batch in, named losses out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from vidsim.modeling.encoder import VideoTextEncoder, VidsimOutput
from vidsim.modeling.objectives.base import Objective, WindowContext, build_window
from vidsim.modeling.objectives.contrastive import ContrastiveObjective
from vidsim.modeling.objectives.mfm import MfmObjective
from vidsim.modeling.objectives.mlm import MlmObjective
from vidsim.modeling.objectives.vtc import VtcObjective
from vidsim.modeling.objectives.vtm import VtmObjective
from vidsim.pretrain.config import ObjectivesConfig


class PretrainModule(nn.Module):
    """Encoder plus one head for each objective that is trained.

    Args:
        encoder: Shared by all objectives.
        config: Objectives; those that are null get no head, so that no parameter is left without a gradient.
        num_tags: Size of the tag vocabulary.
        seed: Seed of the run, for the negatives of sampled softmax.
    """

    def __init__(self, encoder: VideoTextEncoder, config: ObjectivesConfig, *, num_tags: int, seed: int) -> None:
        """Build the heads."""
        super().__init__()
        self.encoder = encoder
        self.seed = seed
        self.objectives = nn.ModuleDict()
        self.weights: dict[str, float] = {}
        if config.vtc is not None:
            self._add("vtc", VtcObjective(config.vtc, encoder.config, num_tags=num_tags), config.vtc.weight)
        if config.mlm is not None:
            self._add("mlm", MlmObjective(config.mlm, encoder.config), config.mlm.weight)
        if config.mfm is not None:
            self._add("mfm", MfmObjective(config.mfm, encoder.config), config.mfm.weight)
        if config.vtm is not None:
            self._add("vtm", VtmObjective(config.vtm, encoder.config), config.vtm.weight)
        if config.contrastive is not None:
            self._add(
                "contrastive", ContrastiveObjective(config.contrastive, encoder.config), config.contrastive.weight
            )

    def _add(self, name: str, objective: nn.Module, weight: float) -> None:
        self.objectives[name] = objective
        self.weights[name] = weight

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters on which the losses are balanced: the last layer of the text encoder."""
        return self.encoder.last_layer_parameters()

    def windows(self, batches: Sequence[dict[str, Any]], step: int) -> list[WindowContext]:
        """Counts and candidate frames of the whole global batch, for each micro-batch. Collective."""
        device = next(self.parameters()).device
        window = build_window(batches, self._objectives(), step=step, seed=self.seed, device=device)
        return [window.for_micro_batch(index) for index in range(len(batches))]

    def encode(self, batch: dict[str, Any]) -> VidsimOutput:
        """Encode what is in a batch."""
        output: VidsimOutput = self.encoder(**self.encoder.inputs_of(batch))
        return output

    def forward(self, batch: dict[str, Any], window: WindowContext) -> dict[str, torch.Tensor]:
        """Losses of one micro-batch.

        Args:
            batch: Keys of `data.schema`, from the pretraining collator.
            window: What `windows` returned for this micro-batch.

        Returns:
            `{objective: loss}`, float32 scalars; summed over the micro-batches and ranks of a step they are the
            losses of the global batch.
        """
        # Not `self.encode`: what gathers a sharded module (engine/sharding.py) is around that, and around this already.
        output = PretrainModule.encode(self, batch)
        losses = {objective.name: objective(output, batch, window, self.encoder) for objective in self._objectives()}
        # Not every objective reads the projection; without this it would have no gradient, which DDP refuses.
        first = next(iter(losses))
        losses[first] = losses[first] + 0.0 * output.projection.float().sum()
        return losses

    def _objectives(self) -> list[Objective]:
        return [cast(Objective, objective) for objective in self.objectives.values()]
