"""The tiny case, run once; a result made by hand."""

import pytest
import torch

from vlarft.bench.cases import build, find_case
from vlarft.bench.measure import Context, Options
from vlarft.bench.results import BaselineResult, Result, Seconds
from vlarft.bench.subjects import Imagine, build_engine
from vlarft.engine import Sampling


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def context(sample="never", dtype=torch.float32, **sampling):
    """The engine's tokens for the tiny case, and what baselines are built from."""
    material = build(find_case("tiny"), 0, Sampling(**sampling))
    with torch.no_grad():  # spread logits out, so that tokens depend on what came before
        for name, weight in material.world.transformer.named_parameters():
            if "norm" not in name:
                weight.mul_(8)
    options = Options("native", dtype, sample=sample)
    tokens = Imagine(build_engine(material, options), material).run().output
    return Context(material, options, tokens)


@pytest.fixture
def result():
    """Makes a `Result`; any field may be given."""

    def make(median=1.0, ratio=2.0, **fields):
        values = {
            "case": "small-1x16",
            "stage": "imagine",
            "backend": "native",
            "device": "cpu",
            "dtype": "float32",
            "threads": 2,
            "seed": 0,
            "seconds": Seconds(median=median, p20=0.98 * median, p80=1.02 * median, runs=7),
            "parts": {"prefill": 0.1 * median, "generate": 0.9 * median},
            "limit_seconds": 0.5,
            "share_of_limit": 0.5 / median,
            "bytes": 1e9,
            "flops": 1e10,
            "work": [{"what": "prefill", "flops": 1e10, "bytes": 1e9, "count": 1}],
            "limits": {"read_gbps": 20.0, "matmul_gflops": 200.0},
            "limits_good": {"read_gbps": 10.0},
            "limits_one_thread": {"read_gbps": 10.0, "matmul_gflops": 100.0},
            "baselines": {
                "hf": BaselineResult(
                    seconds=ratio * median, ratio=ratio, ratio_min=ratio - 0.1,
                    ratio_max=ratio + 0.1, rounds=7, sampled=True, verdict="faster",
                ),
                "static": BaselineResult(skipped="its caches take 9 GiB, 1 GiB are free"),
            },
            "output_hash": "0123456789abcdef",
            "trajectories_per_second": 16 / median,
            "peak_bytes": 1_000_000,
            "planned_bytes": 1_100_000,
            "planned": {"weights": 1_100_000},
            "rounds_dropped": 1,
            "disturbed": False,
            "stats": {},
            "machine": {"cpu": "a processor", "cores": 2, "packages": {"torch": "2"}},
            "command": "vlarft bench run",
        }  # fmt: skip
        return Result(**(values | fields))

    return make
