"""Token and frame masking of a whole batch: rows and their keys in, what to hide and to predict out.

Masks are a pure function of (seed, epoch, video id), so that a resumed run, another number of workers or
another number of processes sees the same masks. The draws come from a hash of the row's key and a counter:
nothing is kept between rows, and a batch is drawn at once.

Legend: B videos, T text tokens, F frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vidsim.common.errors import UserError
from vidsim.data.schema import IGNORE_INDEX

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TOKEN_CHOICE, _TOKEN_ACTION, _TOKEN_RANDOM, _FRAME_CHOICE, _FRAME_ACTION = range(5)


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


def row_keys(seed: int, epochs: Sequence[int], row_ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """What the draws of each row follow from, uint64 [B]."""
    digests = [
        hashlib.blake2b(f"{seed}/{epoch}/{row_id}".encode(), digest_size=8).digest()
        for epoch, row_id in zip(epochs, row_ids, strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def uniform(keys: npt.NDArray[np.uint64], kind: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers of [0, 1) by the splitmix64 generator (Steele, Lea, Flood 2014), which can start anywhere.

    Args:
        keys: Of the rows, uint64 [B].
        kind: Which of a row's sequences, below 2**16.
        count: Numbers of each row; the first ones are the same whatever `count` is.

    Returns:
        float64 [B, count].
    """
    counter = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(kind << 32)
    state = keys[:, None] + counter * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return (state >> np.uint64(11)) * 2.0**-53


def mask_tokens(
    token_ids: npt.NDArray[np.int64],
    maskable: npt.NDArray[np.bool_],
    keys: npt.NDArray[np.uint64],
    *,
    mask_token_id: int,
    vocab_size: int,
    config: MaskingConfig,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hide tokens for masked language modelling (BERT, §3.1: 80 % [MASK], 10 % random, 10 % unchanged).

    Args:
        token_ids: int64 [B, T].
        maskable: bool [B, T], False for special tokens and padding.
        keys: uint64 [B], see `row_keys`.
        mask_token_id: Id of [MASK].
        vocab_size: Random replacements are drawn from [0, vocab_size).
        config: The shares.

    Returns:
        Masked ids int64 [B, T] and labels int64 [B, T] with IGNORE_INDEX where nothing is predicted.
    """
    length = token_ids.shape[1]
    chosen = (uniform(keys, _TOKEN_CHOICE, length) < config.mlm_probability) & maskable
    action = uniform(keys, _TOKEN_ACTION, length)
    to_mask = chosen & (action < config.mlm_mask_fraction)
    to_random = chosen & ~to_mask & (action < config.mlm_mask_fraction + config.mlm_random_fraction)
    random_ids = (uniform(keys, _TOKEN_RANDOM, length) * vocab_size).astype(np.int64)
    masked = np.where(to_mask, mask_token_id, np.where(to_random, random_ids, token_ids))
    return masked, np.where(chosen, token_ids, IGNORE_INDEX)


def mask_frames(
    frame_mask: npt.NDArray[np.bool_], keys: npt.NDArray[np.uint64], *, config: MaskingConfig
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Choose frames for masked frame modelling.

    Args:
        frame_mask: bool [B, F], frames that are there.
        keys: uint64 [B], see `row_keys`.
        config: The shares.

    Returns:
        `zeroed` bool [B, F], frames whose features the encoder sees as zeros, and `predicted` bool [B, F],
        frames that carry a loss. `zeroed` is a subset of `predicted`.
    """
    length = frame_mask.shape[1]
    predicted = (uniform(keys, _FRAME_CHOICE, length) < config.mfm_probability) & frame_mask
    return predicted & (uniform(keys, _FRAME_ACTION, length) < config.mfm_zero_fraction), predicted
