from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.triplet import triplet
from vidsim.modeling.mining import mine_negatives
from vidsim.modeling.towers import FusionTowers, TowersConfig


def towers(**options: Any) -> FusionTowers:
    torch.manual_seed(0)
    return FusionTowers(TowersConfig(**{"streams": {"visual": 6, "audio": 4}, "hidden": (16,), **options})).eval()


def inputs(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {"visual": torch.randn(count, 6, generator=generator), "audio": torch.randn(count, 4, generator=generator)}


def test_late_fusion_is_the_product_of_two_towers_and_early_one_tower_of_both() -> None:
    videos = inputs(5)
    late = towers(embedding_dim=8)
    product = late.towers["visual"](videos["visual"]) * late.towers["audio"](videos["audio"])
    torch.testing.assert_close(late(**videos), product / product.norm(dim=-1, keepdim=True))
    early = towers(embedding_dim=8, fusion="early")
    joined = early.towers["all"](torch.cat([videos["visual"], videos["audio"]], dim=-1))
    torch.testing.assert_close(early(**videos), joined / joined.norm(dim=-1, keepdim=True))


def test_the_defaults_are_the_papers_best_network() -> None:
    model = FusionTowers(TowersConfig(streams={"visual": 3, "audio": 2}))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "towers.visual.0.weight": (4000, 3),
        "towers.visual.2.weight": (256, 4000),
        "towers.audio.0.weight": (4000, 2),
        "towers.audio.2.weight": (256, 4000),
    }
    torch.testing.assert_close(model(visual=torch.randn(2, 3), audio=torch.randn(2, 2)).norm(dim=-1), torch.ones(2))


def test_inputs_are_centred_and_scaled() -> None:
    plain, fitted = towers(), towers()
    videos = inputs(50)
    odd = {name: value * 1000 + 7 for name, value in videos.items()}
    odd["audio"][:, 2] = 3.0  # never varies
    fitted.fit_inputs(
        *({name: reduce(value, dim=0) for name, value in odd.items()} for reduce in (torch.mean, torch.std))
    )
    standard = {name: (value - value.mean(0)) / value.std(0) for name, value in videos.items()}
    standard["audio"][:, 2] = 0.0
    torch.testing.assert_close(fitted(**odd), plain(**standard), atol=1e-4, rtol=0)


@pytest.mark.parametrize("hidden", [(32,), (32, 16)])
@pytest.mark.parametrize("fusion", ["early", "late"])
@pytest.mark.parametrize("mining", ["random", "semihard", "hardest"])
def test_both_fusions_learn_from_a_cold_start(fusion: Any, mining: Any, hidden: tuple[int, ...]) -> None:
    # Ten topics, each half told by one stream; the positive of a video is another of its topic.
    generator = torch.Generator().manual_seed(3)
    topic = torch.arange(40) % 10
    centres = torch.randn(10, 10, generator=generator)
    points = centres[topic] + 0.3 * torch.randn(40, 10, generator=generator)
    videos = {"visual": points[:, :6], "audio": points[:, 6:]}
    positive = (torch.arange(40) + 10) % 40
    excluded = (topic[:, None] == topic[None]).nonzero(as_tuple=True)
    model = towers(fusion=fusion, hidden=hidden, embedding_dim=8).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    losses = []
    for step in range(50):
        embedding = model(**videos)
        draw = torch.Generator().manual_seed(step)
        negative = mine_negatives(
            embedding, embedding[positive], embedding, strategy=mining, excluded=excluded, generator=draw
        )
        loss = triplet(embedding, embedding[positive], embedding[negative], margin=0.3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    similarity = model(**videos).detach() @ model(**videos).detach().T
    same = topic[:, None] == topic[None]
    assert similarity[same].mean() > similarity[~same].mean() + 0.3


def test_save_and_load(tmp_path: Path) -> None:
    model = towers(hidden=(8, 4), embedding_dim=5, fusion="early", dropout=0.1)
    model.fit_inputs(
        {"visual": torch.ones(6), "audio": torch.ones(4)}, {"visual": torch.ones(6), "audio": torch.ones(4)}
    )
    model.save(tmp_path / "m")
    loaded = FusionTowers.load(tmp_path / "m").eval()
    assert loaded.config == model.config
    assert torch.equal(loaded(**inputs(3)), model(**inputs(3)))
    (tmp_path / "m" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no towers that can be read"):
        FusionTowers.load(tmp_path / "m")
    with pytest.raises(ValueError, match="no towers that can be read"):
        FusionTowers.load(tmp_path)


def test_what_cannot_be_is_refused() -> None:
    for options in ({"streams": {}}, {"hidden": (0,)}, {"fusion": "mid"}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=r"stream|width|fusion|dropout"):
            towers(**options)
    with pytest.raises(ValueError, match=r"stream audio: \[B, 4\] expected, got nothing"):
        towers()(visual=torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"stream visual: \[B, 6\] expected, got \[2, 5\]"):
        towers()(visual=torch.zeros(2, 5), audio=torch.zeros(2, 4))
