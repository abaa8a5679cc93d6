"""Model FLOPs: the matrix products that a video needs, counted for its real tokens only.

A product of [n, k] and [k, m] is 2·n·k·m. Backward costs twice the forward, but once where the input needs no gradient
(the frames' projection, the candidate frames). Layer norms, softmax, dropout and the optimizer are not counted.
"""

from __future__ import annotations

from typing import Any

import torch

from vidsim.modeling.encoder import VideoTextEncoder


def encoder_flops(encoder: VideoTextEncoder, batch: dict[str, Any]) -> tuple[float, float]:
    """FLOPs of the forward pass over a batch: (all, those among them of the frames' projection)."""
    config: Any = encoder.config.text_config
    width, layers, inner = config.hidden_size, config.num_hidden_layers, config.intermediate_size
    frames = batch["frame_mask"].sum(dim=1).double()
    lengths = batch["attention_mask"].sum(dim=1).double() + frames
    weights = 4 * width**2 + 2 * width * inner  # query, key, value, output; the two feed-forward products
    tokens = float(lengths.sum())
    pairs = float((lengths**2).sum())
    projection = 2.0 * float(frames.sum()) * encoder.config.streams["frames"]["dim"] * width
    head = 2.0 * len(lengths) * width * encoder.config.embedding_dim
    return layers * (2.0 * tokens * weights + 4.0 * pairs * width) + projection + head, projection


def step_flops(encoder: VideoTextEncoder, batch: dict[str, Any], num_tags: int) -> float:
    """FLOPs of forward and backward of vtc, mlm and mfm over a masked batch."""
    config: Any = encoder.config.text_config
    width, vocab = config.hidden_size, config.vocab_size
    dim = encoder.config.streams["frames"]["dim"]
    tokens = float((batch["mlm_labels"] != -100).sum())
    masked, valid = float(batch["mfm_labels"].sum()), float(batch["frame_mask"].sum())
    forward, projection = encoder_flops(encoder, batch)
    heads = 2.0 * tokens * (width**2 + width * vocab)
    heads += 2.0 * masked * (width**2 + width * dim)
    heads += 2.0 * len(batch["row_ids"]) * width * num_tags
    candidates = 2.0 * masked * valid * dim
    return 3.0 * (forward - projection + heads) + 2.0 * (projection + candidates)


def num_tokens(batch: dict[str, Any]) -> int:
    """Real positions of a batch: text ids and frames."""
    return int(torch.sum(batch["attention_mask"]) + torch.sum(batch["frame_mask"]))
