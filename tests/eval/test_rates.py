import numpy as np
import pytest
import torch

from vlarft.errors import DataError, ShapeError
from vlarft.eval.episodes import AFTER, BEFORE, REPLAY, Outcome
from vlarft.eval.rates import summarise
from vlarft.eval.starts import Start
from vlarft.eval.statistics import paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    # R: binom::binom.confint(k, n, methods = "wilson")
    [(0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (18, 24, (0.5510, 0.8800))],
)
def test_wilson_against_tables(successes, trials, interval):
    assert wilson(successes, trials) == pytest.approx(interval, abs=5e-5)


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_covers_its_rate():
    rng = np.random.default_rng(0)
    intervals = [wilson(solved, 40) for solved in rng.binomial(40, 0.9, 2000)]
    hits = [low <= 0.9 <= high for low, high in intervals]
    assert 0.93 < np.mean(hits) < 0.98


def test_equal_pairs_differ_by_nothing():
    values, tasks = torch.tensor([1.0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])
    estimate = paired_difference(values, values, [tasks])
    assert (estimate.value, estimate.interval) == (0.0, (0.0, 0.0))


def test_clusters_widen_the_interval():
    tasks = torch.arange(10).repeat_interleave(20)
    effect = torch.rand(10, generator=torch.Generator().manual_seed(0))[tasks]  # by task alone
    by_task = paired_difference(torch.zeros(200), effect, [tasks])
    by_pair = paired_difference(torch.zeros(200), effect, [torch.arange(200)])
    assert by_task.value == pytest.approx(float(effect.mean()))
    width = [e.interval[1] - e.interval[0] for e in (by_task, by_pair)]
    assert width[0] > 3 * width[1]


def test_seeds_and_tasks_are_both_drawn():
    tasks, seeds = torch.arange(10).repeat(3), torch.arange(3).repeat_interleave(10)
    effect = torch.tensor([0.0, 0.5, 1.0])[seeds]
    both = paired_difference(torch.zeros(30), effect, [seeds, tasks])
    assert both.interval[0] < 0.2
    assert both.interval[1] > 0.8
    assert paired_difference(torch.zeros(30), effect, [tasks]).interval == pytest.approx((0.5, 0.5))


def test_what_has_no_interval():
    with pytest.raises(DataError, match="at least 2 clusters"):
        paired_difference(torch.zeros(3), torch.ones(3), [torch.zeros(3, dtype=torch.int64)])
    with pytest.raises(ShapeError, match="equal"):
        paired_difference(torch.zeros(3), torch.ones(2), [torch.arange(3)])


def outcome(arm, number, success, task=0, seed=0, perturb="none"):
    start = Start("suite", task, "moved", 0, number, seed, 0.05, perturb)
    return Outcome(arm, seed, start, "s", success, 9, "" if success is not None else "it stopped")


def test_errors_are_neither_successes_nor_failures():
    report = summarise(
        [
            *(outcome(BEFORE, n, s) for n, s in enumerate([True, False, None, True])),
            *(outcome(AFTER, n, s) for n, s in enumerate([True, True, True, None])),
            *(outcome(REPLAY, n, False) for n in range(4)),
        ]
    )
    before, after, replay = report.arms
    assert (before.successes, before.episodes, before.errors) == (2, 3, 1)
    assert (after.successes, after.episodes, after.errors) == (3, 3, 1)
    assert replay.rate == 0
    (compared,) = report.comparisons
    assert compared.pairs == 2  # starts 0 and 1 have a result of both
    assert compared.difference.value == 0.5
    assert len(report.errors) == 2
    assert "start 2: it stopped" in report.errors[0]
    values = report.to_dict()
    assert values["kind"] == "libero-paired"
    assert (values["before"], values["after"], values["episodes"]) == (2 / 3, 1.0, 2)


def test_controls_are_compared_with_both():
    results = {
        BEFORE: (False, False, True, False),
        AFTER: (True, True, True, False),
        "permuted": (False, True, None, False),
        f"{BEFORE}, blind": (False,) * 4,
        REPLAY: (False,) * 4,
    }
    report = summarise(
        [outcome(arm, n, s) for arm, solved in results.items() for n, s in enumerate(solved)]
    )
    said = [(c.arm, c.minus, c.difference.value, c.pairs) for c in report.comparisons]
    assert said == [
        (AFTER, BEFORE, 0.5, 4),
        ("permuted", BEFORE, pytest.approx(1 / 3), 3),
        (AFTER, "permuted", pytest.approx(1 / 3), 3),
    ]
    values = report.to_dict()
    assert (values["difference"], values["episodes"]) == (0.5, 4)
    assert [(c["arm"], c["minus"], c["episodes"]) for c in values["controls"]] == [
        ("permuted", BEFORE, 3),
        (AFTER, "permuted", 3),
    ]
    assert report.lines()[2].startswith("after minus permuted: +33.3 points on 3 pairs")


def test_one_policy_has_a_rate_and_no_difference():
    played = (outcome(BEFORE, 0, True), outcome(BEFORE, 1, False), outcome(REPLAY, 0, False))
    report = summarise(played)
    values = report.to_dict()
    assert (values["kind"], values["rate"], values["episodes"]) == ("libero", 0.5, 2)
    assert report.comparisons == []
    assert values["arms"][0]["by_task"] == {"0": [1, 2]}


def test_each_perturbation_has_rates_and_a_difference_of_its_own():
    results = {
        "none": (True, True, True),
        "camera": (False, True, None),
        "robot-minor": (False,) * 3,
    }
    played = [
        outcome(arm, number, success if arm == AFTER else False, perturb=name)
        for name, successes in results.items()
        for number, success in enumerate(successes)
        for arm in (BEFORE, AFTER)
    ]
    report = summarise(played)
    assert list(report.blocks) == ["none", "camera", "robot-minor"]
    assert [block.arm(AFTER).rate for block in report.blocks.values()] == [1.0, 0.5, 0.0]
    assert [block.comparisons[0].pairs for block in report.blocks.values()] == [3, 2, 3]
    values = report.to_dict()
    assert (values["after"], values["difference"], values["episodes"]) == (1.0, 1.0, 3)
    camera = values["perturbations"]["camera"]
    assert (camera["difference"], camera["episodes"], len(camera["errors"])) == (0.5, 2, 1)
    assert camera["changes"].startswith("the agentview camera along x, y and z: up to 0.03 m")
    assert [column.header for column in report.table().columns][:2] == ["perturbation", "arm"]
    assert report.table().row_count == 6
    lines = report.lines()
    assert lines[0].startswith("after minus before: +100.0 points on 3 pairs")
    assert lines[1].startswith("after minus before under camera: +50.0 points on 2 pairs")
    assert "1 episodes without a result" in lines[3]
    assert "start 2 under camera: it stopped" in lines[3]
