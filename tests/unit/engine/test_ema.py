from __future__ import annotations

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.ema import EmaConfig, ExponentialMovingAverage


def module_of(value: float) -> nn.Linear:
    module = nn.Linear(2, 1)
    fill(module, value)
    return module


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_average_by_hand() -> None:
    module = module_of(0.0)
    ema = ExponentialMovingAverage(module, EmaConfig(decay=0.15))
    fill(module, 1.0)
    ema.update(module)  # d = min(.15, 1/10) = .1: 0 * .1 + 1 * .9
    fill(module, 2.0)
    ema.update(module)  # d = min(.15, 2/11) = .15: .9 * .15 + 2 * .85
    with ema.applied(module):
        assert module.weight.tolist() == [pytest.approx([1.835, 1.835])]
        assert module.bias.item() == pytest.approx(1.835)
    assert module.weight.tolist() == [[2.0, 2.0]]


def test_applied_restores_bit_for_bit_even_after_an_error() -> None:
    module = nn.Linear(50, 50)
    ema = ExponentialMovingAverage(module, EmaConfig())
    with torch.no_grad():
        module.weight.add_(torch.randn(50, 50) * 1e-3)
    own = module.weight.detach().clone()
    with ema.applied(module):
        assert not torch.equal(module.weight, own)
    assert torch.equal(module.weight, own)
    with pytest.raises(RuntimeError, match="inside"), ema.applied(module):
        raise RuntimeError("inside")
    assert torch.equal(module.weight, own)


def test_frozen_parameters_are_left_alone() -> None:
    module = module_of(1.0)
    module.bias.requires_grad_(False)
    ema = ExponentialMovingAverage(module, EmaConfig())
    assert set(ema.state_dict()) == {"num_updates", "average.weight"}
    with torch.no_grad():
        module.bias.fill_(5.0)
    with ema.applied(module):
        assert module.bias.item() == 5.0


def test_state_round_trip_continues_exactly() -> None:
    torch.manual_seed(0)
    module = nn.Linear(5, 5)
    straight = ExponentialMovingAverage(module, EmaConfig(decay=0.5))
    values = [torch.randn(5, 5) for _ in range(12)]

    def advance(ema: ExponentialMovingAverage, steps: range) -> None:
        for step in steps:
            with torch.no_grad():
                module.weight.copy_(values[step])
            ema.update(module)

    advance(straight, range(6))
    state = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    advance(straight, range(6, 12))
    resumed = ExponentialMovingAverage(nn.Linear(5, 5), EmaConfig(decay=0.5))
    resumed.load_state_dict(state)
    advance(resumed, range(6, 12))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(UserError, match=r"ema\.decay"):
        EmaConfig(decay=decay).validate()
    EmaConfig().validate()


@pytest.mark.gpu
def test_the_average_follows_the_module_to_the_gpu() -> None:
    module = module_of(1.0)
    ema = ExponentialMovingAverage(module, EmaConfig())
    module.cuda()
    ema.update(module)
    with ema.applied(module):
        assert module.weight.device.type == "cuda"
