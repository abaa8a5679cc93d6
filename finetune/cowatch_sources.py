"""What a co-watch run learns from: precomputed features under towers, or data sets under the cross-modal encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor

from vidsim.data.arrow import open_all
from vidsim.data.collators import Batch, encode_rows, to_device
from vidsim.data.cowatch_graph import Integers
from vidsim.data.feature_streams import FeatureStreams, open_features
from vidsim.engine.gather import map_rows
from vidsim.engine.optimizer import parameter_groups
from vidsim.engine.source import checkpoint_of
from vidsim.finetune.cowatch_config import CowatchConfig
from vidsim.finetune.projection import POWERS, pooled_states, start_projection
from vidsim.finetune.tasks.cowatch import CowatchModule, Network, embed
from vidsim.modeling.build import check_streams_match, load_encoder, save_encoder
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.model_card import write_model_card
from vidsim.modeling.parameters import head_test, layer_numbers
from vidsim.modeling.towers import FusionTowers, TowersConfig

Vectors = npt.NDArray[np.float32]


class Source(Protocol):
    """Videos by number, and the network that embeds them."""

    ids: list[str]

    def describe(self) -> str:
        """What is known of each video, for people."""

    def collate(self, videos: Integers) -> Batch:
        """What the network reads of these videos."""

    def build(self, training: Integers, accelerator: Accelerator) -> Network:
        """The network as training starts, fitted to the training videos where it must be. Collective."""

    def groups(self, module: CowatchModule) -> list[dict[str, Any]]:
        """Parameters by learning rate."""

    def save(self, network: Any, folder: Path, metrics: dict[str, float]) -> None:
        """Write the network for users."""

    def load(self, folder: Path) -> Network:
        """Read it back."""

    def untrained(self, training: Integers, accelerator: Accelerator) -> Vectors:
        """What is known of all videos, as vectors of length 1 at most, float32 [V, D]. Collective."""


def open_source(config: CowatchConfig) -> Source:
    """Open what the settings name; nothing is loaded onto a device."""
    if config.videos:
        return EncoderSource(config)
    return FeatureSource(config, open_features(config.features, config.ids))


class FeatureSource:
    """Precomputed features; the towers start fresh."""

    def __init__(self, config: CowatchConfig, features: FeatureStreams) -> None:
        """Keep both."""
        self.config = config
        self.features = features
        self.ids = features.ids

    def describe(self) -> str:
        """Names and widths of the streams."""
        return f"streams: {', '.join(f'{name} {dim}' for name, dim in self.features.dims.items())}"

    def collate(self, videos: Integers) -> Batch:
        """A float32 tensor [U, D_s] of each stream."""
        return {name: torch.from_numpy(vectors) for name, vectors in self.features.take(videos).items()}

    def build(self, training: Integers, accelerator: Accelerator) -> FusionTowers:
        """Towers whose inputs are scaled by the training videos' statistics."""
        task = self.config.task
        towers = FusionTowers(
            TowersConfig(
                streams=self.features.dims,
                fusion=task.fusion,
                hidden=tuple(task.hidden),
                embedding_dim=task.embedding_dim,
                dropout=task.dropout,
            )
        )
        statistics = self.features.statistics(training)
        means = {name: torch.from_numpy(mean) for name, (mean, _) in statistics.items()}
        towers.fit_inputs(means, {name: torch.from_numpy(deviation) for name, (_, deviation) in statistics.items()})
        return towers

    def groups(self, module: CowatchModule) -> list[dict[str, Any]]:
        """One learning rate for all."""
        return parameter_groups(module, self.config.optimizer, lambda name: False, lambda name: None, 1)

    def save(self, network: FusionTowers, folder: Path, metrics: dict[str, float]) -> None:
        """Configuration and weights."""
        network.save(folder)

    def load(self, folder: Path) -> FusionTowers:
        """Towers as saved."""
        return FusionTowers.load(folder)

    def untrained(self, training: Integers, accelerator: Accelerator) -> Vectors:
        """The streams joined, see `FeatureStreams.joined`."""
        return self.features.joined(training)


class EncoderSource:
    """Data sets, embedded by the cross-modal encoder of a checkpoint, which is trained from end to end."""

    def __init__(self, config: CowatchConfig) -> None:
        """Open the data sets and check that they hold what the checkpoint reads."""
        self.config = config
        self.videos = open_all(config.videos)
        self.ids: list[str] = self.videos.ids().to_pylist()
        self.checkpoint = checkpoint_of(Path(str(config.init_from)))
        encoder, self.processor = load_encoder(self.checkpoint)
        check_streams_match(encoder.config, self.videos.streams, self.checkpoint)

    def describe(self) -> str:
        """The checkpoint and the data sets."""
        return f"read by the encoder of {self.checkpoint} from {', '.join(self.config.videos)}"

    def collate(self, videos: Integers) -> Batch:
        """What the encoder reads: tokens, frames, masks."""
        return encode_rows(self.videos.read(videos.tolist()), self.processor)

    def build(self, training: Integers, accelerator: Accelerator) -> VideoTextEncoder:
        """The encoder of the checkpoint, its projection started as the settings say."""
        encoder, _ = load_encoder(self.checkpoint)
        loop = self.config.loop
        if self.config.projection in POWERS:
            start_projection(
                encoder,
                self.collate,
                training,
                power=POWERS[self.config.projection],
                batch_size=loop.eval_batch_size,
                accelerator=accelerator,
            )
        encoder.prepare_training(gradient_checkpointing=loop.gradient_checkpointing, compile=loop.compile)
        return encoder.train()

    def groups(self, module: CowatchModule) -> list[dict[str, Any]]:
        """Backbone and heads, as for pairs."""
        layers, num_layers = layer_numbers(module, module.encoder)  # type: ignore[arg-type]
        is_head = head_test(module, self.config.optimizer.head_parameters)
        return parameter_groups(module, self.config.optimizer, is_head, layers.get, num_layers)

    def save(self, network: VideoTextEncoder, folder: Path, metrics: dict[str, float]) -> None:
        """A self-contained Hugging Face checkpoint."""
        save_encoder(network, self.processor, folder)
        write_model_card(folder, metrics, Path(self.config.output_dir).name, self.config.videos)

    def load(self, folder: Path) -> VideoTextEncoder:
        """The encoder as saved."""
        return load_encoder(folder)[0]

    def untrained(self, training: Integers, accelerator: Accelerator) -> Vectors:
        """Pooled hidden states of the checkpoint, seen from the mean of the training videos."""
        encoder = self.load(self.checkpoint).to(accelerator.device).eval()
        pooled = map_rows(
            lambda videos: pooled_states(encoder, self.collate(videos), accelerator),
            len(self.ids),
            encoder.config.hidden_size,
            batch_size=self.config.loop.eval_batch_size,
            accelerator=accelerator,
        )
        pooled -= pooled[training].mean(axis=0)
        return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def embed_all(network: Network, source: Source, batch_size: int, accelerator: Accelerator) -> Vectors:
    """Embeddings of all videos, float32 [V, E]. Collective."""
    width: int = network.config.embedding_dim

    def encode(videos: Integers) -> Tensor:
        return embed(network, to_device(source.collate(videos), accelerator.device))

    return map_rows(encode, len(source.ids), width, batch_size=batch_size, accelerator=accelerator)
