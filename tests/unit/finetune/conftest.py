"""A small checkpoint to finetune and to embed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vidsim.modeling.build import ModelConfig, build_encoder, build_processor, save_encoder


@pytest.fixture(scope="session")
def checkpoint(small_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained encoder for `small_data`; embeddings of width 4, hidden states of width 8."""
    folder = tmp_path_factory.mktemp("checkpoint")
    sizes: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "embedding_dim": 4}
    config = ModelConfig(**sizes, max_title_tokens=4, max_frames=4, dropout=0.2)
    tokenizer, streams = small_data.tokenizer(), small_data.videos.streams
    torch.manual_seed(0)
    encoder, _ = build_encoder(config, tokenizer, streams)
    with torch.no_grad():  # untrained embeddings are all alike: spread them
        encoder.embedding_head.projection.weight.mul_(50)
        encoder.streams["frames"].projection.weight.mul_(30)
    save_encoder(encoder, build_processor(config, tokenizer, streams), folder)
    return folder
