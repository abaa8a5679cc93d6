from __future__ import annotations

import math

import pytest
import torch

from vidsim.modeling.embeddings import StreamEmbedding, build_sequence, checked_stream, take_rows


def _stream() -> StreamEmbedding:
    stream = StreamEmbedding(dim=1, max_length=3, width=2, layer_norm_eps=0.0)
    with torch.no_grad():
        stream.projection.weight.copy_(torch.tensor([[1.0], [0.0]]))
        stream.projection.bias.zero_()
        stream.position.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, 9.0], [0.0, 0.0]]))
        stream.modality.weight.copy_(torch.tensor([[0.0, 4.0]]))
    return stream


def test_stream_embedding_by_hand() -> None:
    # LayerNorm of two values is -1 and +1, whichever is the larger.
    features = torch.tensor([[[5.0], [5.0], [3.0]]])
    out = _stream()(features, torch.ones(1, 3, dtype=torch.bool))
    # (5, 4), (5, 13), (3, 4)
    torch.testing.assert_close(out, torch.tensor([[[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]]]))


def test_masked_features_are_never_looked_at() -> None:
    stream = _stream()
    features = torch.tensor([[[5.0], [math.nan], [math.inf]]], requires_grad=True)
    mask = torch.tensor([[True, False, False]])
    out = stream(features, mask)
    zeros = stream(torch.tensor([[[5.0], [0.0], [0.0]]]), mask)
    assert torch.equal(out, zeros)
    out[0, 0].sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    for parameter in stream.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_an_empty_stream_gives_zero_gradients_not_none() -> None:
    stream = _stream()
    features, mask = stream.empty(2)
    assert (features.shape, mask.shape) == ((2, 0, 1), (2, 0))
    stream(features, mask).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in stream.parameters())


def _sequence(num_before: int, first_position: int = 0):  # type: ignore[no-untyped-def]
    words = torch.tensor([[[10.0], [11.0], [12.0]], [[20.0], [21.0], [22.0]]])
    text_mask = torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    streams = {
        "frames": (torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]]), torch.tensor([[1, 1], [1, 0]]).bool()),
        "audio": (torch.tensor([[[7.0]], [[8.0]]]), torch.tensor([[0], [1]]).bool()),
    }
    return build_sequence(words, text_mask, streams, num_before=num_before, first_position=first_position)


def test_cls_first_puts_the_streams_behind_the_first_token() -> None:
    sequence = _sequence(1)
    assert sequence.embeds[..., 0].tolist() == [[10, 1, 2, 7, 11, 12], [20, 3, 4, 8, 21, 22]]
    assert sequence.mask.int().tolist() == [[1, 1, 1, 0, 1, 1], [1, 1, 0, 1, 1, 0]]
    assert sequence.position_ids.tolist() == [0, 0, 1, 0, 1, 2]


def test_text_cls_puts_the_streams_before_the_text() -> None:
    sequence = _sequence(0, first_position=2)
    assert sequence.embeds[..., 0].tolist() == [[1, 2, 7, 10, 11, 12], [3, 4, 8, 20, 21, 22]]
    assert sequence.mask.int().tolist() == [[1, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0]]
    assert sequence.position_ids.tolist() == [2, 3, 2, 2, 3, 4]


@pytest.mark.parametrize("num_before", [0, 1])
def test_split_undoes_the_assembly(num_before: int) -> None:
    sequence = _sequence(num_before)
    text, streams = sequence.split(sequence.embeds)
    assert text[..., 0].tolist() == [[10, 11, 12], [20, 21, 22]]
    assert list(streams) == ["frames", "audio"]
    assert streams["frames"][..., 0].tolist() == [[1, 2], [3, 4]]
    assert streams["audio"][..., 0].tolist() == [[7], [8]]


def test_compact_moves_real_positions_to_the_front_in_order() -> None:
    sequence = _sequence(1)
    embeds, mask, position_ids, back = sequence.compact()
    assert mask.int().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]
    assert embeds[..., 0].tolist() == [[10, 1, 2, 11, 12, 7], [20, 3, 8, 21, 4, 22]]
    assert position_ids.tolist() == [[0, 0, 1, 1, 2, 0], [0, 0, 0, 1, 1, 2]]
    assert torch.equal(take_rows(embeds, back), sequence.embeds)


def test_stream_shapes_are_checked() -> None:
    sizes = {"batch_size": 2, "dim": 3, "max_length": 4}
    features, mask = checked_stream("frames", torch.zeros(2, 4, 3), None, **sizes)
    assert mask.dtype == torch.bool
    assert mask.all()
    for shape in ((2, 4), (1, 4, 3), (2, 4, 2), (2, 5, 3)):
        with pytest.raises(ValueError, match=r"'frames'.*at most 4, 3"):
            checked_stream("frames", torch.zeros(shape), None, **sizes)
    with pytest.raises(ValueError, match=r"mask has \(2, 3\)"):
        checked_stream("frames", features, torch.ones(2, 3), **sizes)
