"""The small encoder: shapes, instruction words, refusals."""

import pytest
import torch

from tests.models.policy_helpers import MILK, SOUP, observe
from vlarft.config import load_config
from vlarft.errors import ConfigError, DataError, ShapeError
from vlarft.models.policy import Observation
from vlarft.models.small_encoder import SmallEncoder, SmallEncoderConfig
from vlarft.models.words import split_words, words

TINY = SmallEncoderConfig(image_size=32, channels=(8, 16), width=12, max_words=12)
OBJECTS = (
    "alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce",
    "butter", "milk", "chocolate pudding", "orange juice",
)  # fmt: skip


def test_tokens_are_patches_then_words() -> None:
    encoder = SmallEncoder(TINY)
    assert encoder.tokens == 64 + 12
    assert encoder(observe(3)).shape == (3, 76, 12)


def test_default_vocabulary_covers_libero_object_exactly() -> None:
    instructions = [f"Pick up the {name} and place it in the basket" for name in OBJECTS]
    assert words(instructions) == SmallEncoderConfig().vocabulary
    assert split_words("Pick up the BBQ-sauce.") == ["pick", "up", "the", "bbq", "sauce"]


def test_the_instruction_changes_image_tokens_too() -> None:
    encoder = SmallEncoder(TINY)
    base = observe(1)
    other = Observation(base.image, base.proprioception, [SOUP])
    assert base.instruction == [MILK]
    difference = (encoder(base) - encoder(other)).abs()
    assert difference[:, :64].max() > 1e-4
    assert difference[:, 64:].max() > 1e-4


def test_word_order_and_position_matter_in_the_word_tokens() -> None:
    encoder = SmallEncoder(TINY)
    base = observe(1)
    swapped = Observation(base.image, base.proprioception, ["basket the in place and milk"])
    straight = Observation(base.image, base.proprioception, ["milk and place in the basket"])
    assert (encoder(swapped)[:, 64:] - encoder(straight)[:, 64:]).abs().max() > 1e-3


def test_a_scene_does_not_depend_on_its_neighbours() -> None:
    encoder = SmallEncoder(TINY)
    observation = observe(3)
    together, alone = encoder(observation), encoder(observation.select([1]))
    torch.testing.assert_close(together[1:2], alone)


def test_unknown_words_empty_texts_and_other_sizes_are_refused() -> None:
    encoder = SmallEncoder(TINY)
    base = observe(1)
    with pytest.raises(DataError, match="does not know the word 'wine'"):
        encoder(Observation(base.image, base.proprioception, ["pick up the wine"]))
    with pytest.raises(DataError, match="0 words"):
        encoder(Observation(base.image, base.proprioception, ["..."]))
    with pytest.raises(DataError, match="13 words"):
        encoder(Observation(base.image, base.proprioception, ["milk " * 13]))
    with pytest.raises(ShapeError, match=r"expected \[P, 32, 32, 3\]"):
        encoder(observe(1, 64))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": [7]}, "multiples of 8"),
        ({"image_size": 60}, "multiple of 8"),
        ({"vocabulary": ["a", "a"]}, "twice"),
    ],
)
def test_wrong_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SmallEncoderConfig, values)
