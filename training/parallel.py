"""Several processes that train one model: who is who, sums over all, DDP and FSDP2, sharded tensors and whole ones."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mgeldm.devices import choose_device
from mgeldm.model import JointTransformer

Parallel = Literal["ddp", "fsdp"]
TIMEOUT = timedelta(minutes=30)
"""Longest that a process waits for the others; the first of them may be writing a large checkpoint meanwhile."""


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over all processes, the same in each."""
        if self.world > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def range(self, value: int) -> tuple[int, int]:
        """The least and the largest ``value`` of all processes."""
        if self.world == 1:
            return value, value
        extremes = torch.tensor([-value, value], device=self.device)
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        return -int(extremes[0]), int(extremes[1])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def workers(device: str) -> Iterator[Workers]:
    """Join the processes that torchrun or Ray has started (by its variables of the environment); alone without them."""
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield Workers(choose_device(device))
        return
    chosen = choose_device(device)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    ours = not dist.is_initialized()  # Ray has done it
    if ours:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Workers(chosen, rank, world)
    finally:
        if ours:
            dist.destroy_process_group()


def distribute(network: JointTransformer, kind: Parallel, group: Workers) -> nn.Module:
    """The module to call in place of the network, whose gradients are the mean over all processes.

    With "fsdp" the network itself is changed: each process keeps a share of every parameter.
    """
    if group.world == 1:
        return network
    if kind == "ddp":
        devices = [group.device] if group.device.type == "cuda" else None
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    mesh = init_device_mesh(group.device.type, (group.world,))
    for layer in network.transformer.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def accumulating(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a backward pass: gradients are exchanged in the ``last`` of a step only."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    elif isinstance(module, DistributedDataParallel) and not last:
        return module.no_sync()
    return nullcontext()


def regather(module: nn.Module) -> None:
    """Make a module whose weights were set gather them anew at its next call."""
    if isinstance(module, FSDPModule):
        module.reshard()


def local(value: Tensor) -> Tensor:
    """This process's share of a sharded tensor, by its own memory; any other tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Any) -> Any:
    """A state with its sharded tensors made whole. All processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


def like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor, sharded as the reference is."""
    if not isinstance(reference, DTensor) or value.shape != reference.shape:
        return value
    return distribute_tensor(value.to(reference.device), reference.device_mesh, reference.placements)
