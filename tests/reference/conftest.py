import pytest
import torch

from vlarft.models.presets import build_world


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def world():
    """Tiny world whose logits are spread out, so that tokens depend on what came before."""
    world = build_world("tiny", seed=3)
    with torch.no_grad():
        for name, weight in world.transformer.named_parameters():
            if "norm" not in name:
                weight.mul_(8)
    return world
