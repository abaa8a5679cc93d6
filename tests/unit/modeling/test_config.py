from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoConfig, BertConfig, ElectraConfig

import vidsim.modeling.encoder  # noqa: F401 (registers the classes)
from vidsim.modeling.config import VidsimConfig, max_text_tokens, stream_keys


def test_stream_keys_are_the_batch_keys() -> None:
    assert stream_keys("frames") == ("frame_features", "frame_mask")
    assert stream_keys("audio") == ("audio_features", "audio_mask")


def test_max_text_tokens_of_the_published_system() -> None:
    assert max_text_tokens("cls_first", 33, 0) == 36
    assert max_text_tokens("text_cls", 34, 0) == 36
    assert max_text_tokens("cls_first", 33, 20) == 57


def test_defaults_are_the_published_stream() -> None:
    config = VidsimConfig()
    assert config.streams == {"frames": {"dim": 1536, "max_length": 32}}
    assert config.embedding_dim == 256
    assert isinstance(config.text_config, BertConfig)


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    config = VidsimConfig(
        text_config=ElectraConfig(vocab_size=50, hidden_size=32, embedding_size=16, pad_token_id=7),
        streams={"audio": {"dim": 3, "max_length": 4}, "frames": {"dim": 6, "max_length": 8}},
        layout="text_cls",
        pooling="attention",
        embedding_dim=5,
        max_title_tokens=9,
        max_asr_tokens=11,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is VidsimConfig
    assert isinstance(loaded.text_config, ElectraConfig)
    assert loaded.text_config.pad_token_id == 7
    assert loaded.text_config.embedding_size == 16
    fields = ("streams", "layout", "pooling", "embedding_dim", "max_title_tokens", "max_asr_tokens")
    assert [getattr(loaded, f) for f in fields] == [getattr(config, f) for f in fields]
    # JSON sorts its keys; the sequence must not depend on that.
    assert list(loaded.streams) == list(config.streams) == ["frames", "audio"]


def test_text_config_as_dictionary_needs_its_type() -> None:
    config = VidsimConfig(text_config={"model_type": "roberta", "vocab_size": 50})
    assert config.text_config.vocab_size == 50
    with pytest.raises(ValueError, match="model_type"):
        VidsimConfig(text_config={"vocab_size": 50})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout": "frames_last"}, "frames_last"),
        ({"pooling": "max"}, "max"),
        ({"embedding_dim": 0}, "embedding_dim"),
        ({"max_title_tokens": -1}, "max_title_tokens"),
        ({"streams": {"frames": {"dim": 6}}}, "max_length"),
        ({"streams": {"frames": {"dim": 0, "max_length": 2}}}, "dim"),
        ({"streams": {"my.frames": {"dim": 1, "max_length": 2}}}, "identifier"),
        ({"streams": {name: {"dim": 1, "max_length": 2} for name in ("frame", "frames")}}, "batch key"),
        ({"text_config": BertConfig(is_decoder=True)}, "is_decoder"),
    ],
)
def test_impossible_values_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VidsimConfig(**fields)


def test_from_sizes() -> None:
    config = VidsimConfig.from_sizes(
        vocab_size=100,
        hidden_size=24,
        num_layers=3,
        num_heads=4,
        pad_token_id=5,
        dropout=0.2,
        embedding_dim=7,
    )
    text = config.text_config
    assert (text.model_type, text.vocab_size, text.hidden_size) == ("bert", 100, 24)
    assert (text.num_hidden_layers, text.num_attention_heads, text.intermediate_size) == (3, 4, 96)
    assert (text.hidden_dropout_prob, text.attention_probs_dropout_prob) == (0.2, 0.2)
    assert (text.pad_token_id, text.max_position_embeddings) == (5, 512)
    assert (config.embedding_dim, config.hidden_size) == (7, 24)


def test_from_sizes_makes_room_for_long_speech() -> None:
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "pad_token_id": 0}
    config = VidsimConfig.from_sizes(**sizes, max_title_tokens=33, max_asr_tokens=600)
    assert config.text_config.max_position_embeddings == 637 == config.max_text_tokens


def test_from_sizes_refuses_what_does_not_fit() -> None:
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_layers": 1, "num_heads": 1, "pad_token_id": 0}
    with pytest.raises(ValueError, match="num_heads 3"):
        VidsimConfig.from_sizes(**{**sizes, "num_heads": 3})
    with pytest.raises(ValueError, match="pad_token_id 10"):
        VidsimConfig.from_sizes(**{**sizes, "pad_token_id": 10})


def test_saved_config_is_plain_json(tmp_path: Path) -> None:
    VidsimConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "vidsim"
    assert saved["text_config"]["model_type"] == "bert"
    assert saved["auto_map"] == {"AutoConfig": "config.VidsimConfig"}
