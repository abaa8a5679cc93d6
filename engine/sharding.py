"""Models that do not fit one device: each process keeps its part of every parameter, gradient and moment (FSDP2).

torch's `fully_shard` is called here and not through accelerate: its plugin is ignored without a word on CPUs (1.15), so
nothing of it could be tried without several GPUs, and its environment variables also change how transformers loads
weights. Between the passes a sharded module holds `DTensor`s; everything that reads or writes whole tensors is here.

`torch.distributed.fsdp` and `.tensor` take most of a second to import, so only a sharded run does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vidsim.common.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def check_sharding(module: nn.Module, num_processes: int, unsupported: Mapping[str, bool]) -> None:
    """Refuse what cannot be sharded.

    Args:
        module: What is to be sharded.
        num_processes: Of the run.
        unsupported: Setting -> whether it is on; these compute with parameters outside of a forward pass.

    Raises:
        UserError: One of them is on, there is only one process, or the module has no `encode` to evaluate it by.
    """
    for setting, is_on in unsupported.items():
        if is_on:
            raise UserError("does not work with loop.sharded", field=setting, fix="switch one of the two off")
    if not hasattr(module, "encode"):
        raise UserError("only pretraining and finetuning can be sharded", field="loop.sharded", fix="set it to false")
    if num_processes == 1:
        raise UserError(
            "there is only one process to shard over",
            field="loop.sharded",
            fix="start several (launch/README.md), or set it to false",
        )


def shard(module: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> nn.Module:
    """Split the module over all processes, layer by layer, and give the optimizer the parts. Collective.

    A pass gathers one layer at a time; what is outside of the layers (embeddings, heads) is whole from the start of the
    forward to the end of the backward pass. Gradients are averaged over the processes, as DistributedDataParallel does.

    Args:
        module: On any device; each layer is moved to the accelerator's on its own. Layers are what is in its
            `nn.ModuleList`s.
        optimizer: Without state yet; its groups carry the `names` of their parameters.
        accelerator: Of the run.

    Returns:
        The module, to be called under the run's precision.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    layers = [layer for part in module.modules() if isinstance(part, nn.ModuleList) for layer in part]
    for part in [*reversed(layers), module]:  # inner before outer
        fully_shard(part, mesh=mesh)
    # What evaluations call instead of the module itself; `forward` must not, or the module is gathered twice.
    register_fsdp_forward_method(module, "encode")
    parts = dict(module.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parts[name] for name in group["names"]]
    # "Evaluation" takes the precision only: without it, DistributedDataParallel would be put around the module.
    wrapped: nn.Module = accelerator.prepare_model(module, evaluation_mode=True)
    return wrapped


def describe(module: nn.Module) -> str:
    """One line for the banner: how much of a sharded module this process keeps."""
    parameters = list(module.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    own = sum(parameter.to_local().numel() for parameter in parameters if _is_split(parameter))
    return f"sharded (FSDP2): the first process keeps {own:,} of {total:,} parameters"


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process holds a part, or the tensor itself. Collective."""
    return tensor.full_tensor() if _is_split(tensor) else tensor


def part_of(tensor: Tensor, target: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of `target`; all of it where `target` is not split."""
    if not _is_split(target):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


@contextlib.contextmanager
def gathered(module: nn.Module, optimizer: torch.optim.Optimizer, *, is_main_process: bool) -> Iterator[None]:
    """Inside the block the first process has a sharded module whole, in host memory, for a checkpoint. Collective.

    It takes 12 bytes a parameter there (weights and two moments in fp32), and one tensor at a time on the device. The
    other processes take part and keep nothing.

    Args:
        module: From `shard`.
        optimizer: Over its parameters.
        is_main_process: Whether this is the first process.
    """
    from torch.distributed.fsdp import FSDPModule

    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after an evaluation, embeddings and heads are still whole
    parameters: dict[nn.Parameter, nn.Parameter] = {}
    states: dict[nn.Parameter, dict[str, Tensor]] = {}
    for parameter in module.parameters():
        tensor = _to_host(parameter, keep=is_main_process)
        parameters[parameter] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        state = optimizer.state.get(parameter, {})
        states[parameters[parameter]] = {name: _to_host(value, keep=is_main_process) for name, value in state.items()}
    if not is_main_process:
        yield
        return
    own_states = optimizer.state
    _replace(module, optimizer, parameters)
    optimizer.state = states  # type: ignore[assignment]
    try:
        yield
    finally:
        _replace(module, optimizer, {new: old for old, new in parameters.items()})
        optimizer.state = own_states


def _is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "full_tensor")


def _to_host(tensor: Tensor, *, keep: bool) -> Tensor:
    full = whole(tensor.detach())
    return full.cpu() if keep else full.new_empty(0)


def _replace(
    module: nn.Module, optimizer: torch.optim.Optimizer, parameters: Mapping[nn.Parameter, nn.Parameter]
) -> None:
    """Put other parameters in the place of a module's, under all names that they have."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = parameters[parameter]
    for group in optimizer.param_groups:
        group["params"] = [parameters[parameter] for parameter in group["params"]]
