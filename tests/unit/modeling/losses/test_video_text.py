from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vidsim.modeling.losses.video_text import info_nce, matching


def random_rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_info_nce_by_hand() -> None:
    # Cosines v.t = [[1, .6], [0, .8]], T = 1. Video to text: -1 + ln(e + e^.6), -.8 + ln(1 + e^.8);
    # text to video: -1 + ln(e + 1), -.8 + ln(e^.6 + e^.8).
    video = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    loss = info_nce(video, text, temperature=1.0)
    expected = (0.5130152524 + 0.3711006660 + 0.3132616875 + 0.5981388694) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_info_nce_is_symmetric_in_modalities_and_rows() -> None:
    video, text = random_rows(4, 3), random_rows(4, 3, seed=1)
    loss = info_nce(video, text)
    torch.testing.assert_close(info_nce(text, video), loss)
    torch.testing.assert_close(info_nce(video.flip(0), text.flip(0)), loss)
    torch.testing.assert_close(info_nce(video * 5, text * 0.2), loss)


def test_info_nce_ignores_invalid_rows() -> None:
    video, text = random_rows(4, 3), random_rows(4, 3, seed=1)
    valid = torch.tensor([True, False, True, True])
    expected = info_nce(video[valid], text[valid])
    torch.testing.assert_close(info_nce(video, text, valid=valid), expected)
    video[1] = 100.0
    text[1] = -3.0
    torch.testing.assert_close(info_nce(video, text, valid=valid), expected)


def test_info_nce_of_gathered_rows_adds_up() -> None:
    video, text = random_rows(5, 3), random_rows(5, 3, seed=1)
    valid = torch.tensor([True, False, True, True, True])
    whole = info_nce(video, text, valid=valid)
    parts = [
        info_nce(
            video[rows],
            text[rows],
            all_video=video,
            all_text=text,
            offset=rows.start,
            valid=valid[rows],
            all_valid=valid,
            denominator=torch.tensor(4.0),
        )
        for rows in (slice(0, 2), slice(2, 5))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole)


def test_info_nce_of_nothing_is_zero_with_gradient() -> None:
    video, text = random_rows(2, 3).requires_grad_(), random_rows(2, 3, seed=1).requires_grad_()
    loss = info_nce(video, text, valid=torch.tensor([False, False]))
    loss.backward()
    assert loss.item() == 0.0
    assert video.grad is not None
    assert video.grad.count_nonzero() == 0
    assert info_nce(video[:0], text[:0]).item() == 0.0


def test_info_nce_gradient() -> None:
    video, text = random_rows(3, 2).requires_grad_(), random_rows(3, 2, seed=1).requires_grad_()
    valid = torch.tensor([True, True, False])
    assert torch.autograd.gradcheck(lambda v, t: info_nce(v, t, valid=valid, temperature=0.5), (video, text))


def test_matching_by_hand() -> None:
    # (softplus(-1) + softplus(0)) / 2 and (softplus(0) + softplus(-2)) / 2, mean of the two.
    matched, mismatched = torch.tensor([1.0, 0.0, 9.0]), torch.tensor([0.0, -2.0, 9.0])
    loss = matching(matched, mismatched, torch.tensor([True, True, False]))
    rows = (0.3132616875 + 0.6931471806) / 2, (0.6931471806 + 0.1269280110) / 2
    assert loss.item() == pytest.approx(sum(rows) / 2, rel=1e-6)


def test_matching_gradient_and_nothing_valid() -> None:
    matched, mismatched = random_rows(3).requires_grad_(), random_rows(3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(matching, (matched, mismatched, torch.tensor([True, False, True])))
    loss = matching(matched, mismatched, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert matched.grad is not None
    assert matched.grad.count_nonzero() == 0
