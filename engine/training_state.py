"""What resuming needs beside the exported model: tensors as safetensors under their names, the rest JSON.

Nothing here is ever unpickled, so a checkpoint from somebody else cannot run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from vidsim.common.errors import UserError
from vidsim.common.files import read_json
from vidsim.engine.ema import ExponentialMovingAverage
from vidsim.engine.sharding import part_of

_FORMAT = 1
MODULE_FILE, OPTIMIZER_FILE, EMA_FILE, STATE_FILE = (
    "module.safetensors",
    "optimizer.safetensors",
    "ema.safetensors",
    "state.json",
)
# Of a group, what says how to compute rather than what: it stays as this machine has it.
_IMPLEMENTATION = ("fused", "foreach", "capturable", "differentiable")


def write_training_state(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: ExponentialMovingAverage | None,
    state: Mapping[str, Any],
) -> None:
    """Write everything into an existing folder.

    Args:
        folder: Gets `module.safetensors`, `optimizer.safetensors`, `ema.safetensors` (with `ema`) and
            `state.json`.
        module: Not wrapped.
        optimizer: Over parameters of `module`.
        ema: Moving average, if there is one.
        state: Must be strict JSON (no NaN).
    """
    tensors, aliases = module_tensors(module)
    _write_tensors(folder / MODULE_FILE, tensors)
    optimizer_state = {f"{kind}/{name}": tensor for name, kind, tensor in _optimizer_tensors(module, optimizer)}
    _write_tensors(folder / OPTIMIZER_FILE, optimizer_state)
    if ema is not None:
        _write_tensors(folder / EMA_FILE, ema.state_dict())
    content = {
        "format": _FORMAT,
        "state": state,
        "tied": aliases,
        "groups": [_group_settings(group, names) for group, names in _named_groups(module, optimizer)],
        "has_ema": ema is not None,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / STATE_FILE).write_text(text + "\n", encoding="utf-8")


def read_training_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: ExponentialMovingAverage | None
) -> dict[str, Any]:
    """Load what `write_training_state` wrote, bit for bit, and return its `state`.

    Raises:
        UserError: A file is missing or damaged, or does not fit: names the file and the key.
    """
    file = folder / STATE_FILE
    content = read_json(file)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise UserError(f"format {found!r}, this vidsim reads {_FORMAT}", file=file, field="format")
    for key in ("state", "tied", "groups", "has_ema"):
        if key not in content:
            raise UserError("is missing", file=file, field=key)
    if content["has_ema"] != (ema is not None):
        saved, wanted = ("with", "without") if content["has_ema"] else ("without", "with")
        raise UserError(f"was saved {saved} a moving average, this run is {wanted}", file=file, field="has_ema")
    # Everything is read and checked before anything is changed.
    expected, _ = module_tensors(module)
    tensors = _read_tensors(folder / MODULE_FILE)
    _check_fit(folder / MODULE_FILE, tensors, expected, content["tied"])
    optimizer_state = _read_optimizer(folder, module, optimizer, content["groups"])
    if ema is not None:
        averages = _read_tensors(folder / EMA_FILE)
        _check_fit(folder / EMA_FILE, averages, ema.state_dict(), {})
        ema.load_state_dict(averages)
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(part_of(tensor, expected[name]))
    optimizer.load_state_dict(optimizer_state)
    return content["state"]


def module_tensors(module: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Parameters and persistent buffers, tied ones once.

    Returns:
        Tensors by their first name, and further names of tied tensors with the name they stand under.
    """
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; only tensors can be stored")
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach()
    return tensors, aliases


def num_bytes(
    module: nn.Module, optimizer: torch.optim.Optimizer, ema: ExponentialMovingAverage | None
) -> tuple[int, int]:
    """Size of the module's tensors and of all tensors that `write_training_state` would write."""

    def size(tensors: Iterable[torch.Tensor]) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    of_module = size(module_tensors(module)[0].values())
    of_optimizer = size(tensor for _, _, tensor in _optimizer_tensors(module, optimizer))
    return of_module, of_module + of_optimizer + (size(ema.state_dict().values()) if ema is not None else 0)


def _named_groups(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[dict[str, Any], list[str]]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [(group, [names[id(parameter)] for parameter in group["params"]]) for group in optimizer.param_groups]


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, str, torch.Tensor]]:
    result = []
    for group, names in _named_groups(module, optimizer):
        for name, parameter in zip(names, group["params"], strict=True):
            for kind, value in optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    raise TypeError(f"optimizer state {kind} of {name} is a {type(value).__name__}, not a tensor")
                result.append((name, kind, value))
    return result


def _group_settings(group: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    settings = {key: value for key, value in group.items() if key not in ("params", "names", *_IMPLEMENTATION)}
    return {"parameters": names, "settings": settings}


def _read_optimizer(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, saved_groups: list[dict[str, Any]]
) -> dict[str, Any]:
    """The `state_dict` to load: state by parameter name, group settings from the checkpoint."""
    file = folder / STATE_FILE
    groups = _named_groups(module, optimizer)
    saved_names = [name for group in saved_groups for name in group["parameters"]]
    names = [name for _, group_names in groups for name in group_names]
    _check_names(file, saved_names, names, "parameter of the optimizer", {})
    if [group["parameters"] for group in saved_groups] != [group_names for _, group_names in groups]:
        raise UserError(
            "the parameters are grouped in another way than in this run",
            file=file,
            field="groups",
            fix="resume with the optimizer settings that the run was started with",
        )
    parameters = dict(module.named_parameters())
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    tensor_file = folder / OPTIMIZER_FILE
    for key, tensor in _read_tensors(tensor_file).items():
        kind, _, name = key.partition("/")
        if name not in parameters or name not in names:
            raise UserError("belongs to no parameter of the optimizer", file=tensor_file, field=key)
        if tensor.ndim > 0 and tensor.shape != parameters[name].shape:
            raise UserError(_shapes(tensor, parameters[name]), file=tensor_file, field=key)
        by_name.setdefault(name, {})[kind] = _laid_out_like(tensor, parameters[name]) if tensor.ndim > 0 else tensor
    kinds = {kind for state in by_name.values() for kind in state}
    for name, state in by_name.items():
        for kind in sorted(kinds - state.keys()):
            raise UserError("is missing", file=tensor_file, field=f"{kind}/{name}")
    current = optimizer.state_dict()["param_groups"]
    for group, saved in zip(current, saved_groups, strict=True):
        for key, value in saved["settings"].items():
            group[key] = tuple(value) if isinstance(value, list) else value
    indices = [index for group in current for index in group["params"]]
    by_index = {index: by_name[name] for index, name in zip(indices, names, strict=True) if name in by_name}
    return {"state": by_index, "param_groups": current}


def _laid_out_like(tensor: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    # A fused optimizer walks through parameter and state side by side in memory, whatever their strides say.
    part = part_of(tensor, parameter)
    return torch.empty_like(parameter, dtype=part.dtype, device=part.device).copy_(part)


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    storages: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses two views of one storage; each is written in full.
        ready[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    save_file(ready, file)


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except FileNotFoundError:
        raise UserError("no such file", file=file) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"is not a whole safetensors file ({error})", file=file, fix="resume from another checkpoint"
        ) from error


def _check_fit(
    file: Path,
    found: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    tied: Mapping[str, str],
) -> None:
    _check_names(file, list(found), list(expected), "tensor", tied)
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise UserError(_shapes(found[name], wanted), file=file, field=name)
        if found[name].dtype != wanted.dtype:
            raise UserError(f"is {found[name].dtype}, this run has {wanted.dtype}", file=file, field=name)


def _check_names(file: Path, found: list[str], expected: list[str], what: str, tied: Mapping[str, str]) -> None:
    missing = sorted(set(expected) - set(found), key=expected.index)
    unexpected = sorted(set(found) - set(expected), key=found.index)
    if missing or unexpected:
        name = (missing or unexpected)[0]
        hint = f" ('{name}' was tied to '{tied[name]}')" if name in tied else ""
        faults = f"{len(missing)} {what}(s) missing {missing[:5]}, {len(unexpected)} unexpected {unexpected[:5]}"
        raise UserError(
            faults + hint,
            file=file,
            field=name,
            fix="resume with the model settings that the run was started with",
        )


def _shapes(found: torch.Tensor, expected: torch.Tensor) -> str:
    return f"has shape {list(found.shape)}, this run has {list(expected.shape)}"
