from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.models.lpips import LPIPS, install_weights, weights_path

SHARED = Path(__file__).parents[3] / "shared" / "lpips"
VGG = SHARED / "lpips_vgg_fp16.safetensors"
EXAMPLE = Path(__file__).parent / "lpips_example"
needs_vgg = pytest.mark.skipif(not VGG.exists(), reason=f"{VGG} is not at hand")


def example(name):
    image = np.array(Image.open(EXAMPLE / f"{name}.png").convert("RGB"))
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(
    ("net", "file", "first", "second"),
    [
        ("alex", None, 0.722, 0.138),
        pytest.param("vgg", VGG, 0.56861, 0.42166, marks=needs_vgg),
    ],
)
def test_published_distances(net, file, first, second):
    lpips = LPIPS.load(net, file)
    reference = example("ex_ref")
    assert lpips(reference, example("ex_p0")).item() == pytest.approx(first, abs=1e-3)
    assert lpips(reference, example("ex_p1")).item() == pytest.approx(second, abs=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (71, 65)])
def test_alex_equals_a_plain_formula(size):
    """Written from the paper's Eq. 1 with functional calls only."""
    weights = {k: v.float() for k, v in load_file(weights_path("alex")).items()}
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, taps = (2 * images - 1 - shift) / scale, []
    for index, (stride, padding) in {
        0: (4, 2),
        3: (1, 2),
        6: (1, 1),
        8: (1, 1),
        10: (1, 1),
    }.items():
        if index in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        x = F.conv2d(
            x,
            weights[f"features.{index}.weight"],
            weights[f"features.{index}.bias"],
            stride,
            padding,
        )
        x = x.relu()
        taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
    expected = sum(
        ((t[0] - t[1]).square() * weights[f"lin{i}.weight"][0]).sum(0).mean()
        for i, t in enumerate(taps)
    )
    actual = LPIPS.load("alex")(images[:1], images[1:]).item()
    assert actual == pytest.approx(expected.item(), rel=1e-4)


def test_a_distance_behaves():
    lpips = LPIPS.load("alex")
    a = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    near, far = (a + 0.02).clamp(0, 1), a.flip(3)
    assert torch.equal(lpips(a, a), torch.zeros(3))
    assert (lpips(a, near) < lpips(a, far)).all()
    assert torch.allclose(lpips(a, far), lpips(far, a), atol=1e-6)
    features = lpips.features(a)
    assert torch.equal(lpips.distance(features, lpips.features(far)), lpips(a, far))


def test_missing_weights_are_an_error_that_helps(tmp_path, monkeypatch):
    monkeypatch.setenv("VLARFT_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="vlarft weights lpips --net vgg"):
        LPIPS.load("vgg")
    with pytest.raises(ConfigError, match="allowed: alex, vgg, squeeze"):
        LPIPS("resnet")
    with pytest.raises(ShapeError, match=r"\[B,3,H,W\]"):
        LPIPS.load("alex")(torch.rand(3, 64, 64), torch.rand(3, 64, 64))


def test_random_or_changed_weights_are_refused(tmp_path):
    tensors = load_file(weights_path("alex"))
    tensors["features.0.weight"] = torch.randn_like(tensors["features.0.weight"])
    save_file(tensors, tmp_path / "random.safetensors")
    with pytest.raises(CheckpointError, match="sha256"):
        install_weights("alex", tmp_path / "random.safetensors", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_known_file_is_installed(tmp_path):
    stored = install_weights("alex", weights_path("alex"), tmp_path / "alex.safetensors")
    a, b = torch.rand(2, 1, 3, 64, 64)
    assert torch.equal(LPIPS.load("alex", stored)(a, b), LPIPS.load("alex")(a, b))


@needs_vgg
def test_vgg_comes_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("VLARFT_CACHE", str(tmp_path))
    install_weights("vgg", VGG)
    assert len(LPIPS.load("vgg").lins) == 5


def test_squeeze_has_the_published_shape():
    squeeze = LPIPS("squeeze")
    heads = load_file(weights_path("alex").parent / "lpips_heads.safetensors")
    widths = [heads[f"squeeze.lin{i}.weight"].numel() for i in range(7)]
    assert [p.numel() for p in squeeze.lins] == widths
    for p in squeeze.parameters():
        torch.nn.init.normal_(p, std=0.1)
    assert [f.shape[1] for f in squeeze.features(torch.rand(1, 3, 65, 71))] == widths
