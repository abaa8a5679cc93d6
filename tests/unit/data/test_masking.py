from __future__ import annotations

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.masking import MaskingConfig, mask_frames, mask_tokens, row_generator
from vidsim.data.schema import IGNORE_INDEX


def test_same_place_same_draws() -> None:
    first, second = row_generator(1, 2, "a").random(4), row_generator(1, 2, "a").random(4)
    assert (first == second).all()
    for other in (row_generator(2, 2, "a"), row_generator(1, 3, "a"), row_generator(1, 2, "b")):
        assert not (other.random(4) == first).any()


def test_shares_of_tokens() -> None:
    """80 % [MASK], 10 % random, 10 % kept, of 15 %."""
    ids = np.full(200_000, 7)
    masked, labels = mask_tokens(
        ids,
        np.ones_like(ids, dtype=bool),
        mask_token_id=3,
        vocab_size=1000,
        config=MaskingConfig(),
        generator=row_generator(0, 0, "x"),
    )
    chosen = labels != IGNORE_INDEX
    assert chosen.mean() == pytest.approx(0.15, abs=0.004)
    assert (labels[chosen] == 7).all()
    assert (masked[~chosen] == 7).all()
    assert (masked[chosen] == 3).mean() == pytest.approx(0.8, abs=0.01)
    assert (masked[chosen] == 7).mean() == pytest.approx(0.1, abs=0.01)


def test_special_tokens_are_never_chosen() -> None:
    ids = np.array([2, 3, 9, 3])
    maskable = np.array([False, False, True, False])
    config = MaskingConfig(mlm_probability=1.0, mlm_mask_fraction=1.0, mlm_random_fraction=0.0)
    masked, labels = mask_tokens(
        ids, maskable, mask_token_id=4, vocab_size=10, config=config, generator=row_generator(0, 0, "x")
    )
    assert masked.tolist() == [2, 3, 4, 3]
    assert labels.tolist() == [IGNORE_INDEX, IGNORE_INDEX, 9, IGNORE_INDEX]


def test_shares_of_frames() -> None:
    zeroed, predicted = mask_frames(200_000, config=MaskingConfig(), generator=row_generator(0, 0, "x"))
    assert predicted.mean() == pytest.approx(0.15, abs=0.004)
    assert (predicted | ~zeroed).all()
    assert zeroed.sum() / predicted.sum() == pytest.approx(0.9, abs=0.01)


def test_published_frame_mask() -> None:
    """The winner's code: 13.5 % masked, always zeros, no kept frame carries a loss."""
    config = MaskingConfig(mfm_probability=0.135, mfm_zero_fraction=1.0)
    zeroed, predicted = mask_frames(200_000, config=config, generator=row_generator(0, 0, "x"))
    assert (zeroed == predicted).all()
    assert zeroed.mean() == pytest.approx(0.135, abs=0.004)


def test_no_frames() -> None:
    zeroed, predicted = mask_frames(0, config=MaskingConfig(), generator=row_generator(0, 0, "x"))
    assert len(zeroed) == len(predicted) == 0


@pytest.mark.parametrize("field", ["mlm_probability", "mfm_zero_fraction"])
def test_shares_outside_0_and_1_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"masking.{field}"):
        MaskingConfig(**{field: 1.5}).validate()


def test_mask_and_random_above_1_are_refused() -> None:
    with pytest.raises(UserError, match="over 1"):
        MaskingConfig(mlm_mask_fraction=0.8, mlm_random_fraction=0.3).validate()
