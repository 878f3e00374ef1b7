"""What the processes of one training have in common: their numbers, sums over all of them, and weights that are sharded among them.

A process that was not started as a rank is the first and only one, and everything here then gives back what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from model.llama import Llama

Strategy = Literal["ddp", "fsdp2"]


def started() -> bool:
    """Whether this process is a rank."""
    return dist.is_available() and dist.is_initialized()


def number() -> int:
    """This rank, from 0."""
    return dist.get_rank() if started() else 0


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if started() else 1


def first() -> bool:
    """Whether this rank is the one that writes and speaks."""
    return number() == 0


def wait_for_all() -> None:
    """Until every rank is here."""
    if count() > 1:
        dist.barrier()


def summed(values: Sequence[float]) -> list[float]:
    """The sums over all ranks, in fp64; every rank calls it with as many values."""
    if count() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def some(condition: bool) -> bool:
    """Whether it holds on any rank; every rank calls it."""
    return summed([float(condition)])[0] > 0


def shard(network: Llama, mesh: DeviceMesh) -> None:
    """Let each rank of a mesh of one dimension keep its part of every weight, gradient and optimizer state (FSDP2).

    A layer's weights are whole while it computes. Embedding, last norm and output are whole from the forward pass to the backward pass,
    since logits are made of them after it.
    """
    for layer in network.trunk.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(network, "hidden")


def whole(value: Any) -> Any:
    """`value` with every sharded tensor in its dicts and lists gathered on the CPU of the first rank; on others there is None in its place.

    Every rank calls it. What is not sharded stays what it is.
    """
    if isinstance(value, DTensor):
        tensor = value.full_tensor()
        return tensor.cpu() if first() else None
    if isinstance(value, dict):
        return {name: whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return value


def sharded_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor, which every rank has, divided as the parameter of the same shape is."""
    if not isinstance(parameter, DTensor) or tensor.shape != parameter.shape:
        return tensor
    device = parameter.to_local().device
    return distribute_tensor(tensor.to(device), parameter.device_mesh, parameter.placements, src_data_rank=None)


def number_of(tensor: Tensor) -> float:
    """A scalar as a number; every rank calls it."""
    return float(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)


def load_optimizer(optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """As `optimizer.load_state_dict`, for a state with whole tensors and parameters that may be sharded."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = {
        index: {name: sharded_as(parameters[index], one) if isinstance(one, Tensor) else one for name, one in state.items()}
        for index, state in kept["state"].items()
    }
    optimizer.load_state_dict({**kept, "state": states})


def is_sharded(module: nn.Module) -> bool:
    """Whether each rank has a part of the weights alone."""
    return any(isinstance(cast(Any, parameter), DTensor) for parameter in module.parameters())
