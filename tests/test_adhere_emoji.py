"""The shipped adhere-emoji, with its trained weights: what it promises beyond the tiny models."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from adhere import ConstrainedPipeline, Inpaint
from adhere.loading import MODELS
from adhere.tasks import Generate
from benchmarks import held_out
from benchmarks.emoji import psnr
from benchmarks.emoji_tasks import half
from benchmarks.features import FeatureDistance
from training.emoji.autoencoder import to_tensor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pipe() -> ConstrainedPipeline:
    return ConstrainedPipeline.from_pretrained("adhere-emoji")


def test_plain_diffusers_draws_the_same_from_the_same_noise(pipe):
    theirs = StableDiffusionPipeline.from_pretrained(
        MODELS / "adhere-emoji", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    prompt, settings = "grinning face, cartoon", {"guidance_scale": 3.0, "num_inference_steps": 10}
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    wanted = theirs(prompt, generator=seeded(), output_type="np", height=64, width=64, **settings).images[0]
    ours = pipe(Generate(), prompt, generator=seeded(), output_type="np", **settings).images[0]
    off = np.abs(ours / 255 - wanted)  # ours is rounded to 8 bits; theirs ends at the noise of t = 0, ours at none
    assert off.mean() < 1 / 255
    assert off.max() < 8 / 255


def test_a_red_heart_is_red_on_white(pipe):
    image = np.asarray(pipe(Generate(), "red heart, 3d", guidance_scale=3.0).images[0]).astype(float)
    red, green, blue = image[24:36, 22:42].mean((0, 1))
    assert red > 180
    assert green < 110
    assert blue < 130
    assert image[:4, :4].min() > 235


def test_completions_of_held_out_emoji_are_nearer_to_them_than_their_smooth_continuation(pipe):
    """Faces, hearts, clocks, ...: ten of as many kinds; known pixels are kept bit for bit."""
    _, pictures = held_out.load(10)
    unknown = half()
    made = [np.asarray(pipe(Inpaint(picture, unknown), guidance_scale=1.0).images[0]) for picture in pictures]
    for picture, image in zip(pictures, made, strict=True):
        assert np.array_equal(image[~unknown], picture[~unknown])
    smooth = np.where(unknown[..., None], pictures[:, :, 31:32], pictures)  # the last known column goes on
    x, where = to_tensor(pictures), torch.from_numpy(unknown)[None, None].float()
    with torch.inference_mode():
        distance = FeatureDistance()
        ours, theirs = (distance(to_tensor(np.stack(list(found))), x).mean() for found in (made, smooth))
    assert ours < 0.8 * theirs
    assert psnr(to_tensor(np.stack(made)), x, where).mean() > psnr(to_tensor(smooth), x, where).mean()
