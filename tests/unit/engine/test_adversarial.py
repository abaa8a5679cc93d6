from __future__ import annotations

import pytest
import torch
from torch import nn

from vidsim.common.errors import UserError
from vidsim.engine.adversarial import FgmConfig, attacked


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(3, 2)
        self.other = nn.Linear(2, 1)


def test_the_move_by_hand() -> None:
    module = Words()
    with torch.no_grad():
        module.word_embeddings.weight.zero_()
    module.word_embeddings.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    module.other.weight.grad = torch.ones(1, 2)
    other = module.other.weight.detach().clone()
    with attacked(module, FgmConfig(epsilon=0.5)):
        # g / |g| = g / 5
        expected = [[0.3, 0.0], [0.0, 0.4], [0.0, 0.0]]
        assert module.word_embeddings.weight.tolist() == [pytest.approx(row) for row in expected]
        assert torch.equal(module.other.weight, other)


def test_it_raises_the_loss_and_adds_to_the_gradient() -> None:
    torch.manual_seed(0)
    module = Words()
    ids = torch.tensor([0, 1, 2])

    def loss() -> torch.Tensor:
        return (module.other(module.word_embeddings(ids)) - 1).pow(2).mean()

    clean = loss()
    clean.backward()
    assert module.other.weight.grad is not None
    before = module.other.weight.grad.clone()
    with attacked(module, FgmConfig(epsilon=0.1)):
        attack = loss()
        attack.backward()
    assert attack.item() > clean.item()
    assert not torch.equal(module.other.weight.grad, before)


def test_the_old_bits_come_back_even_after_an_error() -> None:
    torch.manual_seed(0)
    module = Words()
    own = module.word_embeddings.weight.detach().clone()
    module.word_embeddings.weight.grad = torch.randn(3, 2)
    with pytest.raises(RuntimeError, match="inside"), attacked(module, FgmConfig(epsilon=1e6)):
        raise RuntimeError("inside")
    assert torch.equal(module.word_embeddings.weight, own)


@pytest.mark.parametrize("gradient", [None, torch.zeros(3, 2)])
def test_without_a_gradient_nothing_moves(gradient: torch.Tensor | None) -> None:
    module = Words()
    module.word_embeddings.weight.grad = gradient
    own = module.word_embeddings.weight.detach().clone()
    with attacked(module, FgmConfig()):
        assert torch.equal(module.word_embeddings.weight, own)


def test_a_tied_matrix_is_found_under_any_of_its_names_and_moved_once() -> None:
    module = nn.ModuleDict({"decoder": nn.Linear(2, 3, bias=False), "encoder": Words()})
    words = module["encoder"].word_embeddings
    module["decoder"].weight = words.weight
    own = words.weight.detach().clone()
    words.weight.grad = torch.ones(3, 2)
    with attacked(module, FgmConfig(epsilon=1.0)):
        assert (words.weight - own).norm().item() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("name", ["embeddings.weight", "words.weight", ""])
def test_a_name_that_fits_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no trainable parameter"), attacked(Words(), FgmConfig(parameter=name)):
        pass


def test_a_move_of_no_length_is_refused() -> None:
    with pytest.raises(UserError, match=r"fgm\.epsilon"):
        FgmConfig(epsilon=0.0).validate()
    FgmConfig().validate()
