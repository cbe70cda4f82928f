import pytest
import torch

from vlarft.demo import WORLD
from vlarft.engine import RolloutEngine
from vlarft.errors import CheckpointError, ConfigError, DataError, DtypeError, ShapeError
from vlarft.models import LPIPS
from vlarft.models.world_model import WorldModel


def pixels(*shape, seed=0):
    return torch.rand(*shape, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 3, 2), (1, 4, 1), (1, 1, 1), (3, 1, 2)], ids=str)
def test_distances_are_those_of_each_pair(engine, shape):
    frames, reference = pixels(*shape), pixels(shape[0], shape[2], seed=1)
    out = engine.compare(frames, reference)
    lpips = LPIPS.load("alex")
    for p in range(shape[0]):
        for n in range(shape[1]):
            near = (frames[p, n] - reference[p]).abs().flatten(1).mean(1)
            assert torch.allclose(out.l1[p, n], near, atol=1e-6)
            with torch.no_grad():
                far = lpips(frames[p, n], reference[p])
            assert torch.allclose(out.perceptual[p, n], far, atol=1e-5)
    assert out.l1.dtype == out.perceptual.dtype == torch.float32


def test_micro_batches_give_the_same_distances(engine, world):
    small = RolloutEngine(world, metric="lpips-alex", memory_limit="12MiB")
    frames, reference = pixels(3, 2, 2), pixels(3, 2, seed=1)
    a, b = engine.compare(frames, reference), small.compare(frames, reference)
    assert torch.allclose(a.l1, b.l1, atol=1e-6)
    assert torch.allclose(a.perceptual, b.perceptual, atol=1e-5)


def test_the_reference_is_embedded_once_per_scene(world):
    class Counting:
        images = 0

        def features(self, images):
            self.images += len(images)
            return [images]

        def distance(self, a, b):
            return (a[0] - b[0]).square().mean((1, 2, 3))

    metric = Counting()
    engine = RolloutEngine(world, metric=metric, memory_limit="1GiB")
    assert engine.metric == "Counting"
    frames, reference = pixels(2, 5, 3), pixels(2, 3, seed=1)
    out = engine.compare(frames, reference)
    assert metric.images == 2 * 5 * 3 + 2 * 3
    truth = (frames - reference[:, None]).square().mean((-3, -2, -1))
    assert torch.allclose(out.perceptual, truth)


def test_equal_frames_have_distance_exactly_zero(engine):
    frames = pixels(1, 3, 2)
    out = engine.compare(frames, frames[:, 1])
    assert (out.l1[:, 1] == 0).all()
    assert (out.perceptual[:, 1] == 0).all()
    assert (out.perceptual[:, 0] > 0).all()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "pixels are NaN"),
        (float("inf"), "pixels are infinite"),
        (1.01, r"outside \[0, 1\]"),
        (-0.01, r"outside \[0, 1\]"),
    ],
)
@pytest.mark.parametrize("which", ["frames", "reference"])
def test_bad_pixels_are_refused_by_name(engine, value, words, which):
    given = {"frames": pixels(1, 2, 2), "reference": pixels(1, 2, seed=1)}
    given[which].flatten()[7] = value
    with pytest.raises(DataError, match=f"^{which}: 1 of .*{words}"):
        engine.compare(**given)


def test_wrong_shapes_and_dtypes_are_refused(engine):
    frames, reference = pixels(1, 2, 2), pixels(1, 2)
    with pytest.raises(ShapeError, match=r"reference must be \[1,2,3,64,64\]"):
        engine.compare(frames, reference[:, :1])
    with pytest.raises(ShapeError, match=r"frames must be \[P,N,T,3,H,W\]"):
        engine.compare(frames[0], reference)
    with pytest.raises(DtypeError, match="frames must be floating"):
        engine.compare((frames * 255).byte(), reference)


def test_metric_names_and_weights(world, tmp_path):
    known = "allowed: lpips-vgg, lpips-alex, lpips-squeeze, tokenizer-features"
    with pytest.raises(ConfigError, match=known):
        RolloutEngine(world, metric="lpips-resnet")
    # nothing is read before the first comparison, and nothing is random then
    engine = RolloutEngine(world, metric_file=tmp_path / "none.safetensors", memory_limit="1GiB")
    with pytest.raises(CheckpointError, match="vlarft weights lpips --net vgg"):
        engine.compare(pixels(1, 1, 1), pixels(1, 1))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_tokenizer_features_are_the_plain_formula(backend):
    """On trained weights: unit length a pixel, squared difference, means of pixels and levels."""
    world = WorldModel.from_pretrained(WORLD)
    engine = RolloutEngine(world, backend=backend, metric="tokenizer-features")
    frames, reference = pixels(1, 2, 2), pixels(1, 2, seed=1)
    reference[0, 1] = frames[0, 1, 1]
    found = engine.compare(frames, reference).perceptual[0]
    for n in range(2):
        for t in range(2):
            a, b = (_levels(world.tokenizer, x) for x in (frames[0, n, t], reference[0, t]))
            plain = sum(
                sum(((x[:, i, j] - y[:, i, j]) ** 2).sum() for i in range(h) for j in range(w))
                / (h * w)
                for x, y in zip(a, b, strict=True)
                for h, w in [x.shape[1:]]
            ) / len(a)
            assert float(found[n, t]) == pytest.approx(float(plain), rel=1e-4, abs=1e-7)
    assert found[1, 1] == 0
    assert bool((found < 4).all())


def _levels(tokenizer, image):
    """Output of every level of the plain encoder, each pixel of unit length, [C,h,w]."""
    with torch.no_grad():
        x = tokenizer.encoder.conv_in(image[None])
        levels = []
        for block in tokenizer.encoder.down_blocks:
            x = block(x)
            levels.append(x[0] / x[0].norm(dim=0, keepdim=True))
    return levels


def test_tokenizer_features_fit_the_plan(world):
    small = RolloutEngine(world, metric="tokenizer-features", memory_limit="12MiB")
    large = RolloutEngine(world, metric="tokenizer-features", memory_limit="2GiB")
    frames = torch.rand(3, 2, 2, 3, 32, 32)
    a, b = small.compare(frames, frames[:, 0]), large.compare(frames, frames[:, 0])
    assert torch.allclose(a.perceptual, b.perceptual, atol=1e-5)
    assert large.plan(3, 2).total < RolloutEngine(world, memory_limit="2GiB").plan(3, 2).total
