from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, PreTrainedConfig, PreTrainedTokenizerBase

from vidsim.common.errors import UserError
from vidsim.modeling.build import (
    ModelConfig,
    build_encoder,
    build_processor,
    check_streams_match,
    load_encoder,
    save_encoder,
)
from vidsim.modeling.encoder import VideoTextEncoder

SMALL: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "embedding_dim": 4, "max_title_tokens": 6}
STREAMS = {"frames": 3}
PROJECTION = "embedding_head.projection.weight"


@pytest.fixture
def tokenizer(tokenizer_of: Callable[[str], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    return tokenizer_of("bert")


@pytest.fixture
def saved(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Callable[..., Path]:
    """Save a small encoder of some pooling with its processor."""

    def save(pooling: Any = "mean", streams: dict[str, int] = STREAMS) -> Path:
        config = ModelConfig(**SMALL, pooling=pooling, max_frames=5)
        torch.manual_seed(1)
        encoder, report = build_encoder(config, tokenizer, streams)
        assert report is None
        save_encoder(encoder, build_processor(config, tokenizer, streams), tmp_path / pooling)
        return tmp_path / pooling

    return save


def rewrite(folder: Path, drop: str, **add: torch.Tensor) -> None:
    """Leave tensors out of a checkpoint whose name begins so, and add others."""
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if not name.startswith(drop)}
    save_file({**tensors, **add}, path, metadata={"format": "pt"})


def same(first: VideoTextEncoder, second: VideoTextEncoder) -> set[str]:
    """Parameters that have the same bits in both."""
    others = dict(second.named_parameters())
    return {name for name, value in first.named_parameters() if name in others and torch.equal(value, others[name])}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, r"model\.hidden_size.*0 is below 1"),
        ({"num_layers": 0}, r"model\.num_layers"),
        ({"num_heads": 0}, r"model\.num_heads"),
        ({"intermediate_size": -1}, r"model\.intermediate_size"),
        ({"embedding_dim": 0}, r"model\.embedding_dim"),
        ({"max_frames": 0}, r"model\.max_frames"),
        ({"max_title_tokens": -1}, r"model\.max_title_tokens"),
        ({"max_asr_tokens": -1}, r"model\.max_asr_tokens"),
        ({"hidden_size": 10, "num_heads": 4}, r"10 cannot be divided by num_heads 4"),
        ({"dropout": 1.0}, r"model\.dropout"),
        ({"use_text": False, "use_frames": False}, r"both false.*Fix: let it read one"),
        ({"init_from": "no/such/folder"}, r"no/such/folder, field 'model\.init_from': no such folder"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ModelConfig(**settings).validate()


def test_a_fresh_encoder_has_the_sizes_of_the_recipe(tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(
        **SMALL, intermediate_size=12, dropout=0.25, layout="text_cls", pooling="first", max_frames=7, max_asr_tokens=9
    )
    encoder, report = build_encoder(config, tokenizer, {"frames": 3, "audio": 2})
    text: Any = encoder.config.text_config
    assert report is None
    assert (text.vocab_size, text.pad_token_id) == (len(tokenizer), tokenizer.pad_token_id)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (8, 2, 2)
    assert (text.intermediate_size, text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (12, 0.25, 0.25)
    assert encoder.config.streams == {"frames": {"dim": 3, "max_length": 7}, "audio": {"dim": 2, "max_length": 7}}
    assert (encoder.config.layout, encoder.config.pooling, encoder.config.embedding_dim) == ("text_cls", "first", 4)
    assert (encoder.config.max_title_tokens, encoder.config.max_asr_tokens) == (6, 9)
    assert build_encoder(ModelConfig(**SMALL), tokenizer, STREAMS)[0].config.text_config.intermediate_size == 32


def test_the_processor_reads_what_the_encoder_reads(tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(**SMALL, layout="text_cls", max_frames=2, padding="max_length", max_asr_tokens=3)
    processor = build_processor(config, tokenizer, STREAMS)
    encoder, _ = build_encoder(config, tokenizer, STREAMS)
    assert processor.streams == encoder.config.streams
    batch = processor(["sea"], ["sun"], [torch.ones(5, 3).numpy()])
    assert batch["input_ids"].shape == (1, encoder.config.max_text_tokens)
    assert batch["frame_features"].shape == (1, 2, 3)
    assert encoder(**batch).embedding.shape == (1, 4)


def test_one_modality_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    text_only = ModelConfig(**SMALL, use_frames=False)
    assert build_encoder(text_only, tokenizer, STREAMS)[0].config.streams == {}
    assert set(build_processor(text_only, tokenizer, STREAMS)(["sea"])) == {"input_ids", "attention_mask"}
    frames_only = build_processor(ModelConfig(**SMALL, use_text=False), tokenizer, STREAMS)
    batch = frames_only(["sea sun"], None, [torch.ones(1, 3).numpy()])
    assert batch["attention_mask"].tolist() == [[1, 1, 1]]  # [CLS] [SEP] [SEP]
    assert batch["frame_mask"].tolist() == [[1]]


@pytest.fixture
def text_checkpoint(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, text_config_of: Callable[[str], PreTrainedConfig]
) -> Path:
    folder = tmp_path / "text"
    torch.manual_seed(5)
    config: Any = text_config_of("bert")
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_checkpoint_gives_the_text_side(text_checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(init_from=str(text_checkpoint), embedding_dim=4, max_frames=5, max_title_tokens=6)
    config.validate()
    encoder, report = build_encoder(config, tokenizer, STREAMS)
    assert report is not None
    assert report.missing == ()
    stored = load_file(text_checkpoint / "model.safetensors")
    text = dict(encoder.text.named_parameters())
    assert len(text) == 37  # 3 tables, their norm (2), 2 layers of 16
    assert all(torch.equal(value, stored[f"bert.{name}"]) for name, value in text.items())
    assert encoder.config.hidden_size == 32  # the checkpoint's, not the recipe's


def test_a_text_checkpoint_that_cannot_be_used(text_checkpoint: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(init_from=str(text_checkpoint), max_title_tokens=60)
    with pytest.raises(UserError, match=r"field 'model\.init_from': cannot start from it .*63 positions are needed"):
        build_encoder(config, tokenizer, STREAMS)
    rewrite(text_checkpoint, "bert.encoder.layer.0")
    with pytest.raises(UserError, match=r"cannot start from it .*16 weights of the encoder are missing"):
        build_encoder(ModelConfig(init_from=str(text_checkpoint), max_title_tokens=6), tokenizer, STREAMS)


def test_saved_and_loaded_are_the_same_bits(saved: Callable[..., Path]) -> None:
    folder = saved("attention")
    first, processor = load_encoder(folder)
    second, _ = load_encoder(folder)
    assert (
        same(first, second)
        == {name for name, _ in first.named_parameters()}
        == set(load_file(folder / "model.safetensors"))
    )
    assert processor.streams == {"frames": {"dim": 3, "max_length": 5}}
    assert (folder / "encoder.py").is_file()  # the checkpoint carries its code


@pytest.mark.parametrize(("stored", "wanted"), [("mean", "attention"), ("first", "attention_unmasked")])
def test_another_pooling_starts_fresh(saved: Callable[..., Path], stored: str, wanted: str) -> None:
    folder = saved(stored)
    plain, _ = load_encoder(folder)
    pooled, _ = load_encoder(folder, pooling=wanted)
    assert pooled.config.pooling == wanted
    assert pooled.attention_pooling is not None
    assert all(parameter.isfinite().all() for parameter in pooled.attention_pooling.parameters())
    assert same(plain, pooled) == {name for name, _ in plain.named_parameters()}


def test_attention_pooling_can_be_left_out_or_kept(saved: Callable[..., Path]) -> None:
    folder = saved("attention")
    assert load_encoder(folder, pooling="mean")[0].attention_pooling is None
    kept, _ = load_encoder(folder, pooling="attention_unmasked")
    assert "attention_pooling.dense.weight" in same(kept, load_encoder(folder)[0])


def test_the_projection_can_start_anew(saved: Callable[..., Path]) -> None:
    folder = saved()
    loaded, reset = load_encoder(folder)[0], load_encoder(folder, reset_projection=True)[0]
    fresh = {name for name, _ in loaded.named_parameters()} - same(loaded, reset)
    assert fresh == {PROJECTION}  # the bias is 0 in both
    assert dict(reset.named_parameters())[PROJECTION].shape == (4, 8)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("attention_pooling.", r"weights missing: \['attention_pooling\.dense\.bias'"),
        ("embedding_head.", r"weights missing: \['embedding_head\.projection\.bias'"),
        ("streams.frames.norm.weight", r"weights missing: \['streams\.frames\.norm\.weight'\], not known: none"),
    ],
)
def test_missing_weights_are_named(saved: Callable[..., Path], drop: str, message: str) -> None:
    folder = saved("attention")
    rewrite(folder, drop)
    with pytest.raises(UserError, match=message):
        load_encoder(folder)


def test_unknown_weights_are_named(saved: Callable[..., Path]) -> None:
    folder = saved("mean")
    rewrite(folder, "nothing", **{"attention_pooling.score.bias": torch.zeros(1)})
    with pytest.raises(UserError, match=r"not known: \['attention_pooling\.score\.bias'\]"):
        load_encoder(folder)


def test_what_is_no_checkpoint(saved: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a checkpoint \(no config\.json\)"):
        load_encoder(tmp_path)
    folder = saved()
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_encoder(folder)


def test_a_data_set_must_have_what_the_encoder_reads(saved: Callable[..., Path], tmp_path: Path) -> None:
    config = load_encoder(saved("mean", {"frames": 3, "audio": 2}))[0].config
    check_streams_match(config, {"frames": 3, "audio": 2, "more": 9}, tmp_path)
    with pytest.raises(
        UserError, match=r"field 'frames': the data set has vectors of width 4.*reads vectors of width 3"
    ):
        check_streams_match(config, {"frames": 4, "audio": 2}, tmp_path)
    with pytest.raises(UserError, match=r"field 'audio': the data set has no stream 'audio'"):
        check_streams_match(config, {"frames": 3}, tmp_path)


def test_the_run_of_another_command_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vidsim-towers"}', encoding="utf-8")
    with pytest.raises(
        UserError, match=r"is no video-text encoder but of the kind 'vidsim-towers'\. Fix: .*embed-features"
    ):
        load_encoder(tmp_path)
