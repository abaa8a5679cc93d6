"""Token and frame masking: (row, generator) in, (masked row, what to predict) out. No global randomness.

Masks are a pure function of (seed, epoch, video id), so that a resumed run, another number of workers or
another number of processes sees the same masks.

Legend: T text tokens of one video, F frames, D width of a frame feature.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from vidsim.common.errors import UserError
from vidsim.data.schema import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """How much is hidden from the encoder during pretraining."""

    mlm_probability: float = 0.15
    """Share of text tokens that are predicted (BERT; the 2021 winner: .15, in job 6 .25)."""
    mlm_mask_fraction: float = 0.8
    """Share of the predicted tokens that become [MASK]."""
    mlm_random_fraction: float = 0.1
    """Share of the predicted tokens that become a random token; the rest stay as they are."""
    mfm_probability: float = 0.15
    """Share of frames that are predicted. The winner's code draws .15 but lets only the 90 % that it
    zeroes carry a loss: .135 with `mfm_zero_fraction` 1 is the same."""
    mfm_zero_fraction: float = 0.9
    """Share of the predicted frames whose features become zero; the rest stay as they are."""

    def validate(self) -> None:
        """Refuse shares outside [0, 1]."""
        for name, value in vars(self).items():
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{value} is not within 0 and 1", field=f"masking.{name}")
        if self.mlm_mask_fraction + self.mlm_random_fraction > 1.0:
            raise UserError(
                "mlm_mask_fraction + mlm_random_fraction is over 1", field="masking", fix="lower one of them"
            )


def row_generator(seed: int, epoch: int, row_id: str) -> np.random.Generator:
    """The generator of one video in one epoch."""
    key = hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))


def mask_tokens(
    token_ids: np.ndarray,
    maskable: np.ndarray,
    *,
    mask_token_id: int,
    vocab_size: int,
    config: MaskingConfig,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Hide tokens for masked language modelling (BERT, §3.1: 80 % [MASK], 10 % random, 10 % unchanged).

    Args:
        token_ids: int64 [T], without padding.
        maskable: bool [T], False for special tokens.
        mask_token_id: Id of [MASK].
        vocab_size: Random replacements are drawn from [0, vocab_size).
        config: The shares.
        generator: Of this row, see `row_generator`.

    Returns:
        Masked ids int64 [T] and labels int64 [T] with IGNORE_INDEX where nothing is predicted.
    """
    draws = generator.random((2, len(token_ids)))
    random_ids = generator.integers(0, vocab_size, len(token_ids))
    chosen = (draws[0] < config.mlm_probability) & maskable
    to_mask = chosen & (draws[1] < config.mlm_mask_fraction)
    to_random = chosen & ~to_mask & (draws[1] < config.mlm_mask_fraction + config.mlm_random_fraction)
    masked = np.where(to_mask, mask_token_id, np.where(to_random, random_ids, token_ids))
    return masked, np.where(chosen, token_ids, IGNORE_INDEX)


def mask_frames(
    num_frames: int, *, config: MaskingConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Choose frames for masked frame modelling.

    Args:
        num_frames: F, frames that this video has.
        config: The shares.
        generator: Of this row, see `row_generator`.

    Returns:
        `zeroed` bool [F], frames whose features the encoder sees as zeros, and `predicted` bool [F],
        frames that carry a loss. `zeroed` is a subset of `predicted`.
    """
    draws = generator.random((2, num_frames))
    predicted = draws[0] < config.mfm_probability
    return predicted & (draws[1] < config.mfm_zero_fraction), predicted
