"""AdamW and its parameter groups: backbone and heads, with and without weight decay, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vidsim.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Published: 5e-5 and 5e-4 (heads) to pretrain, 1e-5 and 5e-5 to finetune; decay .01, eps 1e-6."""

    learning_rate: float = 5e-5
    """Peak learning rate of the backbone."""
    head_learning_rate: float = 5e-4
    """Peak learning rate of the heads, which start from random weights."""
    weight_decay: float = 0.01
    """Of matrices; biases, norms and other vectors have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square."""
    eps: float = 1e-6
    """Added to the denominator."""
    layer_decay: float = 1.0
    """Layer l of L learns at learning_rate * layer_decay ** (L - l), embeddings as layer 0; 1: all alike. The
    published finetuning sets 0.975 but never applies it."""
    head_parameters: list[str] | None = None
    """Parameters whose names begin so are heads; null: the objectives, the projection and the attention pooling."""
    fused: bool | None = None
    """One kernel for the whole update; null: where torch has it, which is on CUDA devices and CPUs."""

    def validate(self) -> None:
        """Refuse numbers with which AdamW cannot work."""
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "eps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{getattr(self, name)} is negative", field=f"optimizer.{name}")
        for beta in self.betas:
            if not 0 <= beta < 1:
                raise UserError(f"{beta} is not within 0 and 1", field="optimizer.betas")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"{self.layer_decay} is not above 0 and up to 1", field="optimizer.layer_decay")


def parameter_groups(
    module: nn.Module,
    config: OptimizerConfig,
    is_head: Callable[[str], bool],
    layer_of: Callable[[str], int | None],
    num_layers: int,
) -> list[dict[str, Any]]:
    """Sort every trainable parameter into exactly one group.

    A parameter that is tied (one tensor under several names) belongs to the backbone if any of its names
    does.

    Args:
        module: What is trained.
        config: Learning rates and decays.
        is_head: Whether a parameter's name belongs to a head.
        layer_of: Layer of a backbone parameter: 0 for embeddings, 1 .. `num_layers` bottom to top, None for
            what is outside of the layers (it learns at the full backbone rate).
        num_layers: L of the formula at `layer_decay`.

    Returns:
        Groups for `torch.optim.AdamW`: `params`, `names`, `name`, `lr`, `base_lr`, `weight_decay`.

    Raises:
        ValueError: `layer_of` answers something outside 0 .. `num_layers`, or there is nothing to train.
    """
    groups: dict[tuple[float, bool, str], dict[str, Any]] = {}
    for names, parameter in _trainable(module):
        backbone = [name for name in names if not is_head(name)]
        if backbone:
            layers = [layer for layer in map(layer_of, backbone) if layer is not None]
            if any(not 0 <= layer <= num_layers for layer in layers):
                raise ValueError(f"{names[0]}: layer {layers} is not within 0 and {num_layers}")
            layer = min(layers, default=num_layers)
            rate = config.learning_rate * config.layer_decay ** (num_layers - layer)
            label = "backbone" if config.layer_decay == 1 or not layers else f"layer {layer}"
        else:
            rate, label = config.head_learning_rate, "heads"
        is_decayed = parameter.ndim > 1 and not names[0].endswith("bias")
        group = groups.setdefault(
            (rate, is_decayed, label),
            {
                "params": [],
                "names": [],
                "name": label if is_decayed else f"{label}, no decay",
                "lr": rate,
                "base_lr": rate,
                "weight_decay": config.weight_decay if is_decayed else 0.0,
            },
        )
        group["params"].append(parameter)
        group["names"].append(names[0])
    result = list(groups.values())
    check_groups(module, result)
    return result


def check_groups(module: nn.Module, groups: Sequence[dict[str, Any]]) -> None:
    """Make sure that every trainable parameter is in exactly one group.

    Raises:
        ValueError: Names the parameters that are missing, double, frozen or of another module.
    """
    wanted = {id(parameter): names[0] for names, parameter in _trainable(module)}
    if not wanted:
        raise ValueError("the module has no trainable parameter")
    count = dict.fromkeys(wanted, 0)
    strangers = []
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            if id(parameter) in count:
                count[id(parameter)] += 1
            else:
                strangers.append(name)
    missing = [wanted[key] for key, times in count.items() if times == 0]
    double = [wanted[key] for key, times in count.items() if times > 1]
    if missing or double or strangers:
        raise ValueError(
            f"parameter groups: missing {missing}, twice {double}, frozen or not of the module {strangers}"
        )


def make_optimizer(
    groups: Sequence[dict[str, Any]], config: OptimizerConfig, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the groups.

    Args:
        groups: From `parameter_groups`.
        config: Betas, eps, fused.
        device: Where the parameters will be when the first step is taken.
    """
    fused = config.fused if config.fused is not None else device.type in ("cuda", "cpu")
    # The learning rate given here is never used: each group has its own.
    return torch.optim.AdamW(
        list(groups),
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=fused,
    )


def describe(groups: Sequence[dict[str, Any]]) -> list[str]:
    """One line a group for the banner: name, how many tensors and numbers, learning rate, weight decay."""
    width = max(len(group["name"]) for group in groups)
    return [
        f"{group['name']:<{width}}  {len(group['params']):>4} tensors  "
        f"{sum(parameter.numel() for parameter in group['params']):>13,} parameters  "
        f"lr {group['base_lr']:.3g}  weight decay {group['weight_decay']:g}"
        for group in groups
    ]


def _trainable(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
            parameters[id(parameter)] = parameter
    return [(names[key], parameter) for key, parameter in parameters.items()]
