import json
import math

import pytest
import torch
from torch import nn

from vlarft.checkpoint import latest_checkpoint
from vlarft.errors import CheckpointError
from vlarft.train.loop import LoopConfig, averaged, learning_rate, step_generator, train


class Regression:
    """Fits a line: small enough to step thousands of times."""

    def __init__(self, stop_at=None):
        torch.manual_seed(0)
        self.model = nn.Linear(3, 1)
        self.stop_at, self.steps = stop_at, []

    def parameters(self):
        return self.model.parameters()

    def loss(self, step, generator):
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        x = torch.randn(8, 3, generator=generator)
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean(), {"figure": float(step)}

    def validate(self, model):
        return {"weight": model.weight.sum().item()}

    def after_step(self, step):
        pass

    def extra_state(self):
        return {"count": len(self.steps)}

    def load_extra_state(self, state):
        self.restored = state


CONFIG = LoopConfig(
    steps=40, learning_rate=0.05, warmup_steps=5, precision="float32",
    validate_every=10, checkpoint_every=10, log_every=1, ema_decay=0.9,
)  # fmt: skip


def records(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds_per_step", None)
    return lines


def test_training_lowers_the_loss_and_averages_weights(tmp_path):
    task = Regression()
    ema = train(task, CONFIG, tmp_path)
    losses = [r["loss"] for r in records(tmp_path) if "loss" in r]
    assert losses[-1] < 0.2 * losses[0]
    assert not torch.equal(ema["weight"], task.model.weight)
    assert (ema["weight"] - task.model.weight).abs().max() < 0.3


@pytest.mark.parametrize("stop_at", [1, 13, 20])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop_at):
    whole = train(Regression(), CONFIG, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(Regression(stop_at), CONFIG, tmp_path / "parts")
    task = Regression()
    resumed = train(task, CONFIG, tmp_path / "parts", resume=True)
    assert task.steps == list(range(stop_at, 40))
    assert task.restored == {"count": stop_at}
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_metrics_after_the_checkpoint_are_forgotten(tmp_path):
    train(Regression(), CONFIG, tmp_path)
    expected = records(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "lo')  # a kill may leave half a line
    train(Regression(), CONFIG, tmp_path, resume=True)
    assert [r for r in records(tmp_path) if "loss" in r] == [r for r in expected if "loss" in r]


def test_a_finished_folder_is_not_overwritten(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        train(Regression(), CONFIG, tmp_path, resume=True)
    train(Regression(), CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match="already holds a run"):
        train(Regression(), CONFIG, tmp_path)
    assert latest_checkpoint(tmp_path).name == "step-40"


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path):
    task = Regression()
    with torch.no_grad():
        task.model.weight.fill_(math.inf)
    with pytest.raises(CheckpointError, match="gradient of step 0 is not finite"):
        train(task, CONFIG, tmp_path)


def test_the_first_step_learns():
    assert learning_rate(CONFIG, 0) == pytest.approx(0.05 / 5)
    assert learning_rate(CONFIG, 39) < 0.1 * 0.05


def test_generators_depend_on_seed_and_step_only():
    draw = lambda seed, step: torch.rand(4, generator=step_generator(seed, step)).tolist()  # noqa: E731
    assert draw(1, 5) == draw(1, 5)
    assert len({tuple(draw(s, t)) for s in range(3) for t in range(-1, 3)}) == 12


def test_averaged_weights_are_put_back():
    model = nn.Linear(1, 1)
    before = model.weight.item()
    with averaged(model, {"weight": torch.full((1, 1), 7.0), "bias": torch.zeros(1)}):
        assert model.weight.item() == 7
    assert model.weight.item() == before
