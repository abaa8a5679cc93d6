"""The benchmark's yardstick computes what we compute, only in another way."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vidsim.data.collators import PretrainCollator
from vidsim.data.masking import MaskingConfig
from vidsim.data.tags import TagVocabulary
from vidsim.modeling.build import ModelConfig, build_encoder, build_processor
from vidsim.pretrain.config import ObjectivesConfig
from vidsim.pretrain.module import PretrainModule


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


yardstick = load("yardstick")
HALF = MaskingConfig(mlm_probability=0.5, mfm_probability=0.5)


@pytest.fixture
def ours(small_data: Any) -> tuple[PretrainModule, dict[str, Any], int]:
    videos, tokenizer = small_data.videos, small_data.tokenizer()
    config = ModelConfig(hidden_size=8, num_layers=2, num_heads=2, embedding_dim=4, dropout=0.0)
    tags = TagVocabulary.build(videos, size=4)
    torch.manual_seed(0)
    encoder, _ = build_encoder(config, tokenizer, videos.streams)
    module = PretrainModule(encoder, ObjectivesConfig(), num_tags=tags.size, seed=3).train()
    # Fresh weights make nearly even scores, which would hide a wrong term.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3.0).add_(torch.randn_like(parameter), alpha=0.1)
    processor = build_processor(config, tokenizer, videos.streams)
    collator = PretrainCollator(processor, tags=tags, masking=HALF, seed=3)
    # The published loss has no word for a video without tags; every third of these has none.
    rows = [{**row, "epoch": 0} for row in videos if row["tags"]]
    return module, collator(rows), tags.size


def test_the_losses_are_ours(ours: tuple[PretrainModule, dict[str, Any], int]) -> None:
    module, batch, num_tags = ours
    (window,) = module.windows([batch], 0)
    expected = module(batch, window)
    found = yardstick.Yardstick(module).train()(yardstick.pad_batch(batch, num_tags))
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    total = sum(module.weights[name] * loss.item() for name, loss in expected.items())
    assert yardstick.total(found).item() == pytest.approx(total, rel=1e-5)


def test_masks_drawn_on_the_host_spare_special_tokens_and_padding(
    ours: tuple[PretrainModule, dict[str, Any], int], small_data: Any
) -> None:
    _, batch, num_tags = ours
    tokenizer = small_data.tokenizer()
    clean = {name: value for name, value in batch.items() if not name.startswith(("mlm", "mfm"))}
    clean |= {"input_ids": torch.full_like(batch["input_ids"], tokenizer.convert_tokens_to_ids("w3"))}
    clean["input_ids"][:, 0] = tokenizer.cls_token_id
    clean |= {"frame_features": batch["mfm_targets"]}
    padded = yardstick.pad_batch(clean, num_tags)
    torch.manual_seed(0)
    masked = yardstick.mask_on_host(padded, set(tokenizer.all_special_ids), tokenizer.mask_token_id, len(tokenizer))
    assert masked.input_ids.shape == (len(batch["row_ids"]), 36)
    chosen = masked.mlm_labels != -100
    assert 0 < chosen.sum() < chosen.numel() / 2
    assert not chosen[:, 0].any()
    assert torch.equal(masked.mlm_labels[chosen], padded.input_ids[chosen])
    assert torch.equal(masked.input_ids[~chosen], padded.input_ids[~chosen])
    assert masked.mfm_labels.any()
    assert not masked.mfm_labels[padded.frame_mask == 0].any()
    assert not masked.frames[masked.mfm_labels].any()
    assert torch.equal(masked.clean_frames, padded.frames)
