from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, RoFormerConfig

from vidsim.modeling.attention import PACKED, Packing, can_pack, packed_attention
from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder

PACKABLE = ["bert", "roberta", "xlm-roberta", "electra", "distilbert"]
Batch = dict[str, Tensor]
EncoderOf = Callable[..., VideoTextEncoder]
MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]], dtype=torch.bool)
CLOSE = {"rtol": 0, "atol": 1e-5}


def test_packing_by_hand() -> None:
    packing = Packing.of(MASK)
    assert packing.places.tolist() == [0, 1, 2, 8, 10, 11]
    assert packing.bounds.tolist() == [0, 3, 3, 6]
    assert packing.bounds.dtype == torch.int32
    assert packing.lengths == [3, 0, 3]
    x = torch.arange(12.0).view(3, 4, 1)
    packed = packing.pack(x)
    assert packed.flatten().tolist() == [0, 1, 2, 8, 10, 11]
    assert packing.spread(packed)[..., 0].tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [8, 0, 10, 11]]


def test_attention_by_hand() -> None:
    # One head of width 1: video 1 has equal keys (its mean), video 3 one key that outweighs the others.
    packing = Packing.of(MASK)
    query = torch.ones(1, 1, 6, 1)
    key = torch.tensor([0.0, 0, 0, 0, 100, 0]).view(1, 1, 6, 1)
    value = torch.tensor([1.0, 2, 6, 7, 8, 9]).view(1, 1, 6, 1)
    attended, weights = packed_attention(nn.Identity(), query, key, value, None, packing=packing)
    assert weights is None
    assert attended.shape == (1, 6, 1, 1)
    torch.testing.assert_close(attended.flatten(), torch.tensor([3.0, 3, 3, 8, 8, 8]))


def test_scaling_by_hand() -> None:
    query, key = torch.tensor([1.0, 0]).view(1, 1, 2, 1), torch.tensor([0.0, 2]).view(1, 1, 2, 1)
    value = torch.tensor([0.0, 1]).view(1, 1, 2, 1)
    packing = Packing.of(torch.ones(1, 2, dtype=torch.bool))
    attended, _ = packed_attention(nn.Identity(), query, key, value, None, scaling=0.5, packing=packing)
    torch.testing.assert_close(attended.flatten(), torch.tensor([torch.sigmoid(torch.tensor(1.0)), 0.5]))


def test_the_ways_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, 2, 6, 4, generator=generator) for _ in range(3)]
    packing = Packing.of(MASK)
    one_by_one, _ = packed_attention(nn.Identity(), *parts, None, packing=packing)
    spread, _ = packed_attention(nn.Identity(), *parts, None, packing=replace(packing, lengths=None))
    torch.testing.assert_close(one_by_one, spread, **CLOSE)


def _both(model: VideoTextEncoder, batch: Batch) -> list[tuple[Any, dict[str, Tensor]]]:
    results = []
    for implementation in (PACKED, "sdpa"):
        model.text.set_attn_implementation(implementation)
        model.zero_grad(set_to_none=True)
        output = model(**batch)
        real = output.last_hidden_state[output.mask]
        (output.embedding.sum() + real.square().sum()).backward()
        results.append((output, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
    return results


@pytest.mark.parametrize("layout", ["cls_first", "text_cls"])
@pytest.mark.parametrize("family", PACKABLE)
def test_packed_is_padded(family: str, layout: str, encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(family, layout=layout)
    assert model.text.config._attn_implementation == PACKED
    (packed, packed_grads), (padded, padded_grads) = _both(model, batch)
    torch.testing.assert_close(packed.embedding, padded.embedding, **CLOSE)
    torch.testing.assert_close(packed.last_hidden_state[packed.mask], padded.last_hidden_state[padded.mask], **CLOSE)
    assert packed_grads.keys() == padded_grads.keys()
    for name, gradient in packed_grads.items():
        torch.testing.assert_close(gradient, padded_grads[name], rtol=1e-4, atol=2e-4, msg=name)


@pytest.mark.slow  # compiling takes a minute
def test_compiled_layers_change_nothing(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert")
    names = list(model.state_dict())
    (_, plain), _ = _both(model, batch)
    model.prepare_training(compile=True)
    (_, compiled), _ = _both(model, batch)
    assert list(model.state_dict()) == names
    for name, gradient in compiled.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-4, msg=name)
    shorter = {key: value[:2] for key, value in batch.items()}
    together = model(**batch).embedding[:2]
    torch.testing.assert_close(model(**shorter).embedding, together, **CLOSE)


def test_gradient_checkpointing_changes_nothing(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert")
    (_, plain), _ = _both(model, batch)
    model.prepare_training(gradient_checkpointing=True)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    (_, checkpointed), _ = _both(model, batch)
    for name, gradient in checkpointed.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-5, atol=1e-5, msg=name)


def test_no_layer_sees_a_padded_position(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert")
    seen: list[tuple[int, ...]] = []
    for module in model.text.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape[:2])))
    output = model(**batch)
    assert len(seen) == 2 * 6
    assert set(seen) == {(1, int(output.mask.sum()))}


def test_videos_do_not_see_each_other(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert")
    before = model(**batch).embedding
    batch["frame_features"][1] += 100
    after = model(**batch).embedding
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1], atol=1e-3)


def test_attention_dropout_is_drawn(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert").train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for layer in model.text.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    assert not torch.allclose(model(**batch).embedding, model(**batch).embedding, atol=1e-4)


@pytest.mark.parametrize("pooling", ["mean_unmasked", "attention_unmasked"])
def test_pooling_that_counts_padding_is_not_packed(pooling: str, encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert", pooling=pooling)
    packed = model(**batch).embedding
    model.text.set_attn_implementation("sdpa")
    assert torch.equal(packed, model(**batch).embedding)


def test_encoders_that_cannot_be_packed_are_not(encoder_of: EncoderOf) -> None:
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert not can_pack(encoder_of("modernbert").text)  # its local window would reach into the next video
    for config in (RoFormerConfig(**sizes), DebertaV2Config(**sizes)):  # they do not ask the attention interface
        model = VideoTextEncoder(VidsimConfig(text_config=config, streams={}, max_title_tokens=10))
        assert not can_pack(model.text)
        assert model.text.config._attn_implementation == "eager"


def test_a_caller_of_the_text_encoder_may_give_a_mask(encoder_of: EncoderOf) -> None:
    text = encoder_of("bert").text
    ids = torch.tensor([[2, 7, 8, 3]])
    mask = torch.tensor([[1, 1, 1, 0]])
    alone = text(input_ids=ids[:, :3]).last_hidden_state
    torch.testing.assert_close(text(input_ids=ids, attention_mask=mask).last_hidden_state[:, :3], alone, **CLOSE)


@pytest.mark.gpu
def test_varlen_is_padded_on_a_gpu(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert").cuda().eval()
    on_gpu = {key: value.cuda() for key, value in batch.items()}
    with torch.inference_mode():
        exact = model(**on_gpu).embedding
        with torch.autocast("cuda", torch.bfloat16):
            half = model(**on_gpu).embedding
            model.text.set_attn_implementation("sdpa")
            padded = model(**on_gpu).embedding
    torch.testing.assert_close(half, exact, rtol=0, atol=0.05)
    torch.testing.assert_close(half, padded, rtol=0, atol=0.05)
