import json

import pytest
import torch

from vlarft.errors import CheckpointError, ShapeError
from vlarft.models.success import SuccessClassifier, SuccessConfig, build_success_classifier


@pytest.fixture
def classifier():
    config = SuccessConfig(image_size=32, channels=(8, 16), threshold=0.1)
    return build_success_classifier(config, seed=3).eval()


def test_a_folder_holds_all_of_it(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    loaded = SuccessClassifier.from_pretrained(tmp_path)
    frames = torch.rand(5, 3, 32, 32)
    assert loaded.config == classifier.config
    assert not loaded.training
    torch.testing.assert_close(loaded(frames), classifier(frames), rtol=0, atol=0)
    assert torch.equal(loaded.solved(frames), classifier(frames) > 0.1)


def test_weights_depend_on_the_seed_alone(classifier):
    torch.manual_seed(1)
    again = build_success_classifier(classifier.config, seed=3)
    other = build_success_classifier(classifier.config, seed=4)
    assert torch.equal(again.score[-1].weight, classifier.score[-1].weight)
    assert not torch.equal(other.score[-1].weight, classifier.score[-1].weight)


def test_refusals(classifier, tmp_path):
    with pytest.raises(ShapeError, match=r"\[1, 3, 16, 32\]; expected \[B, 3, 32, 32\]"):
        classifier(torch.rand(1, 3, 16, 32))
    with pytest.raises(CheckpointError, match="no such file"):
        SuccessClassifier.from_pretrained(tmp_path / "missing")
    classifier.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    for key, value, words in (
        ("channels", [8, 8], "shape"),
        ("channels", [12], "multiples of 8"),
        ("image_size", 34, "not a multiple of 4"),
        ("treshold", 0, "did you mean 'threshold'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content | {key: value}))
        with pytest.raises(CheckpointError, match=words):
            SuccessClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="multiples of 8"):
        SuccessConfig(channels=())
