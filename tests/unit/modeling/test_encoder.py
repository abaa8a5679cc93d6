from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoModel, PreTrainedConfig, RoFormerConfig

from vidsim.modeling.attention import PACKED
from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder

FAMILIES = ["bert", "roberta", "xlm-roberta", "electra", "modernbert", "distilbert"]
LAYOUTS = ["cls_first", "text_cls"]
Batch = dict[str, torch.Tensor]
EncoderOf = Callable[..., VideoTextEncoder]


def _row_alone(batch: Batch, row: int) -> Batch:
    """One row without any of its padding."""
    out = {}
    for features, mask in (
        ("input_ids", "attention_mask"),
        ("frame_features", "frame_mask"),
        ("audio_features", "audio_mask"),
    ):
        length = int(batch[mask][row].sum())
        out[features], out[mask] = (
            batch[features][row : row + 1, :length],
            batch[mask][row : row + 1, :length],
        )
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_matter(family: str, layout: str, encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(family, layout=layout)
    batch["frame_features"][batch["frame_mask"] == 0] = math.nan
    batch["audio_features"][batch["audio_mask"] == 0] = math.inf
    with torch.inference_mode():
        together = model(**batch)
        assert torch.isfinite(together.last_hidden_state).all()
        for row in range(3):
            alone = model(**_row_alone(batch, row))
            num_tokens, num_frames = alone.text_hidden.shape[1], alone.frame_hidden.shape[1]
            close = {"rtol": 0, "atol": 1e-5}
            torch.testing.assert_close(together.embedding[row], alone.embedding[0], **close)
            torch.testing.assert_close(together.text_hidden[row, :num_tokens], alone.text_hidden[0], **close)
            torch.testing.assert_close(together.frame_hidden[row, :num_frames], alone.frame_hidden[0], **close)
            torch.testing.assert_close(together.cls_hidden[row], alone.cls_hidden[0], **close)
            real = together.last_hidden_state[row][together.mask[row]]
            torch.testing.assert_close(real, alone.last_hidden_state[0], **close)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family: str, encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(family).train()
    for inputs in (batch, {key: batch[key] for key in ("input_ids", "attention_mask")}):
        model.zero_grad(set_to_none=True)
        output = model(**inputs)
        (output.embedding.sum() + output.last_hidden_state.square().sum()).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not any("pooler" in name for name, _ in model.named_parameters())


def test_shapes_and_alignment(encoder_of: EncoderOf, batch: Batch) -> None:
    output = encoder_of(layout="cls_first")(**batch)
    assert output.last_hidden_state.shape == (3, 9 + 8 + 4, 32)
    assert output.mask.dtype == torch.bool
    assert output.mask.sum(dim=1).tolist() == [21, 10, 11]
    assert output.embedding.shape == (3, 5)
    assert output.embedding.dtype == torch.float32
    torch.testing.assert_close(output.embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(F.normalize(output.projection, dim=1), output.embedding)
    hidden = output.last_hidden_state
    assert torch.equal(output.text_hidden, torch.cat([hidden[:, :1], hidden[:, 13:]], dim=1))
    assert torch.equal(output.frame_hidden, hidden[:, 1:9])
    assert torch.equal(output.cls_hidden, hidden[:, 0])


def test_text_cls_layout_has_its_cls_behind_the_streams(encoder_of: EncoderOf, batch: Batch) -> None:
    output = encoder_of(layout="text_cls")(**batch)
    hidden = output.last_hidden_state
    assert torch.equal(output.frame_hidden, hidden[:, :8])
    assert torch.equal(output.text_hidden, hidden[:, 12:])
    assert torch.equal(output.cls_hidden, hidden[:, 12])
    assert output.mask[:, 12].all()


def test_same_as_the_text_encoder_called_by_hand(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of("bert", streams={"frames": {"dim": 6, "max_length": 8}})
    inputs = {key: value for key, value in batch.items() if "audio" not in key}
    frames = model.streams["frames"]
    vectors = frames.projection(inputs["frame_features"]) + frames.position.weight + frames.modality.weight
    vectors = F.layer_norm(vectors, (32,), frames.norm.weight, frames.norm.bias, eps=1e-12)
    words = model.word_embeddings()[inputs["input_ids"]]
    by_hand = model.text(
        inputs_embeds=torch.cat([words[:, :1], vectors, words[:, 1:]], dim=1),
        attention_mask=torch.cat(
            [inputs["attention_mask"][:, :1], inputs["frame_mask"], inputs["attention_mask"][:, 1:]], dim=1
        ),
        position_ids=torch.tensor([[0, *range(8), *range(1, 9)]]),
    ).last_hidden_state
    output = model(**inputs)
    torch.testing.assert_close(output.last_hidden_state[output.mask], by_hand[output.mask], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "first"), [("bert", 0), ("roberta", 2), ("modernbert", 0)])
def test_positions_restart_for_each_stream(family: str, first: int, encoder_of: EncoderOf, batch: Batch) -> None:
    model, seen = encoder_of(family), []
    model.text.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    model(**_row_alone(batch, 1))
    # [CLS], 3 frames, 2 sounds, 4 more tokens
    assert (seen[0] - first).tolist() == [[0, 0, 1, 2, 0, 1, 1, 2, 3, 4]]


@pytest.mark.parametrize("pooling", ["mean", "first", "attention", "mean_unmasked", "attention_unmasked"])
def test_pooling(pooling: str, encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(pooling=pooling)
    output = model(**batch)
    hidden, mask = output.last_hidden_state, output.mask
    if "attention" in pooling:
        layers = model.attention_pooling
        scores = layers.score(torch.tanh(layers.dense(hidden)))[..., 0]
        if pooling == "attention":
            scores = scores.masked_fill(~mask, -math.inf)
        pooled = (scores.softmax(dim=1)[..., None] * hidden).sum(dim=1)
    else:
        assert model.attention_pooling is None
        pooled = {
            "mean": (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True),
            "first": hidden[:, 0],
            "mean_unmasked": hidden.sum(dim=1) / 21,
        }[pooling]
    head = model.embedding_head.projection
    by_hand = F.normalize(pooled @ head.weight.T + head.bias, dim=1)
    torch.testing.assert_close(output.pooled, pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.embedding, by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "attention"])
def test_unmasked_pooling_has_the_published_bug(kind: str, encoder_of: EncoderOf, batch: Batch) -> None:
    masked, unmasked = encoder_of(pooling=kind), encoder_of(pooling=f"{kind}_unmasked")
    unmasked.load_state_dict(masked.state_dict())
    first, second = masked(**batch).embedding, unmasked(**batch).embedding
    torch.testing.assert_close(first[0], second[0])  # nothing is padded
    assert (first[1:] - second[1:]).abs().amax(dim=1).min() > 1e-3
    alone = unmasked(**_row_alone(batch, 1)).embedding[0]
    torch.testing.assert_close(alone, first[1], rtol=0, atol=1e-5)


def test_hidden_mean_is_the_masked_mean(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(pooling="first")
    output = model(**batch)
    by_hand = torch.stack([h[m].mean(dim=0) for h, m in zip(output.last_hidden_state, output.mask, strict=True)])
    torch.testing.assert_close(model.hidden_mean(output), by_hand)


def test_absent_and_empty_streams_are_the_same(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of()
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    absent = model(**text)
    empty = model(**text, frame_features=torch.zeros(3, 0, 6), frame_mask=torch.zeros(3, 0))
    masked = model(**text, frame_features=batch["frame_features"], frame_mask=torch.zeros(3, 8))
    assert absent.frame_hidden is None
    assert empty.frame_hidden.shape == (3, 0, 32)
    assert torch.equal(absent.embedding, empty.embedding)
    torch.testing.assert_close(absent.embedding, masked.embedding, rtol=0, atol=1e-6)


def test_no_masks_means_everything_is_real(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of()
    everything = {key: torch.ones_like(v) if "mask" in key else v for key, v in batch.items()}
    without = {key: value for key, value in batch.items() if "mask" not in key}
    assert torch.equal(model(**everything).embedding, model(**without).embedding)


def test_streams_differ_by_modality_and_frames_by_position(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(streams={name: {"dim": 6, "max_length": 8} for name in ("frames", "other")})
    with torch.no_grad():
        other = model.streams["other"]
        other.load_state_dict(model.streams["frames"].state_dict())
        other.modality.weight.add_(torch.randn(1, 32))
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    vectors = batch["frame_features"]
    as_frames, as_other = model(**text, frame_features=vectors), model(**text, other_features=vectors)
    assert (as_frames.embedding - as_other.embedding).abs().max() > 1e-3
    reversed_frames = model(**text, frame_features=vectors.flip(1))
    assert (as_frames.embedding - reversed_frames.embedding).abs().max() > 1e-3


def test_inputs_of_takes_what_forward_takes(encoder_of: EncoderOf, batch: Batch) -> None:
    model = encoder_of(streams={"frames": {"dim": 6, "max_length": 8}})
    inputs = model.inputs_of({**batch, "row_ids": ["a"], "mlm_labels": torch.zeros(3, 9)})
    assert list(inputs) == ["input_ids", "attention_mask", "frame_features", "frame_mask"]
    assert list(model.inputs_of({**batch, "frame_mask": None})) == [
        "input_ids",
        "attention_mask",
        "frame_features",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_last_layer(family: str, encoder_of: EncoderOf) -> None:
    model = encoder_of(family)
    names = {id(p): name for name, p in model.named_parameters()}
    last = [names[id(p)] for p in model.last_layer_parameters()]
    assert last
    assert all("layer" in name and ".1." in name for name in last)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.ones(3, 41, dtype=torch.long), "attention_mask": None}, "41 tokens.*has 40"),
        ({"attention_mask": torch.ones(3, 8)}, "attention_mask"),
        ({"frame_features": torch.zeros(3, 8, 5)}, "'frames' has shape"),
        ({"frame_features": torch.zeros(3, 9, 6)}, "at most 8"),
        ({"frame_features": None}, "frame_mask was given without"),
        ({"ocr_features": torch.zeros(3, 1, 1)}, "ocr_features: no such input"),
    ],
)
def test_wrong_inputs_are_named(change: dict[str, Any], message: str, encoder_of: EncoderOf, batch: Batch) -> None:
    with pytest.raises(ValueError, match=message):
        encoder_of()(**{**batch, **change})


def test_lengths_beyond_the_positions_are_refused_at_once(
    text_config_of: Callable[[str], PreTrainedConfig],
) -> None:
    text = text_config_of("roberta")  # 42 rows, of which 40 are positions
    VidsimConfig(text_config=text, max_title_tokens=37)
    VideoTextEncoder(VidsimConfig(text_config=text, max_title_tokens=37, streams={}))
    with pytest.raises(ValueError, match="41 positions are needed, but the text encoder has 40"):
        VideoTextEncoder(VidsimConfig(text_config=text, max_title_tokens=38, streams={}))
    streams = {"frames": {"dim": 2, "max_length": 41}}
    with pytest.raises(ValueError, match="stream 'frames': 41"):
        VideoTextEncoder(VidsimConfig(text_config=text, streams=streams))


def test_without_position_ids_streams_and_text_share_the_positions() -> None:
    text = RoFormerConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=20,
    )  # fmt: skip
    settings = {"text_config": text, "streams": {"frames": {"dim": 2, "max_length": 8}}, "embedding_dim": 3}
    with pytest.raises(ValueError, match="21 positions are needed, but the text encoder has 20"):
        VideoTextEncoder(VidsimConfig(**settings, max_title_tokens=10))
    model = VideoTextEncoder(VidsimConfig(**settings, max_title_tokens=9)).eval()
    ids, frames = torch.arange(5, 14)[None], torch.randn(1, 8, 2)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    torch.testing.assert_close(
        model(ids, None, frames, mask).embedding, model(ids, None, frames[:, :3]).embedding, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_forward_never_waits_for_the_device(family: str, encoder_of: EncoderOf, batch: Batch) -> None:
    # Tensors on "meta" have no values: whatever looks at one (.item(), "is the mask all ones?") raises. Packing does,
    # once: it must know how many positions there are.
    model = encoder_of(family).to("meta")
    model.text.set_attn_implementation("sdpa")
    output = model(**{key: value.to("meta") for key, value in batch.items()})
    assert output.embedding.shape == (3, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_is_bit_exact(family: str, encoder_of: EncoderOf, batch: Batch, tmp_path: Path) -> None:
    model = encoder_of(family, pooling="attention")
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VideoTextEncoder
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(model(**batch).embedding, loaded(**batch).embedding)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}


def test_saved_folder_carries_its_code(encoder_of: EncoderOf, tmp_path: Path) -> None:
    encoder_of().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "config.VidsimConfig", "AutoModel": "encoder.VideoTextEncoder"}
    carried = {path.stem for path in tmp_path.glob("*.py")}
    names = ["attention", "config", "embeddings", "encoder", "heads", "initialization", "pooling", "processor"]
    assert sorted(carried) == names
    for path in tmp_path.glob("*.py"):
        lines = path.read_text().splitlines()
        assert not [line for line in lines if line.startswith(("import vidsim", "from vidsim"))]


def test_reduced_precision(encoder_of: EncoderOf, batch: Batch, tmp_path: Path) -> None:
    model = encoder_of()
    model.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    exact = model(**batch).embedding
    for approximate in (half(**batch).embedding, _autocast(model, batch)):
        assert approximate.dtype == torch.float32
        torch.testing.assert_close(approximate.norm(dim=1), torch.ones(3))
        assert F.cosine_similarity(approximate, exact).min() > 0.99


def _autocast(model: VideoTextEncoder, batch: Batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        embedding = model(**batch).embedding
    assert isinstance(embedding, torch.Tensor)
    return embedding


def test_attention_back_ends_agree(encoder_of: EncoderOf, batch: Batch, tmp_path: Path) -> None:
    model = encoder_of()
    model.save_pretrained(tmp_path)
    eager = AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert (model.text.config._attn_implementation, eager.text.config._attn_implementation) == (
        PACKED,
        "eager",
    )
    torch.testing.assert_close(model(**batch).embedding, eager(**batch).embedding, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients(encoder_of: EncoderOf, batch: Batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = encoder_of().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model(**batch).embedding[:, 0].sum().backward()
        gradients.append(model.streams["frames"].projection.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_input_embeddings_are_the_text_encoders(encoder_of: EncoderOf) -> None:
    model = encoder_of("electra")
    assert model.get_input_embeddings() is model.text.get_input_embeddings()
    assert model.word_embeddings().shape == (60, 16)
    model.resize_token_embeddings(64)
    assert model.word_embeddings().shape == (64, 16)
    assert model.config.text_config.vocab_size == 64
