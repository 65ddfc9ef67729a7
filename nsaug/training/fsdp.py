"""Fully sharded data parallelism (`trainer=fsdp`): each process holds a part of every weight, gradient and moment.

Lightning's strategy for FSDP2 shards, reduces and steps. What is here makes it shard over all processes, and read and
write the checkpoints of one process: a run folder does not show by which strategy it was trained.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from nsaug.models.noise_layers import BLOCK
from nsaug.models.noisy_vit import NoisyViT
from nsaug.training.resume import read_checkpoint
from nsaug.utils.errors import UserError


class FSDP(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes of a run.

    `Finetuner.configure_model` shards the model. In validation, processes hold the whole weights, so that an attack may
    take longer in one of them.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)
        self._validation = ExitStack()

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def on_validation_start(self) -> None:
        assert self.lightning_module is not None
        self._validation.enter_context(gathered(self.lightning_module))

    def on_validation_end(self) -> None:
        self._validation.close()

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    # Lightning's own versions know neither a state dict without the prefix of the timm model nor parameter groups: they
    # look up parameters by name, and number the states in another order than an optimizer in one process does.

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.full_state(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        return self.full_state(optimizer.state_dict())

    def full_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state dict with whole tensors in the first process, empty in the others; all have to call it."""
        state = full_tensors(state, keep=self.is_global_zero)
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return dict(read_checkpoint(Path(checkpoint_path), mmap=True))  # processes share the memory

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict(keep_vars=True)
        for key, value in checkpoint["state_dict"].items():
            own[key].copy_(shard_like(value, own[key]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                index: {
                    name: shard_like(value, parameters[index]) if value.dim() else value
                    for name, value in values.items()
                }
                for index, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def check_model(vit: NoisyViT) -> None:
    """Raise UserError if a model cannot be trained with FSDP."""
    if any(isinstance(module, _BatchNorm) for module in vit.modules()):
        name = type(vit.model).__name__
        raise UserError(f"trainer=fsdp: {name} has batch norm, whose statistics it does not share: type trainer=ddp")


def shard(vit: NoisyViT, mesh: DeviceMesh) -> None:
    """Shard the weights of every block, and together those outside blocks, over the processes of a mesh.

    A block's weights are gathered for its forward and its backward alone. The root does not keep its weights after a
    forward either: between forwards, `parameters()` are always those of the optimizer.
    """
    blocks = [module for name, module in vit.model.named_modules() if BLOCK.fullmatch(name)]
    for module in [*reversed(blocks), vit]:  # nested blocks before the outer ones
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    register_fsdp_forward_method(vit, "activations")


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold the whole weights in every process; forwards and gradients to inputs need no other process then.

    All processes have to enter and leave it. Does nothing for a model that is not sharded.
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.set_reshard_after_backward(True, recurse=False)
        reshard(model)


def reshard(model: nn.Module) -> None:
    """Free gathered weights; `parameters()` are those of the optimizer again. Does nothing for other models."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full_tensors(state: Any, keep: bool) -> Any:
    """Nested containers with sharded tensors gathered, on the CPU; all processes have to call it.

    Args:
        state: dicts and lists.
        keep: whether this process needs them; otherwise it frees each at once.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor().detach()
        return whole.cpu() if keep else None
    if isinstance(state, dict):
        return {key: full_tensors(value, keep) for key, value in state.items()}
    return [full_tensors(value, keep) for value in state] if isinstance(state, list) else state


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor of the whole shape of `like`, if that is sharded; a copy on its device."""
    if isinstance(like, DTensor):
        return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).clone()
    return value.to(like.device, copy=True)
