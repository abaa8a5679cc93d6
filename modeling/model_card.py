"""The model card (README.md) of a saved encoder, with its numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .config import VidsimConfig

_TEMPLATE = Path(__file__).with_name("model_card.md")


def write_model_card(
    folder: str | Path,
    metrics: Mapping[str, float],
    base_model: str | None = None,
    data: str | None = None,
    *,
    name: str | None = None,
    language: str | list[str] | None = None,
    license: str | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write `README.md` into the folder of a saved encoder, without a network.

    Args:
        folder: Where `save_pretrained` wrote `config.json`.
        metrics: Measure to value, for example `{"spearman": 0.886}`.
        base_model: Hub name or folder (only its name is written) of the text checkpoint; None: fresh weights.
        data: Name of the data set that the numbers were measured on.
        name: Title of the card; None: the folder's name.
        language: Language codes of the texts.
        license: Licence identifier of the weights.
        training: Further lines of the section on training, for example steps and objectives.

    Returns:
        The file.

    Raises:
        ValueError: No saved encoder in the folder, or a value that is not finite.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder}: no saved encoder (it has no config.json)")
    for measure, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {measure!r} is {value}")
    name = name or folder.resolve().name
    base_model = _without_path(base_model)
    config = VidsimConfig.from_pretrained(folder)
    card_data = ModelCardData(
        model_name=name,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        language=language,
        license=license,
        tags=["video", "video-similarity", "embedding", "vidsim"],
        eval_results=[_eval_result(key, float(value), data) for key, value in metrics.items()] or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(_TEMPLATE),
        name=name,
        data=data,
        base_model=base_model,
        metrics={measure: f"{value:.6g}" for measure, value in metrics.items()},
        config=config,
        streams=config.streams,
        training=training or {},
    )
    return _save(card, folder / "README.md")


def _without_path(base_model: str | None) -> str | None:
    if base_model is None or not (Path(base_model).is_absolute() or Path(base_model).is_dir()):
        return base_model
    return Path(base_model).resolve().name


def _save(card: ModelCard, target: Path) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        card.save(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _eval_result(measure: str, value: float, data: str | None) -> EvalResult:
    return EvalResult(
        task_type="feature-extraction",
        task_name="video similarity",
        dataset_type=data or "not stated",
        dataset_name=data or "not stated",
        metric_type=measure,
        metric_value=value,
    )
