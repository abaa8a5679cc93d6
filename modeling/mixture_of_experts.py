"""Which tags a video carries, from precomputed features (Lee et al. 2018, §4.4.1).

Features are centred, turned and cut stream by stream (block PCA to begin with; the directions are learned further),
joined, brought to length 1 (their Eq. 7), and answered for each tag by a mixture of logistic experts (their Eq. 8) or,
as the baseline, by one logistic regression.

Legend: B videos, D_s width of a stream, C_s directions kept of it, C their sum, K tags, H experts a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .embeddings import checked_vectors
from .losses.reduction import full_precision
from .model_files import load_model, save_model

MODEL_TYPE = "vidsim_tagger"


@dataclass(frozen=True, kw_only=True)
class TaggerConfig:
    """Shape of a tagger.

    Attributes:
        streams: Name of each stream to (D_s, C_s).
        num_tags: K.
        model: `mixture` of experts, or `logistic` regression.
        num_experts: H; of no meaning to `logistic`.
    """

    streams: dict[str, tuple[int, int]]
    num_tags: int
    model: Literal["mixture", "logistic"] = "mixture"
    num_experts: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            ValueError: No stream, more directions than a stream has, a count below 1, another model.
        """
        if not self.streams:
            raise ValueError("there must be at least one stream")
        for name, (dim, kept) in self.streams.items():
            if not 1 <= kept <= dim:
                raise ValueError(f"stream {name}: of {dim} directions {kept} cannot be kept")
        if min(self.num_tags, self.num_experts) < 1:
            raise ValueError(f"{self.num_tags} tags and {self.num_experts} experts must be at least 1")
        if self.model not in ("mixture", "logistic"):
            raise ValueError(f"the model is mixture or logistic, not {self.model!r}")


class MixtureOfExperts(nn.Module):
    """For each tag H logistic experts and a gate over them and one state more, in which the tag is not there.

    `p(tag | z) = Σ_h softmax(gates)_h sigmoid(expert_h)`; the states' shares sum to 1, that of the last counts as 0.
    Gates have no bias, experts have one.
    """

    def __init__(self, dim: int, num_tags: int, num_experts: int) -> None:
        """Build with random weights, from torch's global generator."""
        super().__init__()
        self.num_tags, self.num_experts = num_tags, num_experts
        self.gates = nn.Linear(dim, num_tags * (num_experts + 1), bias=False)
        self.experts = nn.Linear(dim, num_tags * num_experts)

    @torch.no_grad()
    def start_at(self, shares: Tensor) -> None:
        """Let every tag begin near its share of the videos, float [K] above 0 and below 1."""
        odds = torch.logit((shares * (self.num_experts + 1) / self.num_experts).clamp(max=0.99))
        self.experts.bias.copy_(odds.repeat(self.num_experts))

    def forward(self, z: Tensor) -> Tensor:
        """Log-odds of each tag.

        In logarithms throughout, so that no probability is rounded to 0 or 1.

        Args:
            z: float [B, C].

        Returns:
            float32 [B, K].
        """
        # Tags last: sums over a few experts are then sums of long rows.
        experts = full_precision(self.experts(z)).view(-1, self.num_experts, self.num_tags)
        gates = full_precision(self.gates(z)).view(-1, self.num_experts + 1, self.num_tags).log_softmax(dim=1)
        present, absent = gates[:, :-1], gates[:, -1]
        yes = (present + functional.logsigmoid(experts)).logsumexp(dim=1)
        no = torch.logaddexp((present + functional.logsigmoid(-experts)).logsumexp(dim=1), absent)
        return yes - no


class Logistic(nn.Linear):
    """One logistic regression a tag."""

    @torch.no_grad()
    def start_at(self, shares: Tensor) -> None:
        """Let every tag begin near its share of the videos, float [K] above 0 and below 1."""
        self.bias.copy_(torch.logit(shares.clamp(max=0.99)))

    def forward(self, z: Tensor) -> Tensor:
        """Log-odds of each tag, float32 [B, K], from float [B, C]."""
        return full_precision(super().forward(z))


class Tagger(nn.Module):
    """Streams in, log-odds of the tags out."""

    def __init__(self, config: TaggerConfig) -> None:
        """Build with random weights, from torch's global generator; `fit_inputs` sets the projections."""
        super().__init__()
        self.config = config
        for name, (dim, _) in config.streams.items():
            self.register_buffer(f"mean_{name}", torch.zeros(dim))
            self.register_buffer(f"scale_{name}", torch.ones(()))
        self.projections = nn.ModuleDict(
            {name: nn.Linear(dim, kept, bias=False) for name, (dim, kept) in config.streams.items()}
        )
        width = sum(kept for _, kept in config.streams.values())
        self.head: MixtureOfExperts | Logistic = (
            MixtureOfExperts(width, config.num_tags, config.num_experts)
            if config.model == "mixture"
            else Logistic(width, config.num_tags)
        )

    @torch.no_grad()
    def fit_inputs(
        self, means: Mapping[str, Tensor], scales: Mapping[str, float], directions: Mapping[str, Tensor]
    ) -> None:
        """Set where learning begins.

        Args:
            means: float [D_s] of each stream, subtracted from it.
            scales: Of each stream, multiplied with it, so that it weighs as the others do.
            directions: float [D_s, C_s] of each stream.
        """
        for name in self.config.streams:
            getattr(self, f"mean_{name}").copy_(means[name])
            getattr(self, f"scale_{name}").fill_(scales[name])
            self.get_parameter(f"projections.{name}.weight").copy_(directions[name].T)

    def inputs(self, streams: Mapping[str, Tensor]) -> Tensor:
        """What the head sees: float [B, C], of length 1.

        Raises:
            ValueError: A stream is missing or of another width.
        """
        parts = []
        for name, (dim, _) in self.config.streams.items():
            centred: Tensor = checked_vectors(name, streams, dim) - getattr(self, f"mean_{name}")
            parts.append(self.projections[name](centred * getattr(self, f"scale_{name}")))
        return functional.normalize(torch.cat(parts, dim=-1), dim=-1)

    def forward(self, **streams: Tensor) -> Tensor:
        """Log-odds of the tags.

        Args:
            streams: float [B, D_s] of each stream of the config.

        Returns:
            float32 [B, K].

        Raises:
            ValueError: A stream is missing or of another width.
        """
        logits: Tensor = self.head(self.inputs(streams))
        return logits

    def save(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        save_model(folder, MODEL_TYPE, asdict(self.config), self)

    @classmethod
    def load(cls, folder: Path) -> Tagger:
        """Read what `save` wrote.

        Raises:
            ValueError: No such model in the folder, or files that do not fit together.
        """

        def build(config: dict[str, Any]) -> Tagger:
            streams = {name: (int(dim), int(kept)) for name, (dim, kept) in config.pop("streams").items()}
            return cls(TaggerConfig(streams=streams, **config))

        return load_model(folder, MODEL_TYPE, build, "tagger")
