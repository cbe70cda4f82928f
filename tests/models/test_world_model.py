import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vlarft
from vlarft.data.statistics import Statistics
from vlarft.engine import Sampling
from vlarft.errors import CheckpointError, ShapeError, UnsupportedModelError
from vlarft.models.folder import read_json
from vlarft.models.layout import Layout
from vlarft.models.presets import (
    LIBERO_ACTION_HIGH,
    LIBERO_ACTION_LOW,
    build_transformer,
    build_world,
    world_config,
)
from vlarft.models.world_model import WorldModel

STATISTICS = Statistics(
    action_q01=(-0.5, -0.5, -0.5, -0.2, -0.2, -0.2, -1.0),
    action_q99=(0.5, 0.5, 0.5, 0.2, 0.2, 0.0, 1.0),
    action_min=LIBERO_ACTION_LOW,
    action_max=LIBERO_ACTION_HIGH,
    proprioception_q01=(0.0,) * 8,
    proprioception_q99=(1.0,) * 8,
    episodes=3,
    steps=30,
)


@pytest.fixture(scope="module")
def world():
    return build_world("tiny")


def test_paper_size_has_the_official_parameters():
    with torch.device("meta"):
        transformer = build_transformer(world_config("paper").transformer, 9008)
    assert sum(p.numel() for p in transformer.parameters()) == 127_101_696
    assert len(transformer.state_dict()) == 111


def test_vocabulary_and_lengths(world):
    assert (world.frame_codes, world.context_offset, world.action_offset) == (75, 75, 150)
    assert world.vocabulary == 75 + 75 + 16 + 2
    assert world.prompt_length == 64 + 4
    assert world.sequence_length(8) == 68 + 8 * (7 + 4)


def test_sequence_alternates_actions_and_frames(world):
    context, frames = torch.arange(64)[None], torch.arange(9 * 4).view(1, 9, 4)
    actions = torch.zeros(1, 8, 7)
    ids = world.sequence_ids(context, frames, actions)[0]
    assert ids[:64].tolist() == list(range(75, 139))
    assert ids[64:68].tolist() == [0, 1, 2, 3]
    assert ids[68:75].tolist() == world.action_ids(actions)[0, 0].tolist()
    assert ids[75:79].tolist() == [4, 5, 6, 7]
    assert ids[-4:].tolist() == [32, 33, 34, 35]
    mask = world.target_mask(8)
    assert ids[mask].tolist() == list(range(4, 36))  # neither context, first frame nor actions


def test_raw_extremes_are_the_first_and_the_last_bin(world):
    low, high = torch.tensor(LIBERO_ACTION_LOW), torch.tensor(LIBERO_ACTION_HIGH)
    ids = world.action_ids(torch.stack([low, high, 3 * low, 3 * high])) - world.action_offset
    assert ids[0].tolist() == ids[2].tolist() == [0] * 7
    assert ids[1].tolist() == ids[3].tolist() == [15] * 7
    with pytest.raises(ShapeError, match=r"\[...,7\], got \[2, 6\]"):
        world.action_ids(torch.zeros(2, 6))


@pytest.mark.parametrize("tied", [False, True])
def test_folder_round_trip(world, tmp_path, tied):
    config = world_config("tiny").transformer.model_copy(update={"tie_word_embeddings": tied})
    transformer = build_transformer(config, world.vocabulary, seed=3)
    model = WorldModel(world.tokenizer, transformer, world.layout)
    model.save_pretrained(tmp_path)
    again = WorldModel.from_pretrained(tmp_path)
    ids = torch.randint(world.vocabulary, (2, 30))
    with torch.inference_mode():
        assert torch.equal(model.transformer(ids).logits, again.transformer(ids).logits)
    assert again.layout == world.layout


def test_unfit_parts_are_refused(world, tmp_path):
    with pytest.raises(UnsupportedModelError, match="need 168"):
        WorldModel(
            world.tokenizer, build_transformer(world_config("tiny").transformer, 99), world.layout
        )
    long = Layout(frames=100, bins=16, action_low=LIBERO_ACTION_LOW, action_high=LIBERO_ACTION_HIGH)
    with pytest.raises(
        UnsupportedModelError, match="needs 1168 positions, the transformer has 512"
    ):
        WorldModel(world.tokenizer, world.transformer, long)
    with pytest.raises(CheckpointError, match="no such folder"):
        WorldModel.from_pretrained(tmp_path / "absent")
    world.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="missing 9"):
        WorldModel.from_pretrained(tmp_path)


def rewrite_layout(folder, **values):
    path = folder / "layout.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"orientation": "mirrored"}, "orientation = 'mirrored': Input should be 'rotated-180' or"),
        ({"frames": 0}, "frames 0"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p = 2"),
        ({"action_units": "degrees"}, "action_units = 'degrees': Input should be 'raw' or"),
        ({"action_units": "normalised"}, "'normalised' needs the statistics"),
        ({"statistics": {"steps": 3}}, "keys action_max, action_min"),
        ({"statistics": vars(STATISTICS), "orientation": "raw"}, "'rotated-180', must be one"),
        (
            {"statistics": vars(replace(STATISTICS, action_q01=[0.0] * 6))},
            "statistics of 6 action entries, ranges of 7",
        ),
        ({"framez": 8}, "unknown key 'framez' (did you mean 'frames'?)"),
    ],
)
def test_a_wrong_layout_is_one_line_with_its_file(world, tmp_path, values, words):
    world.save_pretrained(tmp_path)
    path = rewrite_layout(tmp_path, **values)
    with pytest.raises(CheckpointError, match=re.escape(words)) as error:
        WorldModel.from_pretrained(tmp_path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_layout_without_optional_keys_has_the_defaults(world, tmp_path):
    world.save_pretrained(tmp_path)
    path = tmp_path / "layout.json"
    required = ("action_low", "action_high", "bins")
    path.write_text(json.dumps({k: json.loads(path.read_text())[k] for k in required}))
    assert Layout.read(path) == world.layout
    assert world.layout.sampling.model_dump() == Sampling().model_dump(
        include={"temperature", "top_p", "top_k", "noise"}
    )


def test_statistics_and_sampling_survive_the_file(tmp_path):
    layout = Layout(
        action_low=LIBERO_ACTION_LOW,
        action_high=LIBERO_ACTION_HIGH,
        sampling={"temperature": 0.5, "top_k": 7, "noise": "independent"},
        statistics=STATISTICS,
    )
    layout.write(tmp_path / "layout.json")
    assert Layout.read(tmp_path / "layout.json") == layout


def test_normalised_units_normalise_before_binning():
    ends = {"action_low": (-1.0,) * 7, "action_high": (1.0,) * 7, "bins": 4}
    layout = Layout(action_units="normalised", statistics=STATISTICS, **ends)
    raw = torch.tensor([[-0.5, 0.5, 0.1, 0.05, 0.2, -0.04, 0.3]])
    assert layout.action_bins(raw).tolist() == [[0, 3, 2, 2, 3, 3, 3]]
    assert Layout(**ends).action_bins(raw).tolist() == [[1, 3, 2, 2, 2, 1, 3]]


def test_the_bundled_layout_says_what_it_was_trained_on():
    checkpoints = Path(vlarft.__file__).parent / "assets" / "checkpoints"
    layout = Layout.read(checkpoints / "world" / "layout.json")
    assert layout.statistics is not None
    assert layout.statistics.to_dict() == read_json(checkpoints / "policy" / "statistics.json")
    assert layout.action_low == layout.statistics.action_min
    assert layout.action_high == layout.statistics.action_max


def test_the_bundled_world_models_share_their_tokens():
    checkpoints = Path(vlarft.__file__).parent / "assets" / "checkpoints"
    small, branches = (
        WorldModel.from_pretrained(checkpoints / name) for name in ("world", "world-branches")
    )
    assert branches.layout.action_low == small.layout.action_low
    assert branches.layout.action_high == small.layout.action_high
    for ours, theirs in zip(
        branches.tokenizer.token_makers(), small.tokenizer.token_makers(), strict=True
    ):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    decoder, other = branches.tokenizer.decoder.state_dict(), small.tokenizer.decoder.state_dict()
    assert any(not torch.equal(weight, other[name]) for name, weight in decoder.items())


def test_the_orientation_is_read_back_and_compared(world, tmp_path):
    world.save_pretrained(tmp_path)
    rewrite_layout(tmp_path, orientation="raw")
    layout = WorldModel.from_pretrained(tmp_path).layout
    layout.require_orientation("raw", "the camera")
    with pytest.raises(CheckpointError, match="orientation 'raw', the camera 'rotated-180'"):
        layout.require_orientation("rotated-180", "the camera")


def test_structured_embeddings_make_neighbours_similar():
    world = build_world("tiny", seed=5)
    table = world.transformer.model.embed_tokens.weight
    before, std = table.detach().clone(), table.std().item()
    world.structure_embeddings(seed=0)
    bins = torch.nn.functional.normalize(
        table[world.action_offset : world.action_offset + 16], dim=1
    )
    similarity = bins @ bins.T
    assert similarity.diagonal(1).mean() > similarity.diagonal(8).mean() + 0.3
    assert similarity.diagonal(1).max() < 0.999  # still told apart
    codes = torch.nn.functional.normalize(table[: world.frame_codes], dim=1)
    digits = world.tokenizer.frame_fsq.codes(torch.arange(world.frame_codes))
    step = digits[0].sub(digits[1]).abs().max()
    near = torch.cdist(digits, digits, p=1) == step
    assert (codes @ codes.T)[near].mean() > (codes @ codes.T)[~near].mean() + 0.1
    assert table.std().item() == pytest.approx(std, rel=0.1)
    assert torch.equal(table[-2:], before[-2:])  # BOS and EOS are unused
