from __future__ import annotations

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.balance import BalanceConfig, LossBalancer


def losses(shared: nn.Parameter) -> dict[str, torch.Tensor]:
    """Gradients on the shared parameter: (3, 4) with norm 5, and (0, 20) with norm 20."""
    return {"a": (shared * torch.tensor([3.0, 4.0])).sum(), "b": 20 * shared[1]}


def test_fixed_weights_stay() -> None:
    shared = nn.Parameter(torch.ones(2))
    balancer = LossBalancer(BalanceConfig(log=True), {"a": 2.0, "b": 0.5}, [shared])
    assert balancer.is_due(0)
    balancer.measure(losses(shared))
    assert balancer.norms == pytest.approx({"a": 5.0, "b": 20.0})
    assert balancer.current() == {"a": 2.0, "b": 0.5}


def test_gradient_norms_become_equal() -> None:
    """Factors 2 and 1/2: weighted norms are 10 and 10, the geometric mean of the factors is 1."""
    shared = nn.Parameter(torch.ones(2))
    balancer = LossBalancer(BalanceConfig(mode="gradient_norm"), {"a": 1.0, "b": 1.0}, [shared])
    assert balancer.current() == {"a": 1.0, "b": 1.0}
    balancer.measure(losses(shared))
    assert balancer.current() == pytest.approx({"a": 2.0, "b": 0.5})


def test_configured_weights_do_not_outweigh_the_norms() -> None:
    """Weighted norms are 2 · 5 and .5 · 20: alike already. With 8 and .5 they are 40 and 10: both become 20."""
    shared = nn.Parameter(torch.ones(2))
    for weights, expected in (
        ({"a": 2.0, "b": 0.5}, {"a": 2.0, "b": 0.5}),
        ({"a": 8.0, "b": 0.5}, {"a": 4.0, "b": 1.0}),
    ):
        balancer = LossBalancer(BalanceConfig(mode="gradient_norm"), weights, [shared])
        balancer.measure(losses(shared))
        assert balancer.current() == pytest.approx(expected)


def test_the_graph_is_kept_and_gradients_untouched() -> None:
    shared = nn.Parameter(torch.ones(2))
    balancer = LossBalancer(BalanceConfig(mode="gradient_norm"), {"a": 1.0, "b": 1.0}, [shared])
    both = losses(shared)
    balancer.measure(both)
    assert shared.grad is None
    (both["a"] + both["b"]).backward()
    assert shared.grad is not None
    assert shared.grad.tolist() == [3.0, 24.0]


def test_a_loss_with_nothing_to_do_says_nothing_about_its_scale() -> None:
    shared = nn.Parameter(torch.ones(2))
    balancer = LossBalancer(BalanceConfig(mode="gradient_norm", momentum=0.5), {"a": 1.0, "b": 1.0}, [shared])
    balancer.measure(losses(shared))
    balancer.measure({"a": 0 * shared.sum(), "b": 40 * shared[1]})
    assert balancer.norms == pytest.approx({"a": 5.0, "b": 30.0})


def test_state_goes_round() -> None:
    shared = nn.Parameter(torch.ones(2))
    first = LossBalancer(BalanceConfig(mode="gradient_norm"), {"a": 1.0, "b": 1.0}, [shared])
    first.measure(losses(shared))
    second = LossBalancer(BalanceConfig(mode="gradient_norm"), {"a": 1.0, "b": 1.0}, [shared])
    second.load_state(first.state())
    assert second.current() == first.current()


def test_cadence_below_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"balance\.every_steps"):
        BalanceConfig(every_steps=0).validate()
    for momentum in (-0.1, 1.0):
        with pytest.raises(UserError, match=r"balance\.momentum"):
            BalanceConfig(momentum=momentum).validate()
