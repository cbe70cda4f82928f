from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from vlarft.errors import CheckpointError, ConfigError, ShapeError
from vlarft.models.lpips import LPIPS, NETS, install_weights, weights_path

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


# Layers between taps, by torchvision's indices: convolution (index, stride, padding), fire, pool.
PROGRAMS = {
    "alex": [
        [("conv", 0, 4, 2)],
        ["pool", ("conv", 3, 1, 2)],
        ["pool", ("conv", 6, 1, 1)],
        [("conv", 8, 1, 1)],
        [("conv", 10, 1, 1)],
    ],
    "vgg": [
        [("conv", i, 1, 1) for i in (0, 2)],
        ["pool", *(("conv", i, 1, 1) for i in (5, 7))],
        ["pool", *(("conv", i, 1, 1) for i in (10, 12, 14))],
        ["pool", *(("conv", i, 1, 1) for i in (17, 19, 21))],
        ["pool", *(("conv", i, 1, 1) for i in (24, 26, 28))],
    ],
    "squeeze": [
        [("conv", 0, 2, 0)],
        ["pool", ("fire", 3), ("fire", 4)],
        ["pool", ("fire", 6), ("fire", 7)],
        ["pool", ("fire", 9)],
        [("fire", 10)],
        [("fire", 11)],
        [("fire", 12)],
    ],
}


def plain_distance(net, weights, images):
    """Distance of two images, from the paper's Eq. 1 with functional calls only."""

    def conv(x, name, stride=1, padding=0):
        weight, bias = (weights[f"features.{name}.{part}"] for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias, stride, padding).relu()

    def layer(x, step):
        if step == "pool":
            return F.max_pool2d(
                x, *((2, 2) if net == "vgg" else (3, 2)), ceil_mode=net == "squeeze"
            )
        kind, index, *rest = step
        if kind == "conv":
            return conv(x, index, *rest)
        x = conv(x, f"{index}.squeeze")
        sides = conv(x, f"{index}.expand1x1"), conv(x, f"{index}.expand3x3", 1, 1)
        return torch.cat(sides, 1)

    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    x, total = (2 * images - 1 - shift) / scale, 0.0
    for number, steps in enumerate(PROGRAMS[net]):
        for step in steps:
            x = layer(x, step)
        tap = x / (x.norm(dim=1, keepdim=True) + 1e-10)
        weight = weights[f"lin{number}.weight"].view(-1, 1, 1)
        total += ((tap[0] - tap[1]).square() * weight).sum(0).mean().item()
    return total


def published_names(lpips):
    """The weights as `features.*` and `lin*.weight`, float32."""
    return {
        f"lin{key[5:]}.weight"
        if key.startswith("lins.")
        else key.replace("features_net", "features"): v
        for key, v in lpips.state_dict().items()
    }


@pytest.mark.parametrize("size", [(64, 64), (71, 65)])
@pytest.mark.parametrize("net", NETS)
def test_random_pairs_equal_a_plain_formula(net, size):
    lpips = LPIPS.random(net, seed=3)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = plain_distance(net, published_names(lpips), images)
    assert expected > 0.01
    assert lpips(images[:1], images[1:]).item() == pytest.approx(expected, rel=1e-4)


def test_the_bundled_weights_equal_a_plain_formula():
    weights = {k: v.float() for k, v in load_file(weights_path("alex")).items()}
    images = torch.rand(2, 3, 71, 65, generator=torch.Generator().manual_seed(0))
    expected = plain_distance("alex", weights, images)
    assert LPIPS.load("alex")(images[:1], images[1:]).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # it calls torchvision the old way
@pytest.mark.parametrize("size", [(64, 64), (71, 65)])
@pytest.mark.parametrize("net", NETS)
def test_random_pairs_equal_the_authors_package(net, size):
    package = pytest.importorskip(
        "lpips", reason="the lpips package and torchvision are not installed", exc_type=ImportError
    )
    ours = LPIPS.random(net, seed=3)
    theirs = package.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False).eval()
    weights = published_names(ours)
    copied = dict.fromkeys(theirs.state_dict())
    for key in copied:
        if key.startswith("lin"):  # lin0.model.1.weight, and lins.0.model.1.weight, the same one
            number = key.removeprefix("lins.").removeprefix("lin").split(".")[0]
            copied[key] = weights[f"lin{number}.weight"].view(1, -1, 1, 1)
        elif key.startswith("net."):  # net.slice2.3.weight
            copied[key] = weights["features." + key.split(".", 2)[2]]
        else:
            copied[key] = theirs.state_dict()[key]
    theirs.load_state_dict(copied)
    a, b = torch.rand(2, 3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(a, b, normalize=True).flatten()
    assert torch.allclose(ours(a, b), expected, rtol=1e-4)


def test_a_network_without_weights_refuses_images():
    image = torch.rand(1, 3, 64, 64)
    empty = LPIPS("alex")
    for use in (lambda: empty(image, image), lambda: empty.features(image)):
        with pytest.raises(CheckpointError, match=r"has no weights; use LPIPS.load\('alex'\)"):
            use()
    empty.load_state_dict(LPIPS.load("alex").state_dict())
    assert torch.equal(empty(image, image.flip(3)), LPIPS.load("alex")(image, image.flip(3)))
    one, two, other = (LPIPS.random("alex", seed)(image, image.flip(3)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


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
    squeeze = LPIPS.random("squeeze")
    heads = load_file(weights_path("alex").parent / "lpips_heads.safetensors")
    widths = [heads[f"squeeze.lin{i}.weight"].numel() for i in range(7)]
    assert [p.numel() for p in squeeze.lins] == widths
    assert [f.shape[1] for f in squeeze.features(torch.rand(1, 3, 65, 71))] == widths
