"""Pixel-space models with a second network for low noise: when it is used, what it computes, and how it is saved."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from torch import nn

import adhere
from adhere import AdhereError, Inpaint
from adhere.core.schedules import CosineSchedule, log_snr
from adhere.errors import InvalidInput
from adhere.pipelines.experts import FFDNet
from adhere.pipelines.pixel import PixelPipeline
from tests.core.exact import assert_close, seeded
from tests.picture_files import hole, noise
from tests.tiny_models import edit_json, load

BOUNDARY = 0.3


def expert(seed: int = 0) -> FFDNet:
    torch.manual_seed(seed)
    return FFDNet(8, 3)


@pytest.fixture
def folder(model_with, tmp_path: Path) -> Path:
    """A folder with both networks, written by save_pretrained."""
    parts = load(model_with()).components
    target = tmp_path / "two networks"
    PixelPipeline(**(parts | {"unet_2": expert()}), boundary_log_snr=BOUNDARY).save_pretrained(target)
    return target


class Calls:
    """The noise levels at which each network of a pipeline is evaluated, in order."""

    def __init__(self, pipe: Any) -> None:
        self.log_snrs: dict[str, list[float]] = {"unet": [], "unet_2": []}
        schedule = pipe.schedule()
        pipe.unet.register_forward_pre_hook(
            lambda _, args: self.log_snrs["unet"].append(log_snr(schedule, float(args[1][0])))
        )
        pipe.unet_2.register_forward_pre_hook(  # x0 + sigma eps with sigma in [0, 1] units
            lambda _, args: self.log_snrs["unet_2"].append(-math.log(2 * float(args[1][0])))
        )


def test_each_network_is_evaluated_on_its_side_of_the_boundary(folder):
    pipe = load(folder)
    calls = Calls(pipe)
    out = pipe(Inpaint(noise(24, 31, 3), hole(24, 31)), generator=seeded(0))
    high, low = calls.log_snrs["unet"], calls.log_snrs["unet_2"]
    assert out.nfe == len(high) + len(low) and min(len(high), len(low)) >= 4
    assert max(high) < BOUNDARY <= min(low) + 1e-3  # the noise level of a discrete time, computed in two ways
    assert all(a < b for a, b in pairwise(low))


def test_the_expert_serves_coarse_levels_too(folder):
    """It sees the log-SNR and the size that the multi-scale denoiser shows."""
    pipe = load(folder)
    pipe.max_downsamplings = 2
    calls, sizes = Calls(pipe), []
    pipe.unet_2.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[-1]))
    pipe(Inpaint(noise(32, 32, 3), hole(32, 32)), generator=seeded(0))
    assert {8, 16, 32} & set(sizes) == set(sizes) and len(set(sizes)) > 1
    assert min(calls.log_snrs["unet_2"]) >= BOUNDARY - 1e-3


def test_the_denoiser_has_pictures_in_the_range_of_states():
    network, schedule = expert(), CosineSchedule()
    t = schedule.t_from_log_snr(1.0)
    alpha, sigma = schedule(t)
    x_t = torch.randn(2, 3, 8, 6, generator=seeded(0))
    expected = 2 * network((x_t / alpha + 1) / 2, torch.full((2,), sigma / alpha / 2)) - 1
    assert_close(network.as_denoiser(schedule)(x_t, t), expected, 1e-6)


def test_odd_sides_are_padded_and_cropped():
    denoiser = expert().as_denoiser(CosineSchedule())
    x_t = torch.randn(1, 3, 5, 7, generator=seeded(0))
    assert denoiser(x_t, denoiser.schedule.t_from_log_snr(2.0)).shape == x_t.shape


def test_the_network_is_a_chain_of_convolutions_on_pixels_and_noise_level():
    """Written out for one picture: F(x, sigma) on 2x2 squares of pixels as channels."""
    network, x_t = expert(), torch.rand(1, 3, 8, 6, generator=seeded(0))
    squares = x_t.reshape(1, 3, 4, 2, 3, 2).permute(0, 1, 3, 5, 2, 4).reshape(1, 12, 4, 3)
    hidden = torch.cat([torch.full((1, 3, 4, 3), 0.1), squares], 1)
    first, second, last = network.convs
    noise = last(second(first(hidden).relu()).relu()).reshape(1, 3, 2, 2, 4, 3).permute(0, 1, 4, 2, 5, 3)
    assert_close(network(x_t, torch.tensor([0.1])), x_t - noise.reshape(x_t.shape), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(dtype):
    network, x_t, sigma = expert(), torch.rand(1, 3, 16, 16, generator=seeded(0)), torch.tensor([0.1])
    full = network(x_t, sigma)
    half = network.to(dtype)(x_t, sigma)
    assert half.dtype == torch.float32
    # F(x) is below 1, and its inputs, weights and sums are rounded by eps / 2 in each of three layers.
    assert (half - full).abs().max() <= 3 * 3 * torch.finfo(dtype).eps


# --- files


def test_it_is_loaded_saved_and_passed_on_as_any_component(folder, tmp_path):
    pipe = load(folder)
    assert isinstance(pipe.unet_2, FFDNet) and pipe.boundary_log_snr == BOUNDARY
    for name, value in expert().state_dict().items():
        assert pipe.unet_2.state_dict()[name].equal(value), name
    pipe.save_pretrained(tmp_path / "again")
    assert load(tmp_path / "again").boundary_log_snr == BOUNDARY
    assert PixelPipeline.from_pretrained(tmp_path / "again").boundary_log_snr == BOUNDARY
    passed_on = adhere.from_pipe(pipe)
    assert passed_on.components["unet_2"] is pipe.unet_2 and passed_on.config["boundary_log_snr"] == BOUNDARY
    assert load(folder, unet_2=None).unet_2 is None
    assert load(folder, torch_dtype=torch.bfloat16).unet_2.dtype == torch.bfloat16


def test_diffusers_loads_the_folder_without_it(folder):
    pipe = DDIMPipeline.from_pretrained(folder)
    assert set(pipe.components) == {"unet", "scheduler"}


def test_both_networks_are_compiled(folder, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    load(folder).compile()
    assert compiled == ["UNet2DModel", "FFDNet"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf], ids=str)
def test_a_second_network_needs_a_boundary(folder, value):
    edit_json(folder / "model_index.json", boundary_log_snr=value)
    with pytest.raises(AdhereError, match=r"boundary_log_snr = .*: give a number, the log-SNR"):
        load(folder)


def test_missing_weights_are_named(folder):
    (folder / "unet_2" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AdhereError, match=r"no weights \(\*.safetensors\) in unet_2/"):
        load(folder)


@pytest.mark.slow
def test_the_shipped_model_denoises_better_with_it():
    """At sigma = 25/255, on a picture that neither network was trained on."""
    data = pytest.importorskip("skimage.data")
    pipe = load(None)
    x0 = torch.from_numpy(data.coffee()[100:228, 200:328]).permute(2, 0, 1)[None] / 127.5 - 1
    schedule = pipe.schedule()
    t = schedule.t_from_log_snr(-math.log(2 * 25 / 255))
    alpha, sigma = schedule(t)
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=seeded(0))
    with torch.inference_mode():
        both = pipe.make_denoiser()(x_t, t)
        pipe.register_modules(unet_2=None)
        alone = pipe.make_denoiser()(x_t, t)
    assert (both - x0).square().mean() < (alone - x0).square().mean()


def test_what_the_network_cannot_take_is_refused_in_one_line():
    with pytest.raises(InvalidInput, match="num_layers = 1: at least 1 and 2 are needed"):
        FFDNet(8, 1)
    with pytest.raises(InvalidInput, match=r"even sides, not \(5, 4\): pad them"):
        expert()(torch.zeros(1, 3, 5, 4), torch.ones(1))
