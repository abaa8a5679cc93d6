from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.tags import tag_bce
from vidsim.modeling.mixture_of_experts import Logistic, MixtureOfExperts, Tagger, TaggerConfig
from vidsim.modeling.towers import FusionTowers, TowersConfig


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def tagger(**options: Any) -> Tagger:
    torch.manual_seed(0)
    settings = {"streams": {"visual": (4, 2), "audio": (3, 3)}, "num_tags": 5, "num_experts": 3, **options}
    return Tagger(TaggerConfig(**settings)).eval()


def inputs(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"visual": torch.randn(count, 4, generator=generator), "audio": torch.randn(count, 3, generator=generator)}


def test_a_mixture_by_hand() -> None:
    # One tag, two experts, two inputs: gates 1 z1, 2 z2, 0; experts 3 z1 - 1, -1 z2 + .5.
    mixture = MixtureOfExperts(2, 1, 2)
    with torch.no_grad():
        mixture.gates.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        mixture.experts.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -1.0]]))
        mixture.experts.bias.copy_(torch.tensor([-1.0, 0.5]))
    z1, z2 = 0.6, -0.8
    shares = [math.exp(z1), math.exp(2 * z2), 1.0]
    share1, share2, _ = (share / sum(shares) for share in shares)
    expected = share1 * sigmoid(3 * z1 - 1) + share2 * sigmoid(-z2 + 0.5)
    found = mixture(torch.tensor([[z1, z2]])).sigmoid()
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_no_tag_is_more_probable_than_its_experts_have_a_share() -> None:
    mixture = MixtureOfExperts(2, 1, 1)
    with torch.no_grad():
        mixture.gates.weight.zero_()
        mixture.experts.bias.fill_(1000.0)  # sure of it, but with half of the share only
        mixture.experts.weight.zero_()
    assert mixture(torch.zeros(1, 2)).sigmoid().item() == pytest.approx(0.5)


def test_extremes_have_finite_losses_and_gradients() -> None:
    mixture = MixtureOfExperts(2, 1, 2)
    z = torch.tensor([[1.0, 0.0]])
    for bias in (-300.0, 300.0):
        with torch.no_grad():
            mixture.experts.weight.zero_()
            mixture.experts.bias.fill_(bias)
            mixture.gates.weight.copy_(torch.tensor([[400.0, 0.0], [-400.0, 0.0], [-400.0, 0.0]]))
        mixture.zero_grad()
        given = torch.zeros(1, dtype=torch.int64)
        loss = tag_bce(mixture(z), given, given)
        loss.backward()
        assert loss.item() == pytest.approx(max(-bias, 0.0), abs=1e-3)
        assert all(bool(p.grad.isfinite().all()) for p in mixture.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", [MixtureOfExperts(2, 3, 4), Logistic(2, 3)])
def test_every_tag_begins_near_its_share(head: MixtureOfExperts | Logistic) -> None:
    shares = torch.tensor([0.5, 0.01, 0.0001])
    head.start_at(shares)
    torch.testing.assert_close(head(torch.zeros(1, 2)).sigmoid()[0], shares)


def test_a_mixture_learns_what_one_regression_cannot() -> None:
    # The tag is there where both coordinates have one sign.
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    rows = (points.prod(dim=1) > 0).nonzero()[:, 0]
    losses = {}
    for name, options in (("mixture", {"num_experts": 4}), ("logistic", {"model": "logistic"})):
        model = tagger(streams={"only": (2, 2)}, num_tags=1, **options).train()
        model.fit_inputs({"only": torch.zeros(2)}, {"only": 1.0}, {"only": torch.eye(2)})
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.05)
        for _ in range(200):
            loss = tag_bce(model(only=points), torch.zeros_like(rows), rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["logistic"] > 0.65
    assert losses["mixture"] < 0.3


def test_streams_are_centred_scaled_projected_joined_and_brought_to_length_one() -> None:
    model = tagger()
    model.fit_inputs(
        {"visual": torch.tensor([1.0, 0.0, 0.0, 0.0]), "audio": torch.zeros(3)},
        {"visual": 2.0, "audio": 1.0},
        {"visual": torch.eye(4)[:, [0, 2]], "audio": torch.eye(3)},
    )
    found = model.inputs({"visual": torch.tensor([[2.0, 9.0, 3.0, 9.0]]), "audio": torch.tensor([[0.0, 4.0, 0.0]])})
    expected = torch.tensor([[2.0, 6.0, 0.0, 4.0, 0.0]])
    torch.testing.assert_close(found, expected / expected.norm())


@pytest.mark.parametrize("model", ["mixture", "logistic"])
def test_save_and_load(tmp_path: Path, model: Any) -> None:
    made = tagger(model=model)
    made.fit_inputs(
        {"visual": torch.ones(4), "audio": torch.ones(3)},
        {"visual": 0.5, "audio": 3.0},
        {"visual": torch.randn(4, 2), "audio": torch.randn(3, 3)},
    )
    made.save(tmp_path / "m")
    loaded = Tagger.load(tmp_path / "m").eval()
    assert loaded.config == made.config
    assert torch.equal(loaded(**inputs(6)), made(**inputs(6)))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no tagger that can be read"):
        Tagger.load(tmp_path / "m")


def test_another_model_is_not_taken_for_a_tagger(tmp_path: Path) -> None:
    FusionTowers(TowersConfig(streams={"visual": 4}, hidden=(2,), embedding_dim=2)).save(tmp_path)
    with pytest.raises(ValueError, match=r"config.json does not describe tagger"):
        Tagger.load(tmp_path)


def test_what_cannot_be_is_refused() -> None:
    for options in (
        {"streams": {}},
        {"streams": {"visual": (4, 5)}},
        {"streams": {"visual": (4, 0)}},
        {"num_tags": 0},
        {"num_experts": 0},
        {"model": "forest"},
    ):
        with pytest.raises(ValueError, match=r"stream|at least 1|model"):
            tagger(**options)
    with pytest.raises(ValueError, match=r"stream audio: \[B, 3\] expected, got nothing"):
        tagger()(visual=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"stream visual: \[B, 4\] expected, got \[2, 5\]"):
        tagger()(visual=torch.zeros(2, 5), audio=torch.zeros(2, 3))
