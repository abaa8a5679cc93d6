from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerBase

from vidsim.modeling.config import VidsimConfig
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.modeling.processor import VideoTextProcessor, segment_centres

STREAMS = {"frames": {"dim": 2, "max_length": 4}}
TokenizerOf = Callable[[str], PreTrainedTokenizerBase]
KINDS = ["bert", "roberta", "xlm-roberta", "modernbert"]

# Ids of `bert`: 5 sea, 6 sun, 7 cat, 8 dog, 9 run, 10 jump, 11 red, 12 blue, 13 猫, 14 跑, 15 ##s
PAD, UNK, CLS, SEP = 0, 1, 2, 3


@pytest.fixture
def make(tokenizer_of: TokenizerOf) -> Callable[..., VideoTextProcessor]:
    def processor(kind: str = "bert", **settings: Any) -> VideoTextProcessor:
        return VideoTextProcessor(tokenizer_of(kind), **{"streams": STREAMS, **settings})

    return processor


Make = Callable[..., VideoTextProcessor]


def test_ids_by_hand(make: Make) -> None:
    batch = make(max_title_tokens=4)(["red cats", "", "猫跑 sun dog sea"])
    assert batch["input_ids"].tolist() == [
        [CLS, SEP, 11, 7, 15, SEP, PAD],
        [CLS, SEP, SEP, PAD, PAD, PAD, PAD],
        [CLS, SEP, 13, 14, 6, 8, SEP],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 6 + [0], [1] * 3 + [0] * 4, [1] * 7]
    assert {value.dtype for key, value in batch.items() if key != "frame_features"} == {torch.int64}


def test_text_cls_layout_has_no_separator_behind_cls(make: Make) -> None:
    batch = make(layout="text_cls")(["red", ""])
    assert batch["input_ids"].tolist() == [[CLS, 11, SEP], [CLS, SEP, PAD]]


def test_speech_follows_the_title_where_there_is_any(make: Make) -> None:
    processor = make(max_title_tokens=2, max_asr_tokens=3)
    batch = processor(["red red red", "blue", ""], ["sun dog sea run", "", "猫"])
    assert batch["input_ids"].tolist() == [
        [CLS, SEP, 11, 11, SEP, 6, 8, 5, SEP],
        [CLS, SEP, 12, SEP, PAD, PAD, PAD, PAD, PAD],
        [CLS, SEP, SEP, 13, SEP, PAD, PAD, PAD, PAD],
    ]
    assert processor(["red"]).keys() == processor(["red"], None).keys()


def test_speech_is_not_read_unless_asked_for(make: Make) -> None:
    assert make()(["red"], ["sun dog"])["input_ids"].tolist() == [[CLS, SEP, 11, SEP]]


def test_frames_are_padded_and_become_float32(make: Make) -> None:
    frames = [np.array([[1.5, -2.0]], np.float16), np.zeros((0, 2), np.float16), np.ones((3, 2), np.float64)]
    batch = make()(["", "", ""], frames=frames)
    assert batch["frame_features"].dtype == torch.float32
    assert batch["frame_features"].shape == (3, 3, 2)
    assert batch["frame_features"][0].tolist() == [[1.5, -2.0], [0, 0], [0, 0]]
    assert batch["frame_mask"].tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]


def test_segment_centres_by_hand() -> None:
    assert segment_centres(3, 4).tolist() == [0, 1, 2]
    assert segment_centres(4, 4).tolist() == [0, 1, 2, 3]
    assert segment_centres(8, 4).tolist() == [1, 3, 5, 7]  # 1, 3, 5, 7
    assert segment_centres(10, 4).tolist() == [1, 3, 6, 8]  # 1.25, 3.75, 6.25, 8.75
    assert segment_centres(0, 4).tolist() == []
    assert segment_centres(5, 1).tolist() == [2]


@pytest.mark.parametrize("num_vectors", [33, 40, 63, 64, 65, 1000])
def test_segment_centres_are_spread_evenly(num_vectors: int) -> None:
    kept = segment_centres(num_vectors, 32)
    exact = (np.arange(32) + 0.5) * num_vectors / 32
    assert kept.tolist() == np.floor(exact).astype(int).tolist()
    assert len(set(kept.tolist())) == 32
    assert set(np.diff(kept)) <= {num_vectors // 32, num_vectors // 32 + 1}


def test_too_many_frames_are_thinned_out(make: Make) -> None:
    frames = np.arange(10, dtype=np.float16)[:, None].repeat(2, axis=1)
    batch = make()(["", ""], frames=[frames, frames[:2]])
    assert batch["frame_features"][..., 0].tolist() == [[1, 3, 6, 8], [0, 1, 0, 0]]
    assert batch["frame_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_max_length_padding_is_the_published_shape(make: Make) -> None:
    settings = {"streams": {"frames": {"dim": 2, "max_length": 32}}, "padding": "max_length"}
    for layout, max_title_tokens in (("cls_first", 33), ("text_cls", 34)):
        processor = make(layout=layout, max_title_tokens=max_title_tokens, **settings)
        batch = processor(["red"], frames=[np.ones((5, 2), np.float16)])
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, 36)
        assert batch["frame_features"].shape == (1, 32, 2)
        assert batch["frame_mask"].sum() == 5
    assert make(max_asr_tokens=3, padding="max_length")(["red"], ["sun"])["input_ids"].shape == (1, 40)


def test_padding_can_be_chosen_for_a_call(make: Make) -> None:
    processor = make(padding="max_length")
    assert processor(["red"], padding="longest")["input_ids"].shape == (1, 4)
    with pytest.raises(ValueError, match="shortest"):
        processor(["red"], padding="shortest")


def test_modalities_can_be_switched_off(make: Make) -> None:
    frames = [np.ones((3, 2), np.float16)]
    no_text = make(use_text=False, max_asr_tokens=4)(["red"], ["sun"], frames)
    assert no_text["input_ids"].tolist() == [[CLS, SEP, SEP]]
    assert no_text["frame_mask"].tolist() == [[1, 1, 1]]
    no_frames = make(use_frames=False)(["red"], frames=frames)
    assert no_frames["input_ids"].tolist() == [[CLS, SEP, 11, SEP]]
    assert no_frames["frame_features"].shape == (1, 0, 2)
    assert no_frames["frame_mask"].shape == (1, 0)


def test_without_any_stream_there_are_no_stream_keys(make: Make) -> None:
    processor = make(streams={}, use_frames=False)
    assert list(processor(["red"], frames=[np.ones((3, 7))])) == ["input_ids", "attention_mask"]
    with pytest.raises(ValueError, match="no such stream"):
        make(streams={})(["red"], frames=[np.ones((3, 7))])


def test_further_streams(make: Make) -> None:
    processor = make(streams={**STREAMS, "audio": {"dim": 3, "max_length": 2}})
    batch = processor(["red", "sun"], audio=[np.ones((1, 3)), np.zeros((0, 3))])
    assert batch["audio_features"].tolist() == [[[1, 1, 1]], [[0, 0, 0]]]
    assert batch["audio_mask"].tolist() == [[1], [0]]
    assert batch["frame_features"].shape == (2, 0, 2)
    assert list(batch) == processor.model_input_names


@pytest.mark.parametrize("kind", KINDS)
def test_a_title_that_reads_like_a_special_token_is_text(kind: str, make: Make, tmp_path: Path) -> None:
    processor = make(kind, max_title_tokens=20, max_asr_tokens=20)
    tokenizer = processor.tokenizer
    special = [token for token in tokenizer.all_special_tokens if token]
    assert tokenizer.mask_token in special
    assert tokenizer.sep_token in special
    processor.save_pretrained(tmp_path)
    for each in (processor, VideoTextProcessor.from_pretrained(tmp_path)):
        batch = each(["red", *special], ["blue"] * (1 + len(special)))
        plain = (batch["input_ids"][0] == tokenizer.sep_token_id).sum()
        for ids in batch["input_ids"]:
            assert tokenizer.mask_token_id not in ids
            assert (ids == tokenizer.sep_token_id).sum() == plain
        # As many as the mask counts: none of them is padding in the middle.
        assert ((batch["input_ids"] != tokenizer.pad_token_id).sum(1) == batch["attention_mask"].sum(1)).all()


def test_an_empty_batch(make: Make) -> None:
    batch = make()([], frames=[])
    assert batch["input_ids"].shape == (0, 0)
    assert batch["frame_features"].shape == (0, 0, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tokenizer_gives_the_same_form(kind: str, make: Make) -> None:
    processor = make(kind, max_title_tokens=3, max_asr_tokens=2)
    tokenizer = processor.tokenizer
    batch = processor(["red", "cat dog cat dog cat", ""], ["sun", "", "猫猫猫"])
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    assert len({cls, sep, pad}) == 3
    for row, (title, asr) in zip(
        batch["input_ids"].tolist(),
        [("red", "sun"), ("cat dog cat dog cat", ""), ("", "猫猫猫")],
        strict=True,
    ):
        title_ids = tokenizer(title, add_special_tokens=False)["input_ids"][:3]
        asr_ids = tokenizer(asr, add_special_tokens=False)["input_ids"][:2]
        real = [cls, sep, *title_ids, sep, *([*asr_ids, sep] if asr_ids else [])]
        assert row == real + [pad] * (len(row) - len(real))
    assert torch.equal(batch["attention_mask"], (batch["input_ids"] != pad).long())


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind: str, make: Make, tmp_path: Path) -> None:
    processor = make(
        kind, layout="text_cls", max_title_tokens=3, max_asr_tokens=2, padding="max_length", use_frames=False
    )
    processor.save_pretrained(tmp_path)
    VidsimConfig(text_config={"model_type": "bert", "hidden_size": 12}).save_pretrained(tmp_path)
    inputs = {"titles": ["red cats", "猫跑"], "asrs": ["sun", "dog dog dog"]}
    expected = processor(**inputs)
    for load in (VideoTextProcessor, AutoProcessor):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is VideoTextProcessor
        settings = (
            "streams",
            "layout",
            "max_title_tokens",
            "max_asr_tokens",
            "padding",
            "use_text",
            "use_frames",
        )
        assert [getattr(loaded, s) for s in settings] == [getattr(processor, s) for s in settings]
        batch = loaded(**inputs)
        assert all(torch.equal(batch[key], expected[key]) for key in expected)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["auto_map"] == {"AutoProcessor": "processor.VideoTextProcessor"}
    assert str(tmp_path) not in (tmp_path / "processor_config.json").read_text()


def test_a_batch_goes_into_the_encoder(make: Make) -> None:
    processor = make(max_asr_tokens=4)
    tokenizer = processor.tokenizer
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "embedding_dim": 3}
    config = VidsimConfig.from_sizes(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, streams=processor.streams, **sizes
    )
    batch = processor(["red", ""], ["", "sun"], [np.ones((9, 2), np.float16), np.zeros((0, 2), np.float16)])
    output = VideoTextEncoder(config).eval()(**batch)
    assert output.embedding.shape == (2, 3)
    assert output.mask.sum(dim=1).tolist() == [4 + 4, 0 + 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"titles": "red"}, "titles must be a list"),
        ({"titles": ["red", None]}, "titles, row 1: expected a text, got NoneType"),
        ({"titles": ["red"], "asrs": ["a", "b"]}, "2 asrs for 1 titles"),
        ({"titles": ["red"], "frames": []}, "0 frames for 1 titles"),
        (
            {"titles": ["red"], "frames": [np.ones((2, 3))]},
            r"frames, row 0: expected shape \[n, 2\], got \[2, 3\]",
        ),
        ({"titles": ["red"], "frames": [np.ones(2)]}, r"frames, row 0.*got \[2\]"),
        ({"titles": ["red"], "ocr": [np.ones((1, 2))]}, "ocr: no such stream"),
    ],
)
def test_wrong_inputs_are_named(arguments: dict[str, Any], message: str, make: Make) -> None:
    with pytest.raises(ValueError, match=message):
        make()(**arguments)


def test_wrong_settings_are_named(make: Make, tokenizer_of: TokenizerOf) -> None:
    for settings, message in (
        ({"layout": "cls_last"}, "cls_last"),
        ({"padding": "none"}, "none"),
        ({"max_asr_tokens": -1}, "negative"),
        ({"streams": {"frames": {}}}, "max_length"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)


def test_a_tokenizer_without_separator_is_refused() -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "a": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")
    with pytest.raises(ValueError, match="sep_token or eos_token"):
        VideoTextProcessor(tokenizer)
