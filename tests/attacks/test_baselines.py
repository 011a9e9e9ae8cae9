"""Noise and JPEG: the codec against Pillow's, the line search against the border it looks for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from secure_infer.attacks import Access, Bounds, FunctionTarget, Goal
from secure_infer.attacks.dct import jpeg
from secure_infer.attacks.evaluate import evaluate
from secure_infer.attacks.jpeg import Jpeg
from secure_infer.attacks.noise import Noise
from secure_infer.errors import InvalidInput, NotApplicable, UsageError


def smooth(channels: int, height: int, width: int) -> np.ndarray:
    """An image with edges and slopes, uint8 `(height, width, channels)`."""
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / (3 + i)) * np.cos(y / (5 - i)) * 90 + 110 + 40 * (x > y + i) for i in range(channels)]
    return np.stack(planes, 2).clip(0, 255).astype(np.uint8)


def pillow(image: np.ndarray, quality: int, subsampling: int) -> np.ndarray:
    file = io.BytesIO()
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
    picture.save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file)).reshape(image.shape)


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
@pytest.mark.parametrize(("channels", "subsample"), [(1, True), (3, False), (3, True)])
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (9, 17)])
def test_codec_agrees_with_pillow(channels, subsample, height, width, quality):
    image = smooth(channels, height, width)
    ours = jpeg(torch.tensor(image).permute(2, 0, 1)[None] / 255, quality, subsample=subsample)
    ours = (ours[0] * 255).round().permute(1, 2, 0).numpy().astype(int)
    theirs = pillow(image, quality, 2 if subsample else 0)
    difference, loss = np.abs(ours - theirs).mean(), np.abs(theirs - image.astype(int)).mean()
    # Halved chrominances are rounded in other ways there, and a coefficient near half a step may then fall either way.
    assert difference < 1 or difference < 0.45 * loss, (difference, loss)
    assert quality > 10 or loss > 2 * difference, "what is compared is the loss, not the image"


def test_codec_refuses_what_is_no_image():
    with pytest.raises(InvalidInput) as caught:
        jpeg(torch.rand(2, 2, 8, 8), 0)
    assert [problem.where for problem in caught.value.problems] == ["images", "quality"]


def roughness(x: torch.Tensor) -> torch.Tensor:
    return x.diff(dim=3).abs().flatten(1).mean(1)


def test_jpeg_takes_the_highest_quality_that_changes_the_answer():
    torch.manual_seed(0)
    x = (torch.rand(6, 1, 8, 8) * 255).round() / 255
    limit = 0.9 * roughness(x)
    labels = torch.zeros(6).long()

    def classify(batch: torch.Tensor) -> torch.Tensor:
        nearest = (batch[:, None] - x[None]).flatten(2).norm(dim=2).argmin(1)
        return (roughness(batch) < limit[nearest]).long()

    target = FunctionTarget(classify, (1, 8, 8), 2, access=Access.LABEL)
    outcome = evaluate(target, Jpeg(), x, Goal(labels), levels=255)
    for i in range(6):
        wrong = [q for q in Jpeg().qualities if roughness(jpeg(x[i : i + 1], q)) < limit[i]]
        assert bool(outcome.reached[i]) == bool(wrong)
        if wrong:
            torch.testing.assert_close(outcome.images[i : i + 1], jpeg(x[i : i + 1], wrong[0]))
    assert outcome.reached.any()


def test_jpeg_is_not_applicable_to_rows_of_a_table():
    target = FunctionTarget(lambda x: (x.sum(1) > 1).long(), (5,), 2, access=Access.LABEL)
    with pytest.raises(NotApplicable, match="images alone"):
        Jpeg()(target, torch.rand(2, 5), Goal(torch.tensor([0, 0])))
    with pytest.raises(UsageError, match="falling"):
        Jpeg(qualities=(10, 20))


@pytest.mark.parametrize("kind", ["gaussian", "uniform"])
def test_noise_stops_at_the_border_along_its_direction(kind):
    normal = torch.linspace(-1, 1, 20)
    wide = Bounds(-100, 100)
    target = FunctionTarget(lambda x: (x @ normal > 0).long(), (20,), 2, access=Access.LABEL, bounds=wide)
    x = torch.full((300, 20), 0.5) - 0.1 * normal
    found = Noise(kind, bisections=24)(target, x, Goal(torch.zeros(300).long()), seed=3)
    moved = (found != x).any(1)
    assert 100 < moved.sum() < 300, "some directions lead away from the border"
    torch.testing.assert_close((found @ normal)[moved], torch.zeros(int(moved.sum())), atol=2e-2, rtol=0)


def test_more_draws_of_noise_never_do_worse_and_the_seed_decides():
    normal = torch.linspace(-1, 1, 20)
    target = FunctionTarget(lambda x: (x @ normal > 0.2).long(), (20,), 2, access=Access.LABEL)
    x, goal = torch.full((50, 20), 0.5), Goal(torch.zeros(50).long())
    one = evaluate(target, Noise(), x, goal, seed=1)
    many = evaluate(target, Noise(draws=5), x, goal, seed=1)
    assert (many.distortion.l2 <= one.distortion.l2).all() and many.success > one.success
    assert torch.equal(one.images, evaluate(target, Noise(), x, goal, seed=1).images)
    assert not torch.equal(one.images, evaluate(target, Noise(), x, goal, seed=2).images)
    with pytest.raises(UsageError, match="gaussian"):
        Noise("pink")
