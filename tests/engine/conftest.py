import pytest
import torch

from vlarft.engine import RolloutEngine
from vlarft.models.presets import build_world


def generator(seed=5):
    return torch.Generator().manual_seed(seed)


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


@pytest.fixture(scope="module")
def engine(world):
    return RolloutEngine(world, backend="reference", metric="lpips-alex", memory_limit="2GiB")


@pytest.fixture(scope="module")
def frames():
    return torch.randint(0, 256, (3, 32, 32, 3), generator=generator(), dtype=torch.uint8)


@pytest.fixture(scope="module")
def scenes(engine, frames):
    return engine.encode(frames)


@pytest.fixture(scope="module")
def actions():
    """[3,4,8,7], spread over the whole range."""
    return torch.rand(3, 4, 8, 7, generator=generator()) * 2 - 1


@pytest.fixture(scope="module")
def expert():
    return torch.rand(3, 8, 7, generator=generator(6)) * 2 - 1
