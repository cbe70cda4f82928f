"""Seconds of each engine stage under pytest-benchmark: `pytest benchmarks`.

Baselines, limits and interleaved rounds: `vlarft bench run`, docs/bench.md.
"""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vlarft.bench.cases import build, find_case
from vlarft.bench.measure import Options
from vlarft.bench.stages import STAGES
from vlarft.bench.subjects import build_engine


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("case", ["tiny", "small-1x8"])
def test_stage(benchmark: BenchmarkFixture, case: str, backend: str, stage: str) -> None:
    size = find_case(case)
    material = build(size)
    subject = STAGES[stage].subject(build_engine(material, Options(backend)), material)
    benchmark.pedantic(subject.run, rounds=5, warmup_rounds=1)
    rate = size.trajectories / benchmark.stats.stats.median
    benchmark.extra_info["trajectories_per_second"] = rate
