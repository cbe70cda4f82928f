"""Order, number and dropping of rounds, with a machine and a clock that do as they are told."""

import pytest

from vlarft.bench.interleave import interleave, is_quiet, spread


class Machine:
    """Time passes only where it is said to."""

    def __init__(self, rates=(), default=1.0):
        self.now, self.rates, self.default, self.log = 0.0, list(rates), default, []

    def clock(self):
        return self.now

    def probe(self):
        self.log.append("probe")
        return {"read": self.rates.pop(0) if self.rates else self.default, "multiply": 5.0}

    def subject(self, name, seconds):
        def call():
            self.log.append(name)
            self.now += seconds
            return seconds

        return call


def run(machine, seconds, rounds=None):
    subjects = {name: machine.subject(name, s) for name, s in seconds.items()}
    return interleave("engine", subjects, machine.probe, machine.clock, rounds)


def test_subjects_take_turns_with_a_probe_around_each():
    machine = Machine()
    found = run(machine, {"a": 2.0, "engine": 1.0, "b": 3.0}, rounds=2)
    first = ["probe", "engine", "probe", "a", "probe", "b", "probe"]
    second = ["probe", "engine", "probe", "b", "probe", "a", "probe"]
    assert machine.log == [*first, *second]
    assert found.ratios("a", "engine") == [2.0, 2.0]
    assert (found.dropped, found.disturbed) == (0, False)


def test_seven_rounds_or_three_long_ones():
    assert len(run(Machine(), {"engine": 1.0}).kept) == 7
    assert len(run(Machine(), {"engine": 60.1}).kept) == 3
    assert len(run(Machine(), {"engine": 100.0}, rounds=5).kept) == 5  # as asked for


def test_a_disturbed_round_is_repeated():
    machine = Machine([1.0, 1.0, 0.84, 1.0, 1.0, 1.0])  # the second round's first probe is low
    found = run(machine, {"engine": 1.0}, rounds=2)
    assert [r.number for r in found.kept] == [0, 2]
    assert (found.dropped, found.disturbed) == (1, False)


def test_better_probes_later_drop_rounds_before_them():
    machine = Machine([0.8, 0.8, 1.0, 1.0, 1.0, 1.0])
    found = run(machine, {"engine": 1.0}, rounds=2)
    assert [r.number for r in found.kept] == [1, 2]
    assert found.good == {"read": 1.0, "multiply": 5.0}
    assert found.typical == {"read": 1.0, "multiply": 5.0}


def test_one_probe_that_is_too_good_drops_nothing():
    machine = Machine([1.0] * 5 + [2.0] + [1.0] * 6)
    found = run(machine, {"engine": 1.0}, rounds=5)
    assert (len(found.kept), found.dropped) == (5, 0)


def test_a_machine_that_is_never_quiet_ends_and_says_so():
    machine = Machine([1.0, 0.1, 0.5, 0.5, 0.7, 0.7, 0.2, 0.2])
    found = run(machine, {"engine": 1.0}, rounds=2)
    assert found.disturbed
    assert [r.number for r in found.kept] == [1, 2]  # the quietest two of four
    assert found.dropped == 2


@pytest.mark.parametrize(("rate", "quiet"), [(0.85, True), (0.849, False)])
def test_border_of_quiet(rate, quiet):
    assert is_quiet({"read": rate, "multiply": 1.0}, {"read": 1.0, "multiply": 1.0}) is quiet


def test_spread():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p20": 1.4, "p80": 2.6, "runs": 3}
    assert spread([1.0]) == {"median": 1.0, "p20": 1.0, "p80": 1.0, "runs": 1}
