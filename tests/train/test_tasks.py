import json
import re
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.policy_helpers import vlm_encoder
from tests.train.recordings import write_recordings
from vlarft.config import load_config, read_yaml
from vlarft.data.libero import read_episodes
from vlarft.data.windows import Windows
from vlarft.errors import CheckpointError, ConfigError, DataError
from vlarft.eval.world_model import METHODS
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig
from vlarft.models.presets import build_tokenizer, build_world
from vlarft.models.tokenizer import Tokenizer
from vlarft.models.world_model import WorldModel
from vlarft.train import commands
from vlarft.train.adversary import Adversary
from vlarft.train.commands import (
    Pretraining,
    every,
    train_policy,
    train_tokenizer,
    train_world_model,
    watched_windows,
)
from vlarft.train.tokenizer import TokenizerTask, TokenizerTraining
from vlarft.train.world_model import (
    TokenizedWindows,
    WorldModelTask,
    WorldModelTraining,
    tokenize_windows,
)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Four short episodes."""
    return [write_recordings(tmp_path_factory.mktemp("data") / "pick_up_the_milk_demo.hdf5")]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_three_stages_of_a_preset(recordings, tmp_path, capsys):
    config = load_config(Pretraining, "tiny", ["tokenizer_training.adversarial_start=2"])
    folder = train_tokenizer(config, recordings, tmp_path / "a")
    world = WorldModel.from_pretrained(
        train_world_model(config, recordings, tmp_path / "b", folder)
    )
    policy = FlowPolicy.from_pretrained(train_policy(config, recordings, tmp_path / "c"))
    assert world.layout.action_high[6] == 1
    assert world.layout.action_low[6] == -1
    assert world.layout.orientation == policy.statistics.orientation == "rotated-180"
    assert world.layout.action_units == "raw"
    assert world.layout.statistics == policy.statistics
    final = metrics(tmp_path / "a")[-1]
    assert {"validation_psnr", "validation_psnr_moving", "validation_lpips"} <= final.keys()
    watched = metrics(tmp_path / "b")[-1]
    assert watched["validation_loss"] == pytest.approx(np.log(75), rel=0.1)
    assert watched["validation_psnr_moving_over_swapped"] == pytest.approx(0, abs=3)
    for method in METHODS:
        assert -0.5 < watched[f"validation_ssim_moving_{method}"] <= 1
        assert watched[f"validation_lpips_all_{method}"] > 0
    for run, stage, figure in (
        ("a", "tokenizer", "codes_used"),
        ("b", "world model", "lpips_all_copy"),
        ("c", "policy", "gripper_errors"),
    ):
        summary = json.loads((tmp_path / run / "summary.json").read_text())
        assert summary["stage"] == stage
        assert summary["validation"][figure] == metrics(tmp_path / run)[-1][f"validation_{figure}"]
        assert f"Pre-training of the {stage}" in (tmp_path / run / "report.html").read_text()
        assert json.loads((tmp_path / run / "environment.json").read_text())["packages"]
    progress = capsys.readouterr().err.splitlines()
    (last,) = [line for line in progress if line.startswith("world model step 4  validation: ")]
    for figure in ("ssim_moving_world_model", "lpips_all_world_model", "psnr_moving_over_swapped"):
        assert f" {figure} " in last
    assert "moving_copy" not in last
    assert "policy step 4/4  loss " in "\n".join(progress)
    assert metrics(tmp_path / "c")[-1]["validation_action_l1"] > 0
    figures = set().union(*(line for stage in "abc" for line in metrics(tmp_path / stage)))
    figures = {name.removeprefix("validation_") for name in figures}
    imagined = {name for name in figures if re.match("(psnr|ssim|lpips)_(all|moving)_", name)}
    metrics_page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    assert {"adversarial", "psnr_moving_over_swapped"} <= figures
    assert figures - imagined <= set(re.findall("`([a-z0-9_]+)`", metrics_page))


def test_a_policy_goes_on_from_a_policy(recordings, tmp_path):
    config = load_config(Pretraining, "tiny", ["policy_training.learning_rate=0.0"])
    first = train_policy(config, recordings, tmp_path / "first")
    second = train_policy(config, recordings, tmp_path / "second", start=first)
    a, b = (FlowPolicy.from_pretrained(folder).state_dict() for folder in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)
    other = load_config(Pretraining, "tiny", ["policy_training.seed=1"])
    third = train_policy(other, recordings, tmp_path / "third")
    with pytest.raises(CheckpointError, match="written with other data"):
        train_policy(config, recordings, tmp_path / "second", True, start=third)
    wide = FlowPolicyConfig.preset("tiny").model_dump() | {"sigma_max": 0.3}
    config = load_config(Pretraining, read_yaml("tiny") | {"policy": wide})
    with pytest.raises(ConfigError, match=r"config\.json differs"):
        train_policy(config, recordings, tmp_path / "x", start=first)
    assert not (tmp_path / "x").exists()


def test_a_policy_starts_from_a_vlm_folder(recordings, tmp_path):
    vlm = vlm_encoder()
    vlm.save_pretrained(tmp_path / "vlm")
    tiny = FlowPolicyConfig.preset("tiny").model_dump()
    config = load_config(
        Pretraining,
        read_yaml("tiny") | {"policy": tiny | {"encoder": {"kind": "vlm", "lora_rank": 2}}},
    )
    with pytest.raises(ConfigError, match="pass --vlm FOLDER"):
        train_policy(config, recordings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    folder = train_policy(config, recordings, tmp_path / "run", vlm=tmp_path / "vlm")
    vlm_encoder(queries=4).save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="written with other data"):
        train_policy(config, recordings, tmp_path / "run", True, vlm=tmp_path / "other")
    policy = FlowPolicy.from_pretrained(folder)
    assert policy.encoder.tokenizer is not None
    assert policy.encoder.config == vlm.config.model_copy(update={"lora_rank": 2})
    trained = dict(policy.encoder.named_parameters())
    assert any("lora_B" in name and value.any() for name, value in trained.items())
    kept = policy.encoder.language.get_base_model().embed_tokens.weight
    assert torch.equal(kept, vlm.language.embed_tokens.weight)
    with pytest.raises(ConfigError, match="encoder is 'small'; choose a policy with a VLM"):
        train_policy(
            load_config(Pretraining, "tiny"), recordings, tmp_path / "b", vlm=tmp_path / "vlm"
        )
    assert not (tmp_path / "b").exists()


def test_the_paper_preset_is_the_published_recipe():
    config = load_config(Pretraining, "paper")
    tokenizer, world, policy = (
        config.tokenizer_training,
        config.world_model_training,
        config.policy_training,
    )
    assert (tokenizer.learning_rate, tokenizer.steps, tokenizer.warmup_steps) == (
        5e-4,
        600_000,
        5000,
    )
    assert (tokenizer.lpips_net, tokenizer.lpips_weight, tokenizer.adversarial_weight) == (
        "vgg",
        1,
        0.1,
    )
    assert (tokenizer.frames_per_window, tokenizer.adversarial_start) == (7, 10_000)
    assert (world.learning_rate, world.steps, world.warmup_steps) == (5e-5, 150_000, 5000)
    assert (world.schedule, world.weight_decay, world.batch_size) == ("constant", 0, 32)
    assert policy.steps == 150_000
    paper = FlowPolicyConfig.preset("paper")
    lora = paper.encoder.model_copy(update={"lora_rank": 64})
    assert config.policy_config() == paper.model_copy(update={"encoder": lora})


def test_noops_are_dropped_when_asked(recordings, tmp_path):
    still = tmp_path / "still_demo.hdf5"
    still.write_bytes(recordings[0].read_bytes())
    with h5py.File(still, "a") as file:
        file["data/demo_0/actions"][3, :6] = 0
        file["data/demo_0/actions"][2:4, 6] = 0.5
    steps = []
    for drop in (False, True):
        config = load_config(Pretraining, "tiny", [f"drop_noops={drop}", "policy_training.steps=1"])
        folder = train_policy(config, [still], tmp_path / str(drop))
        steps.append(FlowPolicy.from_pretrained(folder).statistics.steps)
    assert steps == [24, 23]


def test_a_data_set_without_validation_is_refused(recordings, tmp_path):
    only = tmp_path / "only_demo.hdf5"
    only.write_bytes(recordings[0].read_bytes())
    with h5py.File(only, "a") as file:
        for episode in file["data"].values():
            episode.attrs["split"] = "train"
    with pytest.raises(DataError, match="no episode of split 'val'"):
        train_policy(load_config(Pretraining, "tiny"), [only], tmp_path / "run")
    with pytest.raises(ConfigError, match="did you mean 'tokenizer_training'"):
        load_config(Pretraining, {"tokenizer_trainnig": {}})


def refused(train, *arguments):
    with pytest.raises(DataError) as error:
        train(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_decoder_is_trained_alone_and_tokens_stay(recordings, tmp_path):
    config = load_config(
        Pretraining,
        "tiny",
        ["tokenizer_training.part=decoder", "tokenizer_training.learning_rate=0.01"],
    )
    with pytest.raises(ConfigError, match=r"part = decoder .* --start FOLDER$"):
        train_tokenizer(config, recordings, tmp_path / "run")
    first = build_tokenizer("tiny")
    first.save_pretrained(tmp_path / "first")
    second = Tokenizer.from_pretrained(
        train_tokenizer(config, recordings, tmp_path / "run", start=tmp_path / "first")
    )
    pixels = torch.rand(2, 3, 3, 32, 32)
    with torch.no_grad():
        tokens = first.tokenize(pixels)
        assert all(torch.equal(a, b) for a, b in zip(tokens, second.tokenize(pixels), strict=True))
        assert not torch.equal(first.detokenize(*tokens), second.detokenize(*tokens))
        assert not torch.equal(first.decode_context(tokens[0]), second.decode_context(tokens[0]))
    other = load_config(Pretraining, "small")
    with pytest.raises(ConfigError, match="differs from the configured tokenizer"):
        train_tokenizer(other, recordings, tmp_path / "other", start=tmp_path / "first")


def test_a_world_model_goes_on_from_another_one(recordings, tmp_path):
    config = load_config(Pretraining, "tiny", ["world_model_training.learning_rate=0"])
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    first = train_world_model(config, recordings, tmp_path / "a", tmp_path / "tokenizer")
    other = config.model_copy(
        update={"world_model_training": config.world_model_training.model_copy(update={"seed": 7})}
    )
    second = train_world_model(other, recordings, tmp_path / "b", None, start=first)
    unrelated = train_world_model(other, recordings, tmp_path / "c", tmp_path / "tokenizer")
    a, b, c = (
        WorldModel.from_pretrained(folder).transformer.state_dict()
        for folder in (first, second, unrelated)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_action_bins_span_the_earlier_range_too(recordings, tmp_path):
    config = load_config(Pretraining, "tiny")
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    first = train_world_model(config, recordings, tmp_path / "a", tmp_path / "tokenizer")
    layout = json.loads((first / "layout.json").read_text())
    low, high = layout["action_low"][1], layout["action_high"][1]
    layout["action_low"][0], layout["action_high"][1] = -3.0, low + (high - low) / 2
    (first / "layout.json").write_text(json.dumps(layout))
    second = train_world_model(config, recordings, tmp_path / "b", None, start=first)
    found = WorldModel.from_pretrained(second).layout
    assert found.action_low == tuple(layout["action_low"])  # wider before
    assert found.action_high[1] == high  # wider now


def test_a_stride_leaves_no_episode_out():
    episodes = read_episodes("vlarft/assets/demos/libero_object_64", limit=1)[:2]
    short = replace(
        episodes[0],
        frames=episodes[0].frames[:9],
        actions=episodes[0].actions[:8],
        proprioception=episodes[0].proprioception[:9],
    )
    windows = Windows([short, episodes[0], short, short, episodes[1]])
    chosen = every(windows, 4)
    assert windows.episode[chosen].unique().tolist() == [0, 1, 2, 3, 4]
    starts = windows.start[chosen][windows.episode[chosen] == 1]
    assert starts.tolist() == list(range(0, episodes[0].steps - 7, 4))


def test_a_folder_given_twice_is_tokenised_once(recordings, tmp_path, monkeypatch):
    tokenised = []

    def counting(tokenizer, windows, indices, **options):
        if "progress" in options:  # of the training windows
            tokenised.append(len(indices))
        return tokenize_windows(tokenizer, windows, indices, **options)

    monkeypatch.setattr(commands, "tokenize_windows", counting)
    config = load_config(Pretraining, "tiny", ["world_model_training.window_stride=3"])
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    train_world_model(config, recordings, tmp_path / "once", tmp_path / "tokenizer")
    train_world_model(config, recordings * 2, tmp_path / "twice", tmp_path / "tokenizer")
    assert tokenised[0] == tokenised[1]
    once, twice = (load_file(tmp_path / run / "tokens.safetensors") for run in ("once", "twice"))
    assert len(once["actions"]) == tokenised[0]
    for name, tokens in once.items():
        torch.testing.assert_close(twice[name], torch.cat([tokens, tokens]), rtol=0, atol=0)


def test_a_world_model_to_go_on_from_must_have_the_configured_sizes(recordings, tmp_path):
    config = load_config(Pretraining, "tiny")
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigError, match=r"^train world-model needs --tokenizer, --start or both"):
        train_world_model(config, recordings, tmp_path / "run", None)
    world = train_world_model(config, recordings, tmp_path / "a", tmp_path / "tokenizer")
    larger = load_config(Pretraining, "tiny", ["model.transformer.num_hidden_layers=3"])
    with pytest.raises(ConfigError, match="sizes differ from the configured world model"):
        train_world_model(larger, recordings, tmp_path / "run", None, start=world)
    fewer = config.model.tokenizer.model_copy(update={"dyn_fsq_levels": (3, 3)})
    build_tokenizer(fewer).save_pretrained(tmp_path / "fewer")
    with pytest.raises(ConfigError, match="other sizes than the one given with --tokenizer"):
        train_world_model(config, recordings, tmp_path / "run", tmp_path / "fewer", start=world)
    assert not (tmp_path / "run").exists()


def test_frames_of_another_size_are_refused_before_anything_is_written(recordings, tmp_path):
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    wide = [write_recordings(tmp_path / "wide_demo.hdf5", size=48)]
    config, run = load_config(Pretraining, "tiny"), tmp_path / "run"
    text = refused(train_tokenizer, config, wide, run)
    assert "wide_demo.hdf5: frames of 48 x 48 px" in text
    assert "data render --size 32" in text
    assert "the configured policy is for 32 x 32 px" in refused(train_policy, config, wide, run)
    text = refused(train_world_model, config, wide, run, tmp_path / "tokenizer")
    assert f"the tokenizer {tmp_path / 'tokenizer'} is for 32 x 32 px" in text
    assert "for 256 x 256 px" in refused(
        train_tokenizer, load_config(Pretraining, "paper"), recordings, run
    )
    assert not run.exists()


def test_windows_that_cannot_be_watched_are_refused_before_tokenising(tmp_path):
    build_tokenizer("tiny").save_pretrained(tmp_path / "tokenizer")
    one = [write_recordings(tmp_path / "one_demo.hdf5", ("train", "val"))]
    run = tmp_path / "run"
    text = refused(
        train_world_model, load_config(Pretraining, "tiny"), one, run, tmp_path / "tokenizer"
    )
    assert text.startswith("validation episodes: one episode holds 5 of 5 windows")
    assert not run.exists()


@pytest.mark.parametrize("steps", [(60, 9), (9, 60), (15, 16), (200, 8)])
def test_no_episode_holds_more_than_half_of_the_watched_windows(tmp_path, steps):
    path = write_recordings(tmp_path / "a_demo.hdf5", ("val", "val"), steps=steps, size=16)
    windows = Windows(read_episodes(path), 8)
    watched = watched_windows(windows)
    assert 0 < len(watched) <= 32
    counts = windows.episode[watched].bincount()
    assert counts.min() == counts.max() > 0 or counts.max() <= len(watched) / 2
    assert len(set(watched.tolist())) == len(watched)


def tokenised(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    codes = lambda *shape: torch.randint(75, shape, generator=g).short()  # noqa: E731
    return TokenizedWindows(
        codes(count, 64), codes(count, 9, 4), torch.rand(count, 8, 7, generator=g)
    )


def test_world_model_loss_is_cross_entropy_on_imagined_codes_only():
    world = build_world("tiny")
    data = tokenised(4)
    task = WorldModelTask(world, WorldModelTraining(batch_size=4), data, data)
    chosen = torch.randint(4, (4,), generator=torch.Generator().manual_seed(3))
    loss, _ = task.loss(0, torch.Generator().manual_seed(3))
    ids = world.sequence_ids(
        data.context[chosen].long(), data.frames[chosen].long(), data.actions[chosen]
    )
    logits = world.transformer(ids).logits
    total, count = 0.0, 0
    for i in range(ids.shape[1] - 1):
        if world.target_mask(8)[i + 1]:
            masked = logits[:, i, : world.frame_codes].log_softmax(-1)
            total -= masked.gather(1, ids[:, i + 1 : i + 2]).sum().item()
            count += len(ids)
    assert count == 4 * 8 * 4
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_world_model_training_leaves_the_tokenizer_alone_and_learns_actions():
    """Frames are a function of the action: the loss with swapped actions must stay high."""
    world = build_world("tiny")
    count = 64
    data = tokenised(count)
    first = torch.randint(0, 2, (count, 8), generator=torch.Generator().manual_seed(1))
    actions = torch.zeros(count, 8, 7)
    actions[..., 0] = first * 1.6 - 0.8
    frames = torch.cat(
        [torch.zeros(count, 1, 4), (first * 30)[..., None].expand(-1, -1, 4)], 1
    ).short()
    data = TokenizedWindows(data.context, frames, actions)
    task = WorldModelTask(world, WorldModelTraining(batch_size=16), data, data)
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    before = {k: v.clone() for k, v in world.tokenizer.state_dict().items()}
    for step in range(60):
        loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    figures = task.validate(world.transformer)
    assert figures["loss"] < 0.2
    assert figures["loss_swapped_actions"] > figures["loss"] + 0.3  # a quarter of the codes is new
    assert all(torch.equal(before[k], v) for k, v in world.tokenizer.state_dict().items())


def test_the_adversarial_term_starts_late_and_trains_both_sides(recordings):
    windows = Windows(read_episodes(recordings), 8)
    config = TokenizerTraining(batch_size=2, adversarial_start=1, discriminator_width=8)
    task = TokenizerTask(build_tokenizer("tiny"), config, windows, windows)
    before = [p.clone() for p in task.adversary.discriminator.parameters()]
    _, figures = task.loss(0, torch.Generator().manual_seed(0))
    assert "adversarial" not in figures
    task.after_step(0)
    unchanged = zip(before, task.adversary.discriminator.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in unchanged)
    loss, figures = task.loss(1, torch.Generator().manual_seed(0))
    assert "adversarial" in figures
    loss.backward()
    task.after_step(1)
    changed = zip(before, task.adversary.discriminator.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in changed)


def test_a_discriminator_learns_to_tell_bright_from_dark():
    adversary = Adversary(32, depth=4, width=8, learning_rate=5e-3, seed=0)
    g = torch.Generator().manual_seed(0)
    losses = [
        adversary.update(
            0.8 + 0.2 * torch.rand(8, 3, 32, 32, generator=g), torch.zeros(8, 3, 32, 32)
        )
        for _ in range(80)
    ]
    assert losses[-1] < 0.8 * losses[0]
