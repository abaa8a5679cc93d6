"""A small model as two files: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
Model = TypeVar("Model", bound=nn.Module)


def save_model(folder: Path, model_type: str, config: Mapping[str, Any], model: nn.Module) -> None:
    """Write both files.

    Args:
        folder: Where to; made if it is not there.
        model_type: Told apart by when it is read.
        config: What `build` of `load_model` makes the model from; JSON values.
        model: Its parameters and buffers are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"model_type": model_type, **config}
    (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / WEIGHTS_FILE)


def load_model(folder: Path, model_type: str, build: Callable[[dict[str, Any]], Model], what: str) -> Model:
    """Read what `save_model` wrote.

    Args:
        folder: Where it is.
        model_type: As it was saved.
        build: From the config to a model of the right shape.
        what: What such a model is called, for messages.

    Raises:
        ValueError: No such model in the folder, or files that do not fit together.
    """
    try:
        description = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if description.pop("model_type", None) != model_type:
            raise ValueError(f"{folder}: {CONFIG_FILE} does not describe {what}")
        model = build(description)
        model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: holds no {what} that can be read ({error})") from error
    return model
