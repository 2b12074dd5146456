"""The shipped adhere-emoji with its trained weights."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

import adhere
from adhere import ConstrainedPipeline, Generate, Inpaint
from adhere.io._samples import to_float
from adhere.metrics import FeatureDistance, psnr
from adhere.pipelines._index import MODELS
from benchmarks import held_out
from benchmarks.emoji_tasks import half

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipe() -> ConstrainedPipeline:
    return adhere.load("adhere-emoji")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """Return pictures uint8 (B, H, W, 3) as (B, 3, H, W) in [-1, 1]."""
    return torch.stack([torch.from_numpy(to_float(picture)) for picture in pictures])


def test_plain_diffusers_draws_the_same_from_the_same_noise(pipe):
    """The last step of diffusers ends at the noise of t = 0, that of adhere at none."""
    diffusers_pipe = StableDiffusionPipeline.from_pretrained(
        MODELS / "adhere-emoji", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    prompt, settings = "grinning face, cartoon", {"guidance_scale": 3.0, "num_inference_steps": 10}
    expected = diffusers_pipe(prompt, generator=seeded(), output_type="np", height=64, width=64, **settings).images[0]
    ours = pipe(Generate(), prompt, generator=seeded(), output_type="np", **settings).images[0]
    difference = np.abs(ours - expected)
    assert difference.mean() < 1 / 255
    assert difference.max() < 8 / 255


def test_a_red_heart_is_red_on_white(pipe):
    image = pipe(Generate(), "red heart, 3d", guidance_scale=3.0, generator=seeded()).images[0]
    pixels = np.asarray(image).astype(float)
    red, green, blue = pixels[24:36, 22:42].mean((0, 1))
    assert red > 180
    assert green < 110
    assert blue < 130
    assert pixels[:4, :4].min() > 235


def test_completed_held_out_emoji_are_nearer_to_the_originals_than_a_smooth_continuation(pipe):
    """The ten emoji are of as many kinds: faces, hearts, clocks, ...; known pixels are kept bit for bit."""
    _, pictures = held_out.load(10)
    mask = half()
    completed = [
        np.asarray(pipe(Inpaint(picture, mask), guidance_scale=1.0, generator=seeded()).images[0])
        for picture in pictures
    ]
    for picture, image in zip(pictures, completed, strict=True):
        assert np.array_equal(image[~mask], picture[~mask])
    smooth = np.where(mask[..., None], pictures[:, :, 31:32], pictures)  # the last known column is repeated
    x, x_completed, x_smooth = (to_tensor(array) for array in (pictures, np.stack(completed), smooth))
    where = torch.from_numpy(mask)[None, None].float()
    with torch.inference_mode():
        distance = FeatureDistance()
        assert distance(x_completed, x).mean() < 0.8 * distance(x_smooth, x).mean()
    assert psnr(x_completed, x, where).mean() > psnr(x_smooth, x, where).mean()
