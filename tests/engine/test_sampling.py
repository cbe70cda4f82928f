import pytest

from vlarft.engine import Sampling
from vlarft.errors import ConfigError


def test_defaults_are_those_of_the_method():
    s = Sampling()
    assert (s.seed, s.temperature, s.top_k, s.top_p, s.noise) == (0, 1.0, None, 0.8, "shared")


@pytest.mark.parametrize(
    "values",
    [
        {"seed": -1},
        {"seed": 2**64},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": 0},
        {"noise": "common"},
        {"speculate": "crystal-ball"},
        {"topp": 0.9},
    ],
)
def test_bad_values_are_refused_in_one_line(values):
    with pytest.raises(ConfigError, match=f"^Sampling: {next(iter(values))} = ") as refused:
        Sampling(**values)
    assert "\n" not in str(refused.value)
