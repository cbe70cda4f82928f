"""The native convolution and GroupNorm against float64 and against plain torch."""

import random

import pytest
import torch
import torch.nn.functional as F

from vlarft import _native
from vlarft.errors import BackendError, DtypeError, ShapeError, VlarftError

ACTIVATIONS = {"none": lambda x: x, "silu": F.silu, "relu": F.relu}


def case(seed):
    """A random convolution with its surroundings: sizes around every block and border."""
    rng, g = random.Random(seed), torch.Generator().manual_seed(seed)
    width = (1, 3, 5, 16, 17, 32, 40, 64, 70, 96, 130)
    images, height, columns = rng.randint(1, 3), rng.randint(1, 9), rng.choice((1, 2, 7, 13, 66))
    size, upsample = rng.choice(((3, False), (1, False), (3, True)))
    cin, cout, zoom = rng.choice(width), rng.choice(width), 2 if upsample else 1

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return {
        "weight": normal(cout, cin, size, size) / (cin * size * size) ** 0.5,
        "bias": normal(cout),
        "x": normal(images, height, columns, cin),
        "residual": rng.choice((None, normal(images, zoom * height, zoom * columns, cout))),
        "scale": rng.choice((None, normal(images, cin))),
        "shift": normal(images, cin),
        "before": rng.choice(tuple(ACTIVATIONS)),
        "after": rng.choice(("none", "relu")),
        "upsample": upsample,
    }  # fmt: skip


def plain(c, dtype):
    """The same in plain torch: [B,H',W',out] in `dtype`."""
    x, weight, bias = (c[name].to(dtype) for name in ("x", "weight", "bias"))
    if c["scale"] is not None:
        x = x * c["scale"].to(dtype)[:, None, None] + c["shift"].to(dtype)[:, None, None]
    x = ACTIVATIONS[c["before"]](x).permute(0, 3, 1, 2)
    if c["upsample"]:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    x = F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2).permute(0, 2, 3, 1)
    x = ACTIVATIONS[c["after"]](x)
    return x if c["residual"] is None else x + c["residual"].to(dtype)


def native(c, dtype, kernels="", threads=1):
    conv = _native.Convolution(
        c["weight"], c["bias"], upsample=c["upsample"], dtype=str(dtype)[6:], kernels=kernels
    )
    x, zoom = c["x"].to(dtype), 2 if c["upsample"] else 1
    shape = (x.shape[0], zoom * x.shape[1], zoom * x.shape[2], len(c["bias"]))
    guarded = torch.full((shape[0] + 2, *shape[1:]), 7.0, dtype=dtype)
    guarded[1:-1] = float("nan")
    residual = None if c["residual"] is None else c["residual"].to(dtype)
    around = {} if c["scale"] is None else {"scale": c["scale"], "shift": c["shift"]}
    conv.run(
        _native.Workers(threads), x, guarded[1:-1], residual=residual,
        before=c["before"], after=c["after"], **around,
    )  # fmt: skip
    assert (guarded[0] == 7).all()
    assert (guarded[-1] == 7).all()
    return guarded[1:-1]


@pytest.mark.parametrize("kernels", _native.runnable_kernels())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_convolution_is_as_exact_as_torch(kernels, dtype):
    """Against float64 of the inputs as stored; the weights are rounded by both."""
    for seed in range(40):
        c = case(seed)
        for name in ("x", "residual"):
            c[name] = None if c[name] is None else c[name].to(dtype).float()
        truth = plain(c, torch.float64)
        honest = (plain(c, dtype).double() - truth).abs().max()
        error = (native(c, dtype, kernels).double() - truth).abs().max()
        floor = 1e-6 if dtype == torch.float32 else 1e-2  # one rounding of numbers of size 1
        assert error <= max(2 * honest, floor * truth.abs().max().clamp(min=1)), f"case {seed}"


def test_output_does_not_depend_on_images_or_threads():
    for seed in range(20):
        c = case(seed)
        whole = native(c, torch.float32)
        assert torch.equal(native(c, torch.float32, threads=3), whole)
        first = {k: v[:1] if k in ("x", "residual", "scale", "shift") and v is not None else v
                 for k, v in c.items()}  # fmt: skip
        assert torch.equal(native(first, torch.float32), whole[:1])


def test_residual_may_be_the_output():
    c = case(3) | {"residual": None, "after": "none", "upsample": False}
    expected = native(c, torch.float32) + 1
    conv = _native.Convolution(c["weight"], c["bias"])
    out = torch.ones_like(expected)
    around = {} if c["scale"] is None else {"scale": c["scale"], "shift": c["shift"]}
    conv.run(_native.Workers(1), c["x"], out, before=c["before"], residual=out, **around)
    assert torch.allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_group_norm_is_as_exact_as_torch(dtype, offset):
    """Also where the mean is 100 standard deviations from zero."""
    for seed, (images, size, width, groups) in enumerate(
        [(1, 1, 32, 8), (2, 5, 32, 1), (3, 17, 48, 12), (1, 40, 64, 64), (2, 3, 70, 7)]
    ):
        g = torch.Generator().manual_seed(seed)
        x = (torch.randn(images, size, size, width, generator=g) + offset).to(dtype)
        weight, bias = torch.randn(2, width, generator=g)
        scale, shift = torch.empty(2, images, width)
        _native.group_norm(
            _native.Workers(2), x, weight, bias, groups=groups, eps=1e-6, scale=scale, shift=shift
        )
        nchw = x.permute(0, 3, 1, 2)
        truth = F.group_norm(nchw.double(), groups, weight.double(), bias.double(), 1e-6)
        honest = F.group_norm(nchw.float(), groups, weight, bias, 1e-6)
        ours = x.double() * scale[:, None, None].double() + shift[:, None, None].double()
        error = (ours.permute(0, 3, 1, 2) - truth).abs().max()
        assert error <= max(2 * (honest - truth).abs().max(), 2e-6 * truth.abs().max())


def test_nan_and_infinity_stay_visible():
    x = torch.zeros(1, 4, 4, 32)
    x[0, 1, 1, 5], x[0, 3, 3, 6] = float("nan"), float("inf")
    for dtype in (torch.float32, torch.bfloat16):
        conv = _native.Convolution(torch.ones(8, 32, 1, 1), torch.zeros(8), dtype=str(dtype)[6:])
        out = torch.zeros(1, 4, 4, 8, dtype=dtype)
        conv.run(_native.Workers(1), x.to(dtype), out, before="silu", after="relu")
        assert out[0, 1, 1].isnan().all()
        assert out[0, 3, 3].isinf().all()
        assert out.isfinite().sum() == 14 * 8


def test_wrong_arguments_are_refused_by_name():
    weight, bias, workers = torch.ones(8, 4, 3, 3), torch.ones(8), _native.Workers(1)
    conv = _native.Convolution(weight, bias)
    x, out = torch.ones(1, 5, 5, 4), torch.ones(1, 5, 5, 8)
    with pytest.raises(ShapeError, match=r"x must be .*B,H,W,in"):
        conv.run(workers, torch.ones(1, 5, 5, 3), out)
    with pytest.raises(ShapeError, match="out must be"):
        conv.run(workers, x, torch.ones(1, 10, 10, 8))
    with pytest.raises(DtypeError, match="x must be"):
        conv.run(workers, x.double(), out)
    with pytest.raises(DtypeError, match="residual and out differ"):
        conv.run(workers, x, out, residual=out.bfloat16())
    with pytest.raises(VlarftError, match="give both scale and shift"):
        conv.run(workers, x, out, scale=torch.ones(1, 4))
    with pytest.raises(VlarftError, match="before = 'gelu'; allowed: none, silu, relu"):
        conv.run(workers, x, out, before="gelu")
    with pytest.raises(ShapeError, match=r"weight must be \[out,in,3,3\]"):
        _native.Convolution(torch.ones(8, 4, 5, 5), bias)
    with pytest.raises(DtypeError, match="dtype 'float16'; allowed: float32, bfloat16"):
        _native.Convolution(weight, bias, dtype="float16")
    with pytest.raises(BackendError, match="'sse9' is unknown"):
        _native.Convolution(weight, bias, kernels="sse9")
    with pytest.raises(VlarftError, match="threads = 0"):
        _native.Workers(0)
    with pytest.raises(ShapeError, match="groups = 3 must divide"):
        _native.group_norm(
            workers, x, torch.ones(4), torch.ones(4), groups=3, eps=1e-6,
            scale=torch.ones(1, 4), shift=torch.ones(1, 4),
        )  # fmt: skip
