"""Pixel-space models in every layout that diffusers saves: what they sample, what it costs, where NaN is noticed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

import adhere
from adhere import AdhereError, Generate, Inpaint
from adhere.core.constraints import Unconstrained
from adhere.core.covariance import StationaryCovariance
from adhere.core.presets import PRESETS
from adhere.core.sampling import trajectory
from adhere.core.schedules import FlowSchedule
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DDIM
from adhere.pipelines.pixel import PixelPipeline
from tests.core.exact import last_x0, seeded
from tests.picture_files import hole, noise
from tests.tiny_models import PIXEL_PRESETS, edit_json, edit_weights, load, tiny_unet, with_nan

LAYOUTS = {
    "epsilon": {},
    "sample": {"prediction_type": "sample"},
    "v_prediction": {"prediction_type": "v_prediction"},
    "DDPMPipeline": {"ddpm": True},
    "attention": {"attention": True},
    "learned variance": {"ddpm": True, "out_channels": 6},
    "unshuffled": {"channels": 12, "prediction_type": "v_prediction"},
    "unshuffled, learned variance": {"channels": 12, "out_channels": 24},
}


RGB = {name: layout for name, layout in LAYOUTS.items() if layout.get("channels", 3) == 3}


def task(height: int = 24, width: int = 31) -> Inpaint:
    return Inpaint(noise(height, width, 3), hole(height, width))


# --- layouts


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_runs_every_solver_at_its_cost(model_with, layout, solver):
    pipe = load(model_with(**LAYOUTS[layout]))
    out = pipe(task(), solver=solver, num_inference_steps=3, output_type="latent")
    assert out.nfe == PRESETS[solver].evaluations(pipe.schedule(), 3)
    assert out.images.shape == (1, 3, 24, 32)  # padded to the network's multiple
    assert out.images.isfinite().all()
    assert not out.images.requires_grad  # no graph was built


def test_the_default_solver_makes_its_default_steps_and_evaluations(shared_model):
    pipe = load(shared_model)
    out = pipe(task())
    assert (out.solver, out.num_steps, out.nfe) == ("moment_matching", 12, 12)
    assert PRESETS["moment_matching"].evaluations(pipe.schedule()) == 12
    assert out.seconds > 0
    assert len(out.residual) == 1


def test_no_graph_is_built_where_gradients_are_switched_on(shared_model):
    pipe = load(shared_model)
    with torch.enable_grad():
        out = pipe(task(), num_inference_steps=1, output_type="pt")
    assert not out.images.requires_grad
    assert all(p.grad is None for p in pipe.unet.parameters())


def plain_ddim(pipe: PixelPipeline, steps: int, x_T: torch.Tensor) -> torch.Tensor:
    """Return x0 of deterministic sampling without a constraint, through the pipeline's own denoiser."""
    denoiser = pipe.make_denoiser()
    with torch.inference_mode():
        timesteps = denoiser.schedule.timesteps(steps)
        transition, generator = DDIM(eta=0.0), torch.Generator()
        return last_x0(trajectory(denoiser, Unconstrained(), Plain(), x_T, timesteps, transition, generator))


@pytest.mark.parametrize("layout", [name for name in RGB if name != "learned variance"])
def test_plain_sampling_is_what_diffusers_samples(model_with, layout):
    folder = model_with(**LAYOUTS[layout])
    # With so little noise at the end, x0 of a random network is near x_t / alpha_t, and in [-1, 1].
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_end=0.001)
    theirs: Any = DDIMPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler.register_to_config(clip_sample=False, thresholding=False)
    theirs.scheduler.final_alpha_cumprod = torch.tensor(1.0)  # the last step ends at x0
    shown = theirs(num_inference_steps=5, generator=torch.Generator().manual_seed(3), output_type="np").images

    x_T = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    x0 = plain_ddim(load(folder), 5, x_T)
    pictures = (x0 / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(pictures, shown, atol=1e-4)
    assert ((shown > 0) & (shown < 1)).mean() > 0.5  # most of it was not clipped away


def test_learned_variances_change_nothing(model_with):
    """Three more output channels leave the mean as it is."""
    with_variance = tiny_unet(out_channels=6)
    mean = tiny_unet()
    entries = with_variance.state_dict()
    mean.load_state_dict(entries | {f"conv_out.{p}": entries[f"conv_out.{p}"][:3] for p in ("weight", "bias")})
    scheduler = load(model_with()).scheduler
    x_T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, expected = (plain_ddim(PixelPipeline(unet.eval(), scheduler), 4, x_T) for unet in (with_variance, mean))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_unshuffled_blocks_go_back_where_they_came_from(model_with):
    """A 12-channel network whose output is zero leaves x0 = x_t / alpha_t."""
    folder = model_with(channels=12)
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    denoiser = load(folder).make_denoiser()
    x_t = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoiser(x_t, 500.0), x_t / denoiser.schedule(500.0)[0])


@pytest.mark.parametrize(("layout", "multiple"), [("epsilon", 2), ("unshuffled", 4)])
def test_sides_must_be_multiples_of_what_the_network_halves(model_with, layout, multiple):
    assert load(model_with(**LAYOUTS[layout])).multiple == multiple


@pytest.mark.parametrize("keyword", ["torch_dtype", "dtype"])
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_a_bfloat16_network_keeps_a_float32_state(shared_model, keyword):
    pipe = load(shared_model, **{keyword: torch.bfloat16})
    assert pipe.unet.dtype == torch.bfloat16
    out = pipe(task(), num_inference_steps=2, output_type="pt")
    assert out.images.dtype == torch.float32
    assert out.images.isfinite().all()


def test_a_model_of_several_scales_sees_small_pictures_at_high_noise(model_with, tmp_path):
    """Its folder allows two down-samplings. Solvers that ask for it use them; plain sampling does not."""
    folder = model_with(**LAYOUTS["unshuffled"])
    edit_json(folder / "model_index.json", max_downsamplings=2)
    pipe = load(folder)
    pipe.save_pretrained(tmp_path / "again")
    for same in (pipe, load(tmp_path / "again"), adhere.from_pipe(pipe)):
        sides = []
        hook = same.unet.register_forward_pre_hook(lambda _, given, sides=sides: sides.append(2 * given[0].shape[-1]))
        out = same(task(40, 40), num_inference_steps=3)
        assert out.nfe == len(sides) == PRESETS["moment_matching"].evaluations(pipe.schedule(), 3)
        assert (sides[0], sides[-1]) == (12, 40)  # 40 / 4, padded to the network's multiple
        assert sides == sorted(sides)
        sides.clear()
        same(Generate((40, 40)), num_inference_steps=2)
        assert sides == [40, 40]
        hook.remove()


def test_a_picture_larger_than_a_tile_is_made_smaller_at_high_noise_before_it_is_cut_into_tiles(model_with):
    """So a tile of it shows the whole picture at high noise, and no tile is smaller than the network's own size."""
    folder = model_with()
    edit_json(folder / "model_index.json", max_downsamplings=2)
    pipe, seen = load(folder), []
    pipe.tile_size = 16
    pipe.unet.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape[-2:])))
    out = pipe(task(64, 64), num_inference_steps=3, output_type="latent")
    assert out.nfe == 3 and out.images.shape[-2:] == (64, 64) and out.images.isfinite().all()
    assert set(seen) == {(16, 16)}
    assert len(seen) in {1 + 9 + 25, 1 + 25 + 25}  # 16, 32 or 64 pixels wide; tiles overlap by 2


def test_a_schedule_that_ends_in_pure_noise_runs(model_with):
    folder = model_with(prediction_type="v_prediction")
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    for solver in PIXEL_PRESETS:
        assert np.isfinite(load(folder)(task(), solver=solver, num_inference_steps=2).residual).all()


# --- schedulers


def with_scheduler(folder: Path, scheduler: Any) -> Path:
    scheduler.save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
    return folder


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, UnCLIPScheduler, DDPMScheduler])
def test_other_saved_schedulers_with_a_table_are_read(model_with, scheduler):
    """Also one whose table diffusers' own conversion to a DDIMScheduler loses: UnCLIP's cosine."""
    expected = scheduler().alphas_cumprod.double()
    schedule = load(with_scheduler(model_with(), scheduler())).make_denoiser().schedule
    for t in (0, 500, 999):
        assert schedule(float(t))[0] ** 2 == pytest.approx(expected[t].item(), abs=1e-6)


def test_a_pixel_network_that_predicts_a_flow(model_with):
    pipe = load(with_scheduler(model_with(), FlowMatchEulerDiscreteScheduler(shift=2.0)))
    assert pipe.make_denoiser().schedule == FlowSchedule(1000.0, 2.0, s_end=2 / 1001)
    assert np.isfinite(pipe(task(), num_inference_steps=2).residual).all()


# --- networks that return NaN


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_nan_from_the_network_names_the_step(model_with, solver):
    folder = model_with()
    edit_weights(folder, with_nan)
    pipe = load(folder)
    with pytest.raises(AdhereError, match=r"NaN or infinity at step 1 of 3 \(t = \d+\)"):
        pipe(task(), solver=solver, num_inference_steps=3)


@pytest.mark.parametrize("solver", PIXEL_PRESETS)
def test_nan_at_a_later_step_names_that_step(shared_model, monkeypatch, solver):
    pipe = load(shared_model)
    third = PRESETS[solver].timesteps(pipe.schedule(), 4)[2]
    forward = pipe.unet.forward

    def diverging(x, t, **options):
        (out,) = forward(x, t, **options)
        return (out if t > third else out * float("inf"),)

    monkeypatch.setattr(pipe.unet, "forward", diverging)
    with pytest.raises(AdhereError, match="at step 3 of 4"):
        pipe(task(), solver=solver, num_inference_steps=4)


def test_nan_between_two_timesteps_names_the_time(shared_model, monkeypatch):
    """moment_matching evaluates there the fusion of x_t with the previous mean."""
    pipe = load(shared_model)
    schedule, sampler = pipe.schedule(), PRESETS["moment_matching_posterior"]
    assert isinstance(sampler.solver, MomentMatching)
    first = sampler.timesteps(schedule, 4)[0]
    between = schedule.t_from_log_snr(math.log(sampler.solver.fusion_snr) / 2)
    forward = pipe.unet.forward

    def diverging(x, t, **options):
        (out,) = forward(x, t, **options)
        return (out if t == first else out * float("inf"),)

    monkeypatch.setattr(pipe.unet, "forward", diverging)
    with pytest.raises(AdhereError, match=rf"NaN or infinity at t = {between:g}; try float32"):
        pipe(task(), solver="moment_matching_posterior", num_inference_steps=8)


# --- the model that ships


@pytest.mark.slow
def test_the_shipped_model_repairs_a_smooth_picture_better_than_its_mean_color():
    rows, columns = np.mgrid[0:64, 0:64]
    picture = np.stack([rows * 2 + 60, columns * 2 + 60, np.full_like(rows, 128)], -1).astype(np.uint8)
    mask = hole(64, 64)
    generator = torch.Generator().manual_seed(0)
    repaired = np.asarray(load(None)(Inpaint(picture, mask), generator=generator).images[0])
    assert np.array_equal(repaired[~mask], picture[~mask])
    error = np.abs(repaired.astype(float) - picture)[mask].mean()
    assert error < np.abs(picture[mask] - picture[~mask].mean(0)).mean()


# --- what a model states about itself


SPECTRUM = {"channel_covariance": [[0.2, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.2]], "exponent": 1.0}


def test_a_model_states_its_temperature_and_its_spectrum(model_with):
    folder = model_with()
    plain = load(folder)
    assert (plain.temperature, plain.prior_covariance) == (1.0, None)
    edit_json(folder / "model_index.json", _temperature=0.5, _prior_spectrum=SPECTRUM)
    pipe = load(folder)
    rows = tuple(map(tuple, SPECTRUM["channel_covariance"]))
    assert (pipe.temperature, pipe.prior_covariance) == (0.5, StationaryCovariance(rows, exponent=1.0))
    same, other = (one(task(), num_inference_steps=3, generator=seeded(0), output_type="pt") for one in (plain, pipe))
    assert not torch.allclose(same.images, other.images)


def test_what_a_model_states_survives_saving_and_from_pipe(model_with, tmp_path):
    folder, stated = model_with(), {"_temperature": 0.5, "_prior_spectrum": SPECTRUM, "_guidance_scale": 2.5}
    load(folder).save_pretrained(tmp_path / "plain")
    assert not stated.keys() & json.loads((tmp_path / "plain" / "model_index.json").read_text()).keys()
    edit_json(folder / "model_index.json", **stated)
    pipe = load(folder)
    pipe.save_pretrained(tmp_path / "saved")
    for same in (load(tmp_path / "saved"), adhere.from_pipe(pipe), PixelPipeline.from_pipe(pipe)):
        assert same.temperature == 0.5
        assert same.prior_spectrum == pipe.prior_spectrum is not None
        assert vars(same)["default_guidance_scale"] == 2.5


@pytest.mark.parametrize(
    "spectrum",
    [{"exponent": 2.0}, {"channel_covariance": [[1.0, 0.0]], "exponent": 2.0}, "pink", SPECTRUM | {"slope": 1.0}],
)
def test_a_spectrum_that_cannot_be_read_is_refused(model_with, spectrum):
    folder = model_with()
    edit_json(folder / "model_index.json", _prior_spectrum=spectrum)
    with pytest.raises(AdhereError, match=r"'_prior_spectrum' in model_index.json cannot be read .*give"):
        load(folder)
