from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from vidsim.data.collators import encode_rows
from vidsim.data.pairs import Pairs, read_pairs
from vidsim.engine.accelerator import make_accelerator
from vidsim.modeling.objectives.mfm import MfmConfig
from vidsim.modeling.objectives.mlm import MlmConfig
from vidsim.modeling.objectives.vtc import VtcConfig
from vidsim.pretrain.evaluate import held_out_losses, probe_spearman

OBJECTIVES = {"vtc": VtcConfig(weight=2.0), "mlm": MlmConfig(weight=3.0), "mfm": MfmConfig(weight=5.0)}


@pytest.fixture
def made(setup: Callable[..., Any]) -> Any:
    made = setup(objectives=OBJECTIVES, dropout=0.3)
    made.module.eval()
    return made


def evaluate(made: Any, rows: Any, batch_size: int) -> dict[str, float]:
    accelerator = make_accelerator("fp32")
    with torch.no_grad():
        return held_out_losses(made.module, accelerator, made.videos, np.array(rows), made.collator, batch_size)


def test_one_chunk_is_one_batch(made: Any) -> None:
    result = evaluate(made, range(10), 10)
    expected = {name: loss.item() for name, loss in made.losses(made.batch(range(10), epoch=-1)).items()}
    assert list(result) == ["held_out/vtc", "held_out/mlm", "held_out/mfm", "held_out/loss"]
    for name, value in expected.items():
        assert result[f"held_out/{name}"] == pytest.approx(value, rel=1e-6)
    total = 2 * expected["vtc"] + 3 * expected["mlm"] + 5 * expected["mfm"]
    assert result["held_out/loss"] == pytest.approx(total, rel=1e-6)


def test_chunks_count_by_their_rows(made: Any) -> None:
    """11 rows, at least 5 a chunk: 6 and 5."""
    result = evaluate(made, range(11), 5)
    parts = [made.losses(made.batch(rows, epoch=-1)) for rows in (range(6), range(6, 11))]
    for name in OBJECTIVES:
        expected = (6 * parts[0][name].item() + 5 * parts[1][name].item()) / 11
        assert result[f"held_out/{name}"] == pytest.approx(expected, rel=1e-6)


def test_fewer_rows_than_asked_are_one_chunk(made: Any) -> None:
    assert evaluate(made, [3, 8], 64) == evaluate(made, [3, 8], 2)


def test_masks_are_the_same_at_every_evaluation_and_no_epochs_of_training(made: Any) -> None:
    first = evaluate(made, range(12), 12)
    torch.manual_seed(99)
    assert evaluate(made, range(12), 12) == first
    for epoch in range(3):
        trained = made.losses(made.batch(range(12), epoch=epoch))
        assert trained["mlm"].item() != pytest.approx(first["held_out/mlm"], rel=1e-4)


def test_the_probe_is_spearman_of_masked_means(made: Any, small_data: Any) -> None:
    pairs = read_pairs(small_data.pairs)
    accelerator = make_accelerator("fp32")
    result = probe_spearman(made.module, accelerator, made.videos, pairs, made.collator.processor, 7)
    means = {}
    with torch.no_grad():
        for video in made.videos:
            output = made.module.encode(encode_rows([video], made.collator.processor))
            means[video["id"]] = output.last_hidden_state[0][output.mask[0]].mean(0)
        cosines = [
            torch.cosine_similarity(means[first], means[second], dim=0).item()
            for first, second in zip(pairs.id1, pairs.id2, strict=True)
        ]
    assert result == {"probe/spearman": pytest.approx(spearmanr(cosines, pairs.score).statistic, abs=1e-6)}


def test_the_probe_follows_the_order_of_the_pairs(made: Any, small_data: Any) -> None:
    pairs = read_pairs(small_data.pairs)
    turned = Pairs(pairs.id2[::-1], pairs.id1[::-1], pairs.score[::-1].copy())
    accelerator = make_accelerator("fp32")
    processor = made.collator.processor
    results = [probe_spearman(made.module, accelerator, made.videos, each, processor, 64) for each in (pairs, turned)]
    assert results[0]["probe/spearman"] == pytest.approx(results[1]["probe/spearman"], abs=1e-6)
