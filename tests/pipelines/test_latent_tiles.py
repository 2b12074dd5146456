"""Large pictures of latent models: tiles of the network, the encoder and the decoder, and the coarse start."""

import math

import numpy as np
import pytest
import torch

import adhere
from adhere import Generate, Inpaint
from adhere.core.derivatives import vjp
from adhere.core.presets import PRESETS
from adhere.errors import InvalidInput
from tests.picture_files import noise
from tests.tiny_latent_models import tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl

BUILDERS = {"sd": tiny_sd, "sdxl": tiny_sdxl, "sd3": tiny_sd3, "flux": tiny_flux, "ldm": lambda _: tiny_ldm()}
LARGE = (128, 192)  # the native side is 64 pixels, 8 cells


def built(name, folder):
    pipe = adhere.from_pipe(BUILDERS[name](folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sides_seen(pipe, monkeypatch, module, name):
    """Return a list of the longest sides that a module gets."""
    sides, original = [], getattr(module, name)

    def watched(x, *args, **options):
        sides.append(max(x.shape[-2:]))
        return original(x, *args, **options)

    monkeypatch.setattr(module, name, watched)
    return sides


@pytest.mark.parametrize("name", BUILDERS)
def test_every_family_samples_a_large_picture_in_tiles_of_twice_its_native_side(tmp_path, monkeypatch, name):
    pipe = built(name, tmp_path)
    side = pipe.tile_size
    decoded = sides_seen(pipe, monkeypatch, pipe.vae, "decode")
    size = tuple(3 * native for native in pipe.native_size)
    prompt = None if name == "ldm" else ["a", "b"]
    out = pipe([Generate(size)] * 2, prompt, num_inference_steps=2, generator=seeded(1, 2), output_type="pt")
    assert out.images.shape == (2, 3, *size)
    assert side == 2 * max(pipe.native_size) // pipe.vae_scale_factor
    assert max(decoded) == side
    assert len(decoded) == 4


def test_the_network_sees_no_more_than_a_tile_and_prompts_and_guidance_reach_it(tmp_path, monkeypatch):
    pipe = built("sd", tmp_path)
    seen = sides_seen(pipe, monkeypatch, pipe.unet, "forward")
    options = {"num_inference_steps": 2, "output_type": "latent"}
    one, other, strong = (
        pipe(Generate(LARGE), prompt, guidance_scale=scale, generator=seeded(0), **options).images
        for prompt, scale in (("a", 2.0), ("b", 2.0), ("a", 5.0))
    )
    assert max(seen) == 16
    assert not torch.equal(one, other) and not torch.equal(one, strong)


def test_tiles_can_be_set_and_switched_off_and_are_not_used_up_to_twice_the_native_side(tmp_path, monkeypatch):
    pipe = built("sd", tmp_path)
    seen = sides_seen(pipe, monkeypatch, pipe.unet, "forward")

    def longest(size):
        seen.clear()
        pipe(Generate(size), num_inference_steps=1, output_type="pt")
        return max(seen)

    assert pipe.tile_size == 16
    assert longest((64, 120)) == 15
    assert longest(LARGE) == 16
    pipe.tile_size = 12
    assert longest((64, 120)) == 12
    pipe.tile_size = None
    assert pipe.tile_size is None
    assert longest(LARGE) == 24


@pytest.mark.parametrize("side", [0, -16])
def test_tiles_without_an_area_are_refused(tmp_path, side):
    pipe = built("sd", tmp_path)
    with pytest.raises(InvalidInput, match=f"tile_size = {side}: give a side of at least 1"):
        pipe.tile_size = side
    assert pipe.tile_size == 16


def test_tiles_that_hold_the_whole_picture_change_nothing(tmp_path):
    pipe = built("sd", tmp_path)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    results = []
    for side in (24, 48):
        pipe.tile_size = side
        results.append(pipe(Generate(LARGE), generator=seeded(0), **options).images)
    assert torch.equal(*results)


def test_a_large_batch_gives_the_pictures_of_single_runs(tmp_path):
    pipe = built("sd", tmp_path)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    batch = pipe([Generate(LARGE)] * 2, generator=seeded(1, 2), **options).images
    single = torch.cat([pipe(Generate(LARGE), generator=seeded(seed), **options).images for seed in (1, 2)])
    assert (batch - single).abs().max() < 1e-3


@pytest.mark.parametrize("decoder_backward", [False, True])
def test_a_large_loss_through_the_decoder_runs_in_tiles(tmp_path, decoder_backward):
    pipe = built("sd", tmp_path)
    loss = adhere.Loss(lambda x: x.square().mean((1, 2, 3)))
    task = adhere.Custom(loss, LARGE)
    out = pipe(task, num_inference_steps=2, decoder_backward=decoder_backward, generator=seeded(0))
    assert out.images[0].size == LARGE[::-1]
    assert np.isfinite(out.residual[0])


def test_the_gradient_through_a_decoder_in_tiles_is_that_of_its_finite_differences(tmp_path):
    pipe = built("sd", tmp_path)
    pipe.vae.double()
    g = torch.Generator().manual_seed(0)
    z, v = (torch.randn(1, 4, 16, 20, generator=g).double() for _ in range(2))
    x, transposed = vjp(pipe.autoencoder.decode, z, retain_graph=True)
    r = torch.randn(x.shape, generator=g).double()
    h = 1e-5
    difference = (pipe.autoencoder.decode(z + h * v) - pipe.autoencoder.decode(z - h * v)) / (2 * h)
    for _ in range(2):  # the graph is kept
        assert float((transposed(r) * v).sum()) == pytest.approx(float((r * difference).sum()), rel=1e-5)


def test_a_hole_in_a_large_picture_keeps_its_known_pixels(tmp_path):
    pipe = built("sd", tmp_path)
    pixels = noise(*LARGE)
    mask = np.zeros(LARGE, bool)
    mask[30:90, 40:120] = True
    task = Inpaint(pixels, mask, context=192)
    out = np.asarray(pipe(task, num_inference_steps=2, generator=seeded(0)).images[0])
    assert (out[~mask] == np.asarray(pixels)[~mask]).all()


@pytest.mark.parametrize("size", [(128, 128), (256, 320), (128, 200)])
def test_at_high_noise_the_network_sees_the_whole_picture_near_its_native_size(tmp_path, size):
    pipe = built("sd", tmp_path)
    scales = pipe._scales(size, PRESETS["plain"])
    assert scales is not None
    halvings, limit, multiple = scales
    assert abs(math.log2(max(size) / pipe.vae_scale_factor / 2**halvings / 8)) <= 0.5  # 8 is the native side
    assert (limit, multiple) == (pipe._coarse_max_log_snr, pipe.latent_multiple)
    pipe.tile_size = None
    assert pipe._scales(size, PRESETS["plain"]) is None
