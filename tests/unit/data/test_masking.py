from __future__ import annotations

import numpy as np
import pytest

from vidsim.common.errors import UserError
from vidsim.data.masking import MaskingConfig, mask_frames, mask_tokens, row_keys, uniform
from vidsim.data.schema import IGNORE_INDEX

NUM_ROWS, LENGTH = 400, 500
KEYS = row_keys(0, [0] * NUM_ROWS, [f"v{number}" for number in range(NUM_ROWS)])


def test_same_place_same_key() -> None:
    keys = row_keys(1, [2, 3, 2], ["a", "a", "b"])
    assert keys.tolist() == [row_keys(1, [epoch], [name])[0] for epoch, name in ((2, "a"), (3, "a"), (2, "b"))]
    assert len({*keys.tolist(), *row_keys(2, [2, 3, 2], ["a", "a", "b"]).tolist()}) == 6


def test_splitmix64_by_its_published_outputs() -> None:
    """The first outputs of the reference generator seeded with 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    draws = uniform(np.array([1234567], dtype=np.uint64), 0, 4)
    assert (draws[0] * 2**53).astype(np.uint64).tolist() == [value >> 11 for value in expected]


def test_draws_do_not_depend_on_the_batch() -> None:
    alone = uniform(KEYS[7:8], 3, 5)[0]
    assert (uniform(KEYS, 3, 9)[7, :5] == alone).all()
    assert not np.isin(uniform(KEYS[7:8], 2, 5), alone).any()


def test_draws_are_even_and_independent() -> None:
    first, second = uniform(KEYS, 0, LENGTH), uniform(KEYS, 1, LENGTH)
    for draws in (first, second):
        assert (draws >= 0).all()
        assert (draws < 1).all()
        counts, _ = np.histogram(draws, bins=20, range=(0, 1))
        assert counts == pytest.approx(draws.size / 20, rel=0.05)
    pairs = [(first, second), (first[:, 1:], first[:, :-1]), (first[1:], first[:-1])]
    for left, right in pairs:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.01


def test_shares_of_tokens() -> None:
    """80 % [MASK], 10 % random, 10 % kept, of 15 %."""
    ids = np.full((NUM_ROWS, LENGTH), 7)
    masked, labels = mask_tokens(
        ids, np.ones_like(ids, dtype=bool), KEYS, mask_token_id=3, vocab_size=1000, config=MaskingConfig()
    )
    chosen = labels != IGNORE_INDEX
    assert chosen.mean() == pytest.approx(0.15, abs=0.004)
    assert (labels[chosen] == 7).all()
    assert (masked[~chosen] == 7).all()
    assert (masked[chosen] == 3).mean() == pytest.approx(0.8, abs=0.01)
    assert (masked[chosen] == 7).mean() == pytest.approx(0.1, abs=0.01)
    drawn = masked[chosen & ~np.isin(masked, [3, 7])]
    assert len(np.unique(drawn)) > 900
    assert (drawn.min(), drawn.max()) == (pytest.approx(0, abs=9), pytest.approx(999, abs=9))


def test_special_tokens_are_never_chosen() -> None:
    ids = np.array([[2, 3, 9, 3]])
    maskable = np.array([[False, False, True, False]])
    config = MaskingConfig(mlm_probability=1.0, mlm_mask_fraction=1.0, mlm_random_fraction=0.0)
    masked, labels = mask_tokens(ids, maskable, KEYS[:1], mask_token_id=4, vocab_size=10, config=config)
    assert masked.tolist() == [[2, 3, 4, 3]]
    assert labels.tolist() == [[IGNORE_INDEX, IGNORE_INDEX, 9, IGNORE_INDEX]]


def test_shares_of_frames() -> None:
    frame_mask = np.ones((NUM_ROWS, LENGTH), dtype=bool)
    frame_mask[:, 400:] = False
    zeroed, predicted = mask_frames(frame_mask, KEYS, config=MaskingConfig())
    assert predicted[:, :400].mean() == pytest.approx(0.15, abs=0.004)
    assert not predicted[:, 400:].any()
    assert (predicted | ~zeroed).all()
    assert zeroed.sum() / predicted.sum() == pytest.approx(0.9, abs=0.01)


def test_published_frame_mask() -> None:
    """The winner's code: 13.5 % masked, always zeros, no kept frame carries a loss."""
    config = MaskingConfig(mfm_probability=0.135, mfm_zero_fraction=1.0)
    zeroed, predicted = mask_frames(np.ones((NUM_ROWS, LENGTH), dtype=bool), KEYS, config=config)
    assert (zeroed == predicted).all()
    assert zeroed.mean() == pytest.approx(0.135, abs=0.004)


def test_no_frames() -> None:
    zeroed, predicted = mask_frames(np.ones((2, 0), dtype=bool), KEYS[:2], config=MaskingConfig())
    assert zeroed.shape == predicted.shape == (2, 0)


@pytest.mark.parametrize("field", ["mlm_probability", "mfm_zero_fraction"])
def test_shares_outside_0_and_1_are_refused(field: str) -> None:
    with pytest.raises(UserError, match=f"masking.{field}"):
        MaskingConfig(**{field: 1.5}).validate()


def test_mask_and_random_above_1_are_refused() -> None:
    with pytest.raises(UserError, match="over 1"):
        MaskingConfig(mlm_mask_fraction=0.8, mlm_random_fraction=0.3).validate()
