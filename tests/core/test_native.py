"""vlarft._native: known answers, addressing, and errors in the caller's words."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vlarft import _native
from vlarft.errors import BackendError, DtypeError, ShapeError

# Random123, tests/kat_vectors, the lines "philox4x32 10".
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, answer):
    low, high = words(key)
    out = _native.philox(np.array([words(counter)], np.uint32), low | high << 32)
    assert out.dtype == np.uint32
    assert out.tolist() == [words(answer)]


def test_philox_takes_torch_and_numpy_and_empty():
    counters = torch.arange(12, dtype=torch.int64).to(torch.uint32).reshape(3, 4)
    out = _native.philox(counters, 9)
    np.testing.assert_array_equal(out, _native.philox(counters.numpy(), 9))
    assert len(np.unique(out)) == 12
    assert _native.philox(np.zeros((0, 4), np.uint32), 0).shape == (0, 4)


def test_philox_reads_read_only_memory():
    counters = np.zeros((1, 4), np.uint32)
    counters.flags.writeable = False
    # NumPy before 2.1 cannot say "read-only" over DLPack and refuses to share it.
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        with pytest.raises(BackendError, match="cannot be shared"):
            _native.philox(counters, 0)
    else:
        assert _native.philox(counters, 0).tolist() == [words(KNOWN_ANSWERS[0][2])]


@pytest.mark.parametrize("ids", [1, 3, 4, 5, 625])
def test_gumbel_is_a_function_of_the_address(ids):
    seed = 0x9E3779B97F4A7C15
    addresses = np.array([[130, 0xFFFFFFFF, 0], [130, 2, 7]], np.uint32)
    out = torch.full((2, ids), float("nan"))
    _native.gumbel(addresses, out, seed)

    blocks = np.arange(-(-ids // 4), dtype=np.uint32)
    for row, address in zip(out.numpy(), addresses, strict=True):
        counters = np.column_stack([blocks, *(np.full_like(blocks, word) for word in address)])
        x = _native.philox(np.ascontiguousarray(counters), seed).reshape(-1)[:ids]
        u = ((x >> 8).astype(np.float64) + 0.5) * 2.0**-24
        np.testing.assert_allclose(row, (-np.log(-np.log(u))).astype(np.float32), rtol=3e-7)


def test_gumbel_rows_do_not_depend_on_their_batch():
    addresses = np.arange(30, dtype=np.uint32).reshape(10, 3)
    whole = np.empty((10, 37), np.float32)
    _native.gumbel(addresses, whole, 3)
    one = np.empty((1, 37), np.float32)
    _native.gumbel(addresses[6:7], one, 3)
    np.testing.assert_array_equal(one[0], whole[6])
    _native.gumbel(addresses[6:7], one, 4)
    assert not np.array_equal(one[0], whole[6])


def test_gumbel_has_the_right_distribution():
    out = np.empty((64, 1000), np.float32)
    addresses = np.zeros((64, 3), np.uint32)
    addresses[:, 0] = np.arange(64)
    _native.gumbel(addresses, out, 0)
    assert np.isfinite(out).all()
    values = np.sort(out.reshape(-1).astype(np.float64))
    cdf = np.exp(-np.exp(-values))
    # Kolmogorov-Smirnov: above 1.95 / sqrt(n) has probability 0.001.
    assert np.abs(cdf - (np.arange(len(cdf)) + 0.5) / len(cdf)).max() < 1.95 / np.sqrt(len(cdf))


@pytest.mark.parametrize(
    ("counters", "error", "message"),
    [
        (np.zeros((2, 3), np.uint32), ShapeError,
         r"philox\(\): counters must be uint32 \[n,4\], got uint32 \[2,3\] on cpu"),
        (np.zeros(4, np.uint32), ShapeError, r"got uint32 \[4\] on cpu"),
        (np.zeros((2, 4), np.int64), DtypeError, r"must be uint32 \[n,4\], got int64 \[2,4\]"),
        (np.zeros((2, 8), np.uint32)[:, ::2], ShapeError, r"must be contiguous"),
        (np.zeros((2, 4), np.complex64), DtypeError, r"element type.*allowed: bool, uint8"),
        ([[0, 0, 0, 0]], DtypeError, r"must be a tensor or array .* got list"),
    ],
)  # fmt: skip
def test_philox_refuses(counters, error, message):
    with pytest.raises(error, match=message):
        _native.philox(counters, 0)


def test_gumbel_refuses_wrong_outputs():
    addresses = np.zeros((2, 3), np.uint32)
    with pytest.raises(ShapeError, match=r"out must be float32 \[2,ids\], got float32 \[3,5\]"):
        _native.gumbel(addresses, np.zeros((3, 5), np.float32), 0)
    with pytest.raises(DtypeError, match=r"got float64 \[2,5\] on cpu"):
        _native.gumbel(addresses, np.zeros((2, 5)), 0)
    frozen = np.zeros((2, 5), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(BackendError, match=r"read-?only|readonly"):
        _native.gumbel(addresses, frozen, 0)
    with pytest.raises(BackendError, match=r"cannot be shared.*grad"):
        _native.gumbel(addresses, torch.zeros(2, 5, requires_grad=True), 0)


def test_keys_outside_64_bits_are_refused():
    with pytest.raises(TypeError):
        _native.philox(np.zeros((1, 4), np.uint32), 2**64)
    with pytest.raises(TypeError):
        _native.philox(np.zeros((1, 4), np.uint32), -1)


def test_matches_the_reference_noise():
    noise = pytest.importorskip("vlarft.reference.noise", reason="reference engine not installed")
    seed, tokens = 0xDEADBEEF12345678, 75
    reference = noise.gumbel(
        seed, torch.tensor([3, 9]), torch.tensor([0, noise.SHARED_MEMBER]), torch.arange(5), tokens
    )
    grid = torch.cartesian_prod(
        torch.tensor([3, 9]), torch.tensor([0, noise.SHARED_MEMBER]), torch.arange(5)
    )
    addresses = grid.flip(1).contiguous().numpy().astype(np.uint32)
    out = torch.empty(len(addresses), tokens)
    _native.gumbel(addresses, out, seed)
    # Both take logarithms in float64 and round once, so only rare last bits may differ.
    torch.testing.assert_close(out, reference.reshape(-1, tokens), rtol=3e-7, atol=1e-7)


def test_cpu_features_agree_with_the_kernel():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), None)
    if flags is None:
        pytest.skip("no x86 flags in /proc/cpuinfo")
    features = _native.cpu_features()
    assert set(features) <= set(flags)
    for name in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile"):
        assert (name in features) == (name in flags)


def test_build_info_is_complete():
    build = _native.build_info()
    assert build["cuda"] == (build["cuda_reason"] == "")
    assert build["cuda"] == (build["cuda_version"] != "")


@pytest.mark.gpu
def test_gumbel_on_cuda_matches_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if not _native.build_info()["cuda"]:
        pytest.skip(_native.build_info()["cuda_reason"])
    addresses = torch.arange(30, dtype=torch.int64).to(torch.uint32).reshape(10, 3)
    host, device = torch.empty(10, 4377), torch.empty(10, 4377, device="cuda")
    _native.gumbel(addresses, host, 11)
    stream = torch.cuda.current_stream().cuda_stream
    _native.gumbel(addresses.cuda(), device, 11, stream=stream)
    torch.testing.assert_close(device.cpu(), host, rtol=3e-7, atol=1e-7)
