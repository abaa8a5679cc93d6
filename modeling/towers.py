"""Small networks over precomputed features: several streams of a video to one embedding (Lee et al. 2018, §3.2.2).

`early`: the streams are joined at the input of one network. `late`: one network a stream, whose outputs are
multiplied element by element; their Table 2 found it the better with one hidden layer of 4,000. Two ReLU layers or
more are possible, and no better there.

Legend: B videos, S streams, D_s width of a stream, E width of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .embeddings import checked_vectors
from .model_files import load_model, save_model

MODEL_TYPE = "vidsim_towers"


@dataclass(frozen=True, kw_only=True)
class TowersConfig:
    """Shape of the network.

    Attributes:
        streams: Name and width of each stream.
        fusion: Where the streams meet.
        hidden: Widths of the ReLU layers, first to last; none makes the network linear.
        embedding_dim: E.
        dropout: Of the last hidden layer's units.
    """

    streams: dict[str, int]
    fusion: Literal["early", "late"] = "late"
    hidden: tuple[int, ...] = (4000,)
    embedding_dim: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: No stream, a width below 1, another fusion, a dropout outside [0, 1).
        """
        if not self.streams:
            raise ValueError("there must be at least one stream")
        if min(*self.streams.values(), *self.hidden, self.embedding_dim) < 1:
            raise ValueError(f"every width must be at least 1: {self.streams}, {self.hidden}, {self.embedding_dim}")
        if self.fusion not in ("early", "late"):
            raise ValueError(f"fusion is early or late, not {self.fusion!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout:g}")


class FusionTowers(nn.Module):
    """Streams in, L2-normalised embedding out.

    Each input dimension is centred and scaled by the statistics `fit_inputs` was given, which are saved with the
    weights, so that features of any scale can be joined.
    """

    def __init__(self, config: TowersConfig) -> None:
        """Build with random weights, from torch's global generator."""
        super().__init__()
        self.config = config
        for name, dim in config.streams.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"scale_{name}", torch.ones(dim))
        widths = config.streams if config.fusion == "late" else {"all": sum(config.streams.values())}
        self.towers = nn.ModuleDict({name: _tower(dim, config) for name, dim in widths.items()})
        if len(self.towers) > 1:
            # About a product of numbers around 0 every factor's gradient vanishes with the other: start around 1.
            for tower in self.towers.values():
                nn.init.ones_(_last(tower).bias)

    @torch.no_grad()
    def fit_inputs(self, means: Mapping[str, Tensor], deviations: Mapping[str, Tensor]) -> None:
        """Set the centre and scale of the inputs.

        Args:
            means: float [D_s] of each stream.
            deviations: float [D_s], standard deviations; a dimension without any is left unscaled.
        """
        for name in self.config.streams:
            getattr(self, f"mean_{name}").copy_(means[name])
            deviation = deviations[name].clone()
            deviation[deviation == 0] = 1
            getattr(self, f"scale_{name}").copy_(1 / deviation)

    def forward(self, **streams: Tensor) -> Tensor:
        """Embed videos.

        Args:
            streams: float [B, D_s] of each stream of the config.

        Returns:
            float32 [B, E], of length 1.

        Raises:
            ValueError: A stream is missing or of another width.
        """
        inputs = {}
        for name, dim in self.config.streams.items():
            centred = checked_vectors(name, streams, dim) - getattr(self, f"mean_{name}")
            inputs[name] = centred * getattr(self, f"scale_{name}")
        if self.config.fusion == "early":
            inputs = {"all": torch.cat(list(inputs.values()), dim=-1)}
        output = torch.stack([tower(inputs[name]).float() for name, tower in self.towers.items()]).prod(dim=0)
        return nn.functional.normalize(output, dim=-1)

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_model(folder, MODEL_TYPE, asdict(self.config), self)

    @classmethod
    def load(cls, folder: Path) -> FusionTowers:
        """Read what `save` wrote.

        Raises:
            ValueError: No such model in the folder, or files that do not fit together.
        """

        def build(config: dict[str, Any]) -> FusionTowers:
            return cls(TowersConfig(**{**config, "hidden": tuple(config["hidden"])}))

        return load_model(folder, MODEL_TYPE, build, "towers")


def _tower(dim: int, config: TowersConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in config.hidden:
        linear = nn.Linear(dim, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        dim = width
    if config.dropout:
        layers.append(nn.Dropout(config.dropout))
    last = nn.Linear(dim, config.embedding_dim)
    nn.init.normal_(last.weight, std=1 / math.sqrt(dim))
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def _last(tower: nn.Module) -> nn.Linear:
    layers = list(tower.children())
    assert isinstance(layers[-1], nn.Linear)
    return layers[-1]
