"""Kernels compile for real GPUs, which needs none; run by test_kernels.py, not interpreted."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vlarft.kernels.compare import average, bias_relu, perceptual, prepare
from vlarft.kernels.decode import codes, group_norm, interleave, merge, moments

TYPES = {"float32": "*fp32", "bfloat16": "*bf16"}
INDEXES = {"index_ptr", "image_ptr", "target_ptr"}
DATA = {"x_ptr", "residual_ptr", "y_ptr", "parts_ptr", "out_ptr", "a_ptr", "b_ptr"}
DATA |= {"images_ptr", "reference_ptr", "input_ptr"}
BLOCK = {"TILE": 128, "CHANNELS": 64}
# Kernel, its constants, and the integers that are 1 (the compiler makes these constants as well).
KERNELS = [
    (moments._moments_kernel, {**BLOCK, "RESIDUAL": True, "BIAS": True}, ()),
    (moments._moments_kernel, {"TILE": 1, "CHANNELS": 1, "RESIDUAL": False, "BIAS": False},
     ("pixels", "width", "tiles")),
    (merge._merge_kernel, {"TILES": 32, "GROUPS": 8, "LANES": 4, "ADDED": True}, ()),
    (merge._merge_kernel, {"TILES": 1, "GROUPS": 1, "LANES": 1, "ADDED": False},
     ("pixels", "width", "tiles", "tile_pixels", "group_width")),
    (group_norm._group_norm_kernel, {**BLOCK, "SILU": True}, ()),
    (group_norm._group_norm_kernel, {**BLOCK, "SILU": False}, ("pixels", "tiles")),
    (interleave._interleave_kernel, BLOCK, ()),
    (interleave._interleave_kernel, {"TILE": 4, "CHANNELS": 1},
     ("height", "columns", "width", "tiles")),
    (codes._codes_kernel, {"LEVELS": (7, 5, 5, 5, 5), "DIGITS": 5, "BLOCK": 256}, ()),
    (average._average_kernel, {"ADD": True, "TILES": 1024}, ()),
    (average._average_kernel, {"ADD": False, "TILES": 1}, ("tiles", "count")),
    (bias_relu._bias_relu_kernel, {"ROWS": 64, "CHANNELS": 64}, ()),
    (bias_relu._bias_relu_kernel, {"ROWS": 1, "CHANNELS": 1}, ("rows", "width")),
    (perceptual._perceptual_kernel, {"TILE": 8, "CHANNELS": 512}, ()),
    (perceptual._perceptual_kernel, {"TILE": 1, "CHANNELS": 1}, ("pixels", "width", "tiles")),
    (prepare._prepare_kernel,
     {"INDEXED": True, "SCALED": True, "COMPARED": True, "TILE": 512, "CHANNELS": 4},
     ("image_channel",)),
    (prepare._prepare_kernel,
     {"INDEXED": False, "SCALED": False, "COMPARED": True, "TILE": 1, "CHANNELS": 1},
     ("pixels", "width", "tiles", "image_pixel", "reference_pixel")),
]  # fmt: skip


def kind(name, dtype):
    if name == "eps":
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    if name in INDEXES:
        return "*i64"
    return TYPES[dtype] if name in DATA else "*fp32"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", KERNELS, ids=lambda case: case[0].__name__)
def test_kernel_compiles(case, dtype):
    kernel, constants, ones = case
    constants = constants | dict.fromkeys(ones, 1)
    signature = {
        name: "constexpr" if name in constants else kind(name, dtype) for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert ".target sm_90" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
