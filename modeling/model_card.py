"""The model card (README.md) of a saved encoder, with its numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .config import VidsimConfig

_TEMPLATE = Path(__file__).with_name("model_card.md")


def write_model_card(
    folder: str | Path,
    metrics: Mapping[str, float],
    name: str,
    data: Sequence[str],
    *,
    base_model: str | None = None,
) -> Path:
    """Write `README.md` into the folder of a saved encoder, without a network.

    Args:
        folder: Where `save_pretrained` wrote `config.json`.
        metrics: Measure to value, for example `{"spearman": 0.886}`.
        name: Title of the card.
        data: Names or folders (only their names are written) of the data sets that were trained on.
        base_model: Hub name or folder (only its name is written) of the text checkpoint; None: fresh weights.

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
    base_model = None if base_model is None else _without_path(base_model)
    trained_on = ", ".join(dict.fromkeys(_without_path(each) for each in data))
    config = VidsimConfig.from_pretrained(folder)
    card_data = ModelCardData(
        model_name=name,
        base_model=base_model,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["video", "video-similarity", "embedding", "vidsim"],
        eval_results=[_eval_result(key, float(value), trained_on) for key, value in metrics.items()] or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(_TEMPLATE),
        name=name,
        data=trained_on,
        base_model=base_model,
        metrics={measure: f"{value:.6g}" for measure, value in metrics.items()},
        config=config,
        streams=config.streams,
    )
    return _save(card, folder / "README.md")


def _without_path(name: str) -> str:
    return Path(name).resolve().name if Path(name).is_absolute() or Path(name).is_dir() else name


def _save(card: ModelCard, target: Path) -> Path:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        card.save(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def _eval_result(measure: str, value: float, data: str) -> EvalResult:
    return EvalResult(
        task_type="feature-extraction",
        task_name="video similarity",
        dataset_type=data,
        dataset_name=data,
        metric_type=measure,
        metric_value=value,
    )
