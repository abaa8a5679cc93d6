from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.optimizer import (
    OptimizerConfig,
    check_groups,
    describe,
    make_optimizer,
    parameter_groups,
)


class Tower(nn.Module):
    """Embeddings, two layers with norms, a projection beside the layers, a head with a tied decoder."""

    def __init__(self) -> None:
        super().__init__()
        # The head comes first, so that the tied weight is met under the head's name.
        self.head = nn.Linear(4, 7)
        self.embeddings = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2)])
        self.projection = nn.Linear(3, 4, bias=False)
        self.temperature = nn.Parameter(torch.tensor(0.07))
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.head.weight = self.embeddings.weight


def is_head(name: str) -> bool:
    return name.startswith("head.")


def layer_of(name: str) -> int | None:
    if name.startswith("embeddings."):
        return 0
    found = re.match(r"layers\.(\d+)\.", name)
    return int(found[1]) + 1 if found else None


def by_name(groups: list[dict[str, object]], key: str) -> dict[str, object]:
    return {name: group[key] for group in groups for name in group["names"]}  # type: ignore[attr-defined]


def test_published_settings() -> None:
    groups = parameter_groups(Tower(), OptimizerConfig(), is_head, layer_of, 2)
    assert by_name(groups, "base_lr") == {
        "head.weight": 5e-5,  # tied to the embeddings: backbone
        "head.bias": 5e-4,
        "layers.0.0.weight": 5e-5,
        "layers.0.0.bias": 5e-5,
        "layers.0.1.weight": 5e-5,
        "layers.0.1.bias": 5e-5,
        "layers.1.0.weight": 5e-5,
        "layers.1.0.bias": 5e-5,
        "layers.1.1.weight": 5e-5,
        "layers.1.1.bias": 5e-5,
        "projection.weight": 5e-5,
        "temperature": 5e-5,
    }
    decayed = {name for name, decay in by_name(groups, "weight_decay").items() if decay}
    assert decayed == {"head.weight", "layers.0.0.weight", "layers.1.0.weight", "projection.weight"}
    assert {group["weight_decay"] for group in groups} == {0.01, 0.0}
    optimizer = make_optimizer(groups, OptimizerConfig(), torch.device("cpu"))
    assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.999)}
    assert all(group["fused"] for group in optimizer.param_groups)


def test_layer_decay_by_hand() -> None:
    config = OptimizerConfig(learning_rate=1.0, head_learning_rate=3.0, layer_decay=0.5)
    rates = by_name(parameter_groups(Tower(), config, is_head, layer_of, 2), "base_lr")
    assert rates["head.weight"] == 0.25  # embeddings: 0.5 ** 2
    assert rates["layers.0.0.weight"] == rates["layers.0.1.bias"] == 0.5
    assert rates["layers.1.0.weight"] == 1.0
    assert rates["projection.weight"] == rates["temperature"] == 1.0
    assert rates["head.bias"] == 3.0  # heads are not decayed


def test_layer_decay_shows_in_an_update() -> None:
    # The first step of AdamW moves every weight by the learning rate, whatever the size of its gradient.
    module = Tower()
    config = OptimizerConfig(learning_rate=1e-3, layer_decay=0.5, weight_decay=0.0, eps=1e-12)
    groups = parameter_groups(module, config, is_head, layer_of, 2)
    optimizer = make_optimizer(groups, config, torch.device("cpu"))
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.37) if parameter.requires_grad else None
    optimizer.step()
    moved = {name: (before[name] - parameter).abs().max().item() for name, parameter in module.named_parameters()}
    assert moved["head.weight"] == pytest.approx(0.25e-3, rel=1e-2)
    assert moved["layers.0.0.weight"] == pytest.approx(0.5e-3, rel=1e-2)
    assert moved["layers.1.0.weight"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["head.bias"] == pytest.approx(5e-4, rel=1e-2)
    assert moved["frozen"] == 0.0


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    module = Tower()
    groups = parameter_groups(module, OptimizerConfig(layer_decay=0.9), is_head, layer_of, 2)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted({id(p) for p in module.parameters() if p.requires_grad})

    lost = [dict(group) for group in groups]
    lost[0] = {**lost[0], "params": lost[0]["params"][1:], "names": lost[0]["names"][1:]}
    with pytest.raises(ValueError, match=rf"missing \['{re.escape(groups[0]['names'][0])}'\]"):
        check_groups(module, lost)
    with pytest.raises(ValueError, match="twice"):
        check_groups(module, [*groups, {"params": [module.temperature], "names": ["temperature"]}])
    with pytest.raises(ValueError, match=r"not of the module \['frozen'\]"):
        check_groups(module, [*groups, {"params": [module.frozen], "names": ["frozen"]}])


def test_a_layer_outside_and_nothing_to_train_are_mistakes() -> None:
    with pytest.raises(ValueError, match="not within 0 and 1"):
        parameter_groups(Tower(), OptimizerConfig(), is_head, layer_of, 1)
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(Tower().requires_grad_(False), OptimizerConfig(), is_head, layer_of, 2)


def test_describe_gives_every_group_a_line() -> None:
    groups = parameter_groups(Tower(), OptimizerConfig(layer_decay=0.5), is_head, layer_of, 2)
    lines = describe(groups)
    assert len(lines) == len(groups)
    assert any(
        re.match(r"layer 0 .* 1 tensors .* 28 parameters .* lr 1\.25e-05 .* decay 0\.01", line) for line in lines
    )
    assert any(line.startswith("heads, no decay") for line in lines)
    names = [group["name"] for group in parameter_groups(Tower(), OptimizerConfig(), is_head, layer_of, 2)]
    assert sorted(names) == ["backbone", "backbone, no decay", "heads, no decay"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1.0), ("eps", float("nan")), ("betas", (0.9, 1.0)), ("layer_decay", 0.0), ("layer_decay", 1.1)],
)
def test_impossible_settings_are_refused(field: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{field}"):
        OptimizerConfig(**{field: value}).validate()  # type: ignore[arg-type]
    OptimizerConfig().validate()


@pytest.mark.gpu
def test_fused_where_there_is_cuda() -> None:
    groups = parameter_groups(Tower().cuda(), OptimizerConfig(), is_head, layer_of, 2)
    optimizer = make_optimizer(groups, OptimizerConfig(), torch.device("cuda"))
    assert all(group["fused"] for group in optimizer.param_groups)
