"""The place encoder: what its tokens depend on, what trains it, its folder, refusals."""

from pathlib import Path

import pytest
import torch

from tests.models.policy_helpers import MILK, SOUP, STATISTICS, observe
from vlarft.config import load_config
from vlarft.errors import CheckpointError, ConfigError, DataError, ShapeError
from vlarft.models.flow_policy import FlowPolicy, FlowPolicyConfig, build_policy
from vlarft.models.place_encoder import PlaceEncoder, PlaceEncoderConfig, PlaceNetwork
from vlarft.models.policy import Observation

TINY = PlaceEncoderConfig(
    image_size=32, channels=(8, 8, 8), features=8, queries=2, text_width=8, width=16, max_words=12
)


@pytest.fixture
def encoder() -> PlaceEncoder:
    torch.manual_seed(0)
    encoder = PlaceEncoder(TINY)
    encoder.where.centre.copy_(torch.tensor([0.1, -0.2, 0.05]))
    encoder.where.spread.copy_(torch.tensor([0.1, 0.2, 0.05]))
    return encoder


def test_three_tokens_and_two_places(encoder: PlaceEncoder) -> None:
    assert encoder.tokens == 3
    assert encoder(observe(4)).shape == (4, 3, 16)
    assert encoder.locate(observe(4)).shape == (4, 2, 3)


def test_places_follow_picture_and_words_but_not_the_gripper(encoder: PlaceEncoder) -> None:
    base = observe(1)
    assert base.instruction == [MILK]
    other_words = Observation(base.image, base.proprioception, [SOUP])
    other_picture = Observation(255 - base.image, base.proprioception, base.instruction)
    moved = Observation(base.image, base.proprioception + 0.1, base.instruction)
    places = encoder.locate(base)
    assert not torch.allclose(places, encoder.locate(other_words), atol=1e-5)
    assert not torch.allclose(places, encoder.locate(other_picture), atol=1e-5)
    torch.testing.assert_close(places, encoder.locate(moved), rtol=0, atol=0)


def test_tokens_of_places_follow_the_gripper_and_the_instruction_s_does_not(
    encoder: PlaceEncoder,
) -> None:
    base = observe(1)
    moved = Observation(base.image, base.proprioception + 0.05, base.instruction)
    change = (encoder(base) - encoder(moved)).abs().amax(-1)[0]
    assert change[0] > 1e-4
    assert change[1] > 1e-4
    assert change[2] == 0


def test_a_scene_does_not_depend_on_its_neighbours(encoder: PlaceEncoder) -> None:
    observation = observe(3)
    torch.testing.assert_close(encoder(observation)[1:2], encoder(observation.select([1])))


def test_questions_of_a_scene_are_answered_one_by_one(encoder: PlaceEncoder) -> None:
    image = torch.rand(2, 3, 32, 32)
    text = encoder.where.read_words([MILK, SOUP, SOUP, MILK]).view(2, 2, -1)
    together = encoder.where.answer(image, text)
    assert together.shape == (2, 2, 2, 3)
    alone = encoder.where.answer(image[1:], text[1:, 1:])
    torch.testing.assert_close(together[1:, 1:], alone)


def test_a_bright_spot_is_found_to_a_millimetre() -> None:
    """The network can learn what it is for: places are a linear map of where a spot is drawn."""
    torch.manual_seed(1)
    network = PlaceNetwork(TINY)
    optimiser = torch.optim.AdamW(network.parameters(), 5e-3)
    text = network.read_words([MILK] * 32)[:, None].detach()

    def scenes() -> tuple[torch.Tensor, torch.Tensor]:
        corner = torch.randint(2, 28, (32, 2))
        image = torch.zeros(32, 3, 32, 32)
        for number, (row, column) in enumerate(corner.tolist()):
            image[number, :, row : row + 3, column : column + 3] = 1
        return image, corner / 14 - 1

    errors = []
    for _ in range(250):
        image, place = scenes()
        error = (network.answer(image, text)[:, 0, 0, :2] - place).abs().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert sum(errors[:10]) / 10 > 0.3
    assert sum(errors[-10:]) / 10 < 0.1


def test_cloning_leaves_the_places_alone_and_trains_the_rest(encoder: PlaceEncoder) -> None:
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert not any(name.startswith("where.") for name in trained)


def test_a_policy_stands_on_a_pre_trained_network(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = PlaceNetwork(TINY)
    network.spread.fill_(0.3)
    network.save_pretrained(tmp_path / "encoder")
    again = PlaceNetwork.from_pretrained(tmp_path / "encoder")
    config = FlowPolicyConfig.preset("tiny").model_copy(update={"encoder": PlaceEncoderConfig()})
    policy = build_policy(config, STATISTICS, 0, places=again)
    assert isinstance(policy.encoder, PlaceEncoder)
    torch.testing.assert_close(policy.encoder.where.state_dict(), network.state_dict())
    assert policy.act(observe(2)).shape == (2, 8, 7)
    policy.save_pretrained(tmp_path / "policy")
    read = FlowPolicy.from_pretrained(tmp_path / "policy")
    torch.testing.assert_close(read.act(observe(2)), policy.act(observe(2)), rtol=0, atol=0)


def test_refusals(encoder: PlaceEncoder, tmp_path: Path) -> None:
    base = observe(1)
    with pytest.raises(DataError, match="does not know the word 'wine'"):
        encoder(Observation(base.image, base.proprioception, ["pick up the wine"]))
    with pytest.raises(ShapeError, match="expected \\[P, 32, 32, 3\\]"):
        encoder(Observation(base.image[:, :16], base.proprioception, base.instruction))
    with pytest.raises(ConfigError, match="policy=places"):
        build_policy("tiny", STATISTICS, places=encoder.where)
    with pytest.raises(CheckpointError, match="no such file"):
        PlaceNetwork.from_pretrained(tmp_path)
    for values in ({"image_size": 30}, {"features": 9}, {"vocabulary": []}):
        with pytest.raises(ConfigError):
            load_config(PlaceEncoderConfig, values)
