import json
import math
import signal
import time

import pytest
import torch
from torch import nn

from vlarft.checkpoint import latest_checkpoint
from vlarft.errors import CheckpointError, DataError
from vlarft.schedule import rate_factor
from vlarft.train.loop import LoopConfig, averaged, step_generator, train


class Regression:
    """Fits a line: small enough to step thousands of times. Ctrl-C comes `stop_at` a moment."""

    def __init__(self, stop_at=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.1))
        self.stop_at, self.steps = stop_at, []

    def reach(self, moment, step):
        if self.stop_at == (moment, step):
            signal.raise_signal(signal.SIGINT)

    def parameters(self):
        return self.model.parameters()

    def loss(self, step, generator):
        self.reach("loss", step)
        self.steps.append(step)
        x = torch.randn(8, 3, generator=generator)
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean(), {"figure": float(step)}

    def validate(self, model):
        self.reach("validation", len(self.steps))
        return {"weight": model[0].weight.sum().item()}

    def after_step(self, step):
        self.reach("after step", step)

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
    ema = train(task, CONFIG, tmp_path).weights
    losses = [r["loss"] for r in records(tmp_path) if "loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(ema["0.weight"], task.model[0].weight)
    assert (ema["0.weight"] - task.model[0].weight).abs().max() < 0.3


@pytest.mark.parametrize(
    ("moment", "finished"),
    [
        (("loss", 0), 1),
        (("loss", 12), 13),
        (("after step", 12), 13),  # weights have moved, their average and the count have not
        (("loss", 19), 20),  # saved, but not validated yet
        (("validation", 20), 21),
    ],
)
def test_ctrl_c_finishes_the_step_and_the_run_resumes_bit_for_bit(tmp_path, moment, finished):
    whole = train(Regression(), CONFIG, tmp_path / "whole").weights
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(moment), CONFIG, tmp_path / "parts")
    assert signal.getsignal(signal.SIGINT) is handler
    assert latest_checkpoint(tmp_path / "parts").name == f"step-{finished}"
    task = Regression()
    resumed = train(task, CONFIG, tmp_path / "parts", resume=True).weights
    assert task.steps == list(range(finished, 40))
    assert task.restored == {"count": finished}
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once_and_saves_nothing_half_done(tmp_path):
    class Impatient(Regression):
        def after_step(self, step):
            if step == 12:
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.05)  # two signals that arrive together count as one
                signal.raise_signal(signal.SIGINT)

    whole = train(Regression(), CONFIG, tmp_path / "whole").weights
    with pytest.raises(KeyboardInterrupt):
        train(Impatient(), CONFIG, tmp_path / "parts")
    assert latest_checkpoint(tmp_path / "parts").name == "step-10"
    resumed = train(Regression(), CONFIG, tmp_path / "parts", resume=True).weights
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert records(tmp_path / "whole") == records(tmp_path / "parts")


def test_a_validation_that_fails_loses_no_step(tmp_path):
    class Failing(Regression):
        def validate(self, _model):
            raise DataError("nothing to validate on")

    with pytest.raises(DataError):
        train(Failing(), CONFIG, tmp_path)
    assert latest_checkpoint(tmp_path).name == "step-10"
    train(Regression(), CONFIG, tmp_path, resume=True)
    validated = [r["step"] for r in records(tmp_path) if "validation_weight" in r]
    assert validated == [10, 20, 30, 40]


def test_the_callers_random_numbers_are_left_alone(tmp_path):
    task = Regression()
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    train(task, CONFIG, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_resume_refuses_another_configuration_or_model(tmp_path):
    def resume(task=None, **changes):
        config = CONFIG.model_copy(update=changes)
        return train(task or Regression(), config, tmp_path, resume=True)

    train(Regression(), CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match=r"\(batch_size; batch_size was 16, now 8\)"):
        resume(batch_size=8)
    with pytest.raises(CheckpointError, match="steps was 40, now 50"):
        resume(steps=50)  # the cosine of every later step would be another one
    resume(checkpoint_every=7, validate_every=9, log_every=3)
    larger = Regression()
    larger.model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        resume(larger)


def test_a_constant_rate_allows_more_steps_but_not_fewer_than_done(tmp_path):
    constant = CONFIG.model_copy(update={"schedule": "constant"})
    whole = train(Regression(), constant, tmp_path / "whole").weights
    train(Regression(), constant.model_copy(update={"steps": 17}), tmp_path / "parts")
    resumed = train(Regression(), constant, tmp_path / "parts", resume=True).weights
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    short = constant.model_copy(update={"steps": 39})
    with pytest.raises(CheckpointError, match="already at step 40, steps = 39"):
        train(Regression(), short, tmp_path / "parts", resume=True)


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
        task.model[0].weight.fill_(math.inf)
    with pytest.raises(CheckpointError, match="gradient of step 0 is not finite"):
        train(task, CONFIG, tmp_path)


def test_the_first_step_learns():
    assert rate_factor("cosine", 0, 40, 5) == pytest.approx(1 / 5)
    assert rate_factor("constant", 39, 40, 0) == 1
    assert rate_factor("cosine", 39, 40, 5) < 0.1


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
