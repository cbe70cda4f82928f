"""A VLM that is too large for one device: each process keeps a part of every weight (FSDP2)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vlarft.errors import ConfigError
from vlarft.models.flow_policy import FlowPolicy
from vlarft.models.vlm import VLMEncoder
from vlarft.rft.parallel import Ranks


def shard_vlm(policy: FlowPolicy, ranks: Ranks, device: torch.device) -> None:
    """Freeze a policy's VLM and divide its weights among the processes.

    A block's weights are whole only while it computes, and what it computes is unchanged. From then
    on all processes must encode together, and call `state_dict` together, which gives whole
    tensors; `load_state_dict` takes whole ones.

    Args:
        policy: changed in place.
        ranks: the processes.
        device: where the weights go.

    Raises:
        ConfigError: this process is alone, or the policy has no VLM.
    """
    if ranks.count == 1:
        raise ConfigError("--shard-vlm needs several processes; start them with torchrun")
    encoder = policy.encoder
    if not isinstance(encoder, VLMEncoder):
        raise ConfigError(
            f"--shard-vlm: the policy's encoder is '{policy.config.encoder.kind}', there is no VLM "
            "to divide; leave it out"
        )
    policy.freeze_encoder()
    mesh = init_device_mesh(device.type, (ranks.count,))
    blocks = [block for m in encoder.modules() if isinstance(m, nn.ModuleList) for block in m]
    for part in [*blocks, encoder]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    encoder.register_state_dict_post_hook(_gather_weights)  # type: ignore[no-untyped-call]
    encoder.register_load_state_dict_pre_hook(_divide_weights)  # type: ignore[no-untyped-call]


def _gather_weights(_encoder: nn.Module, state: dict[str, Any], prefix: str, _meta: Any) -> None:
    for name, value in state.items():
        if name.startswith(prefix) and isinstance(value, DTensor):
            state[name] = value.full_tensor().cpu()


def _divide_weights(encoder: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    for name, own in encoder.named_parameters():
        whole = state.get(prefix + name)
        if isinstance(own, DTensor) and whole is not None and whole.shape == own.shape:
            # Every process was given the whole tensor, so none has to send it.
            state[prefix + name] = distribute_tensor(
                whole.to(own.device), own.device_mesh, own.placements, src_data_rank=None
            )
