import json
import math
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_sde_ve import ScoreSdeVeScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

from adhere import AdhereError, ConstrainedPipeline, Inpaint
from adhere.core.constraints import Unconstrained
from adhere.core.sample import DDIM, sample
from adhere.core.schedule import RectifiedFlow
from adhere.core.solvers import DEFAULT_METHOD, METHODS, Plain
from adhere.families import FAMILIES
from adhere.families.pixel import PixelPipeline
from adhere.tasks import Generate
from tests.core.laws import FOR_PICTURES, evaluations
from tests.picture_files import hole, noise
from tests.tiny_models import WEIGHTS, edit_json, edit_weights, load, tiny_unet, with_nan

LAYOUTS = {
    "epsilon": {},
    "sample": {"prediction": "sample"},
    "v_prediction": {"prediction": "v_prediction"},
    "DDPMPipeline": {"ddpm": True},
    "attention": {"attention": True},
    "learned variance": {"ddpm": True, "out_channels": 6},
    "unshuffled": {"channels": 12, "prediction": "v_prediction"},
    "unshuffled, learned variance": {"channels": 12, "out_channels": 24},
}


def cost(solver: str, levels: int) -> int:
    """Evaluations of a run, by the law of each solver's module."""
    return evaluations(METHODS[solver], levels)


RGB = {name: layout for name, layout in LAYOUTS.items() if layout.get("channels", 3) == 3}


def task(height: int = 24, width: int = 31) -> Inpaint:
    return Inpaint(noise(height, width, 3), hole(height, width))


def refusal(folder: Path, **options) -> str:
    """The one line that loading must end with."""
    with pytest.raises(AdhereError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# --- layouts


@pytest.mark.parametrize("solver", FOR_PICTURES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_runs_every_solver_at_its_cost(model_with, layout, solver):
    out = load(model_with(**LAYOUTS[layout]))(task(), solver=solver, num_inference_steps=3, output_type="latent")
    assert out.nfe == cost(solver, 3)
    assert out.images.shape == (1, 3, 24, 32)  # padded to the network's multiple
    assert out.images.isfinite().all()
    assert not out.images.requires_grad  # no graph was built


def test_default_steps_cost_what_the_table_of_methods_says(shared_model):
    out = load(shared_model)(task())
    assert out.nfe == cost(DEFAULT_METHOD, METHODS[DEFAULT_METHOD].steps)
    assert out.seconds > 0
    assert len(out.error) == 1


def test_runs_with_gradients_switched_on_without_building_a_graph(shared_model):
    pipe = load(shared_model)
    with torch.enable_grad():
        out = pipe(task(), num_inference_steps=1, output_type="pt")
    assert not out.images.requires_grad
    assert all(p.grad is None for p in pipe.unet.parameters())


def plain_ddim(pipe: PixelPipeline, steps: int, x_T: torch.Tensor) -> torch.Tensor:
    """Our loop without any constraint, deterministic, through the pipeline's own denoiser."""
    denoiser = pipe.denoiser()
    generator = torch.Generator()
    with torch.inference_mode():
        times = denoiser.schedule.evenly(steps)
        return sample(denoiser, Unconstrained(), Plain(), x_T, times, DDIM(eta=0.0), generator)


@pytest.mark.parametrize("layout", [name for name in RGB if name != "learned variance"])
def test_plain_sampling_is_what_diffusers_samples(model_with, layout):
    folder = model_with(**LAYOUTS[layout])
    edit_json(
        folder / "scheduler" / "scheduler_config.json", beta_end=0.001
    )  # a random network leaves x0 near x_t / alpha
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
    """The same mean, with and without three more output channels."""
    with_variance = tiny_unet(out_channels=6)
    mean = tiny_unet()
    entries = with_variance.state_dict()
    mean.load_state_dict(entries | {f"conv_out.{p}": entries[f"conv_out.{p}"][:3] for p in ("weight", "bias")})
    scheduler = load(model_with()).scheduler
    x_T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, expected = (plain_ddim(PixelPipeline(unet.eval(), scheduler), 4, x_T) for unet in (with_variance, mean))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_unshuffling_sees_the_same_noise_in_other_places(model_with):
    """A 12-channel network whose output is zero leaves x0 = x_t / alpha_t: blocks go back where they came from."""
    folder = model_with(channels=12)
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    denoiser = load(folder).denoiser()
    x_t = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoiser(x_t, 500.0), x_t / denoiser.schedule(500.0)[0])


@pytest.mark.parametrize(("layout", "multiple"), [("epsilon", 2), ("unshuffled", 4)])
def test_multiple(model_with, layout, multiple):
    assert load(model_with(**LAYOUTS[layout])).multiple == multiple


@pytest.mark.parametrize("keyword", ["torch_dtype", "dtype"])
@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_bfloat16_network_keeps_a_float32_state(shared_model, keyword):
    pipe = load(shared_model, **{keyword: torch.bfloat16})
    assert pipe.unet.dtype == torch.bfloat16
    out = pipe(task(), num_inference_steps=2, output_type="pt")
    assert out.images.dtype == torch.float32
    assert out.images.isfinite().all()


def test_weights_saved_in_half_precision_are_computed_in_float32(model_with):
    folder = model_with()
    edit_weights(folder, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    assert load(folder).unet.dtype == torch.float32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_again_it_loads_again_and_samples_the_same(model_with, tmp_path, layout):
    pipe = load(model_with(**LAYOUTS[layout]))
    pipe.save_pretrained(tmp_path / "again")
    ours, expected = (p(task(), num_inference_steps=2, output_type="pt") for p in (load(tmp_path / "again"), pipe))
    assert torch.equal(ours.images, expected.images)


def test_a_model_of_several_scales_is_shown_noise_from_further_away(model_with, tmp_path):
    """As its folder says, in methods that ask for it; plain sampling shows the picture as it is."""
    folder = model_with(**LAYOUTS["unshuffled"])
    edit_json(folder / "model_index.json", octaves=2)
    pipe, alone = load(folder), torch.Generator().manual_seed(0)
    pipe.save_pretrained(tmp_path / "again")
    for same in (pipe, load(tmp_path / "again"), ConstrainedPipeline.from_pipe(pipe)):
        sides = []
        hook = same.unet.register_forward_pre_hook(lambda _, given, sides=sides: sides.append(2 * given[0].shape[-1]))
        out = same(task(40, 40), num_inference_steps=3, generator=alone)
        assert out.nfe == len(sides) == cost(DEFAULT_METHOD, 3)
        assert sides[0] == 12 and sides[-1] == 40 and sides == sorted(sides)  # 40 / 4, up to the network's multiple
        sides.clear()
        same(Generate((40, 40)), num_inference_steps=2)
        assert sides == [40, 40]
        hook.remove()


def test_loading_says_nothing(shared_model, caplog, recwarn):
    load(shared_model)
    assert not caplog.records
    assert not [str(w.message) for w in recwarn]


def test_a_family_can_be_loaded_by_its_own_name(shared_model):
    assert isinstance(PixelPipeline.from_pretrained(shared_model), PixelPipeline)


def test_a_network_of_the_users_own_is_taken(shared_model):
    unet = tiny_unet(seed=5)
    assert load(shared_model, unet=unet).unet is unet


def test_the_base_class_alone_is_no_model():
    with pytest.raises(TypeError, match="from_pretrained"):
        ConstrainedPipeline().denoiser()
    with pytest.raises(TypeError, match="from_pretrained"):
        _ = ConstrainedPipeline().multiple


@pytest.mark.parametrize("entry", [name for name, family in FAMILIES.items() if family.endswith("PixelPipeline")])
def test_the_registry_names_real_classes(model_with, entry):
    folder = model_with()
    edit_json(folder / "model_index.json", _class_name=entry)
    assert isinstance(load(folder), PixelPipeline)


def test_a_schedule_that_ends_in_pure_noise_runs(model_with):
    folder = model_with(prediction="v_prediction")
    edit_json(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    for solver in FOR_PICTURES:
        assert np.isfinite(load(folder)(task(), solver=solver, num_inference_steps=2).error).all()


# --- bad folders


def test_no_such_folder(tmp_path):
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_no_index(tmp_path):
    assert "no model_index.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "null", "{}", "\xff\xfe"])
def test_unreadable_index(tmp_path, text):
    (tmp_path / "model_index.json").write_bytes(text.encode("latin-1"))
    assert "model_index.json cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["KandinskyPipeline", ["mine", "DDIMPipeline"], None, 3])
def test_unknown_class_lists_the_known(model_with, name):
    folder = model_with()
    edit_json(folder / "model_index.json", _class_name=name)
    message = refusal(folder)
    assert "is unknown" in message
    assert "DDIMPipeline, DDPMPipeline" in message


def test_no_network_in_the_index(model_with):
    folder = model_with()
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "names no 'unet'" in refusal(folder)


def test_missing_weights(model_with):
    folder = model_with()
    (folder / WEIGHTS).unlink()
    assert "no weights (*.safetensors)" in refusal(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "unet", "scheduler"])
def test_missing_part(model_with, part):
    folder = model_with()
    path = folder / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert part.split("/")[0] in refusal(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "scheduler/scheduler_config.json"])
def test_broken_configuration(model_with, part):
    folder = model_with()
    (folder / part).write_text("{")
    assert Path(part).name in refusal(folder)


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_unopened(model_with, tmp_path, name):
    folder = model_with()
    (folder / WEIGHTS).unlink()
    (folder / "unet" / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "pickled" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_pickled_weights_beside_a_stray_safetensors_file_are_not_opened(model_with, tmp_path):
    folder = model_with()
    (folder / WEIGHTS).rename(folder / "unet" / "other.safetensors")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    assert "diffusion_pytorch_model.safetensors" in refusal(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_in_the_folder_is_not_run(model_with, tmp_path):
    folder = model_with()
    edit_json(folder / "model_index.json", scheduler=["mine", "Mine"])
    (folder / "scheduler" / "mine.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Mine: pass\n")
    refusal(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5, 0.999])
def test_truncated_weights(model_with, kept):
    folder = model_with()
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "cannot be loaded" in refusal(folder)


def test_weights_of_another_shape_name_the_entry(model_with):
    folder = model_with()
    edit_json(folder / "unet" / "config.json", block_out_channels=[12, 16])
    assert "conv_in" in refusal(folder)


def test_weights_that_lack_an_entry_name_it_and_are_not_left_random(model_with):
    folder = model_with()
    edit_weights(folder, lambda weights: {n: v for n, v in weights.items() if n != "conv_out.weight"})
    assert "conv_out.weight" in refusal(folder)


@pytest.mark.parametrize("channels", [1, 4, 5, 27])
def test_networks_of_other_channels_say_what_is_understood(model_with, channels):
    message = refusal(model_with(channels=channels))
    assert f"takes {channels} channels" in message
    assert "3 (RGB) or 12" in message


@pytest.mark.parametrize("out_channels", [1, 4, 12])
def test_networks_that_return_something_else(model_with, out_channels):
    assert f"returns {out_channels}" in refusal(model_with(out_channels=out_channels))


def test_networks_that_ask_for_a_class(model_with):
    assert "class labels" in refusal(model_with(num_class_embeds=10))


def with_scheduler(folder: Path, scheduler: Any) -> Path:
    scheduler.save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", type(scheduler).__name__])
    return folder


def test_scheduler_whose_noise_levels_cannot_be_read(model_with):
    """diffusers would silently make a DDIMScheduler with default betas of it."""
    message = refusal(with_scheduler(model_with(), ScoreSdeVeScheduler()))
    assert "ScoreSdeVeScheduler" in message
    assert "save the model with a DDIMScheduler" in message


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, UnCLIPScheduler, DDPMScheduler])
def test_other_saved_schedulers_with_a_table_are_read(model_with, scheduler):
    """Also one whose table diffusers' own conversion to a DDIMScheduler loses: UnCLIP's cosine."""
    expected = scheduler().alphas_cumprod.double()
    schedule = load(with_scheduler(model_with(), scheduler())).denoiser().schedule
    for t in (0, 500, 999):
        assert schedule(float(t))[0] ** 2 == pytest.approx(expected[t].item(), abs=1e-6)


def test_a_pixel_network_that_predicts_a_flow(model_with):
    pipe = load(with_scheduler(model_with(), FlowMatchEulerDiscreteScheduler(shift=2.0)))
    assert pipe.denoiser().schedule == RectifiedFlow(1000.0, 2.0, last=2 / 1001)
    assert np.isfinite(pipe(task(), num_inference_steps=2).error).all()


def test_unknown_prediction_type(model_with):
    folder = model_with()
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="score")
    message = refusal(folder)
    assert "'score'" in message
    assert "v_prediction" in message


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_nan_from_the_network_names_the_step(model_with, solver):
    folder = model_with()
    edit_weights(folder, with_nan)
    pipe = load(folder)
    with pytest.raises(AdhereError, match=r"NaN or infinity at step 1 of 3 \(t = \d+\)"):
        pipe(task(), solver=solver, num_inference_steps=3)


@pytest.mark.parametrize("solver", FOR_PICTURES)
def test_nan_at_a_later_step_names_that_step(shared_model, monkeypatch, solver):
    pipe = load(shared_model)
    third = METHODS[solver].levels(pipe.denoiser().schedule, 4)[2]
    forward = pipe.unet.forward

    def diverging(x, t, **options):
        (out,) = forward(x, t, **options)
        return (out if t > third else out * float("inf"),)

    monkeypatch.setattr(pipe.unet, "forward", diverging)
    with pytest.raises(AdhereError, match="at step 3 of 4"):
        pipe(task(), solver=solver, num_inference_steps=4)


def test_nan_at_a_time_between_the_levels_names_the_time(shared_model, monkeypatch):
    """moment_matching asks there what x_t and the last mean tell together."""
    pipe = load(shared_model)
    schedule, method = pipe.denoiser().schedule, METHODS["moment_matching"]
    first, between = method.levels(schedule, 4)[0], schedule.time_at(math.log(0.2) / 2)
    forward = pipe.unet.forward

    def diverging(x, t, **options):
        (out,) = forward(x, t, **options)
        return (out if t == first else out * float("inf"),)

    monkeypatch.setattr(pipe.unet, "forward", diverging)
    with pytest.raises(AdhereError, match=rf"NaN or infinity at t = {between:g}; try float32"):
        pipe(task(), solver="moment_matching", num_inference_steps=8)


# --- the model that ships


@pytest.mark.slow
def test_the_shipped_model_repairs_a_smooth_picture_better_than_noise():
    rows, columns = np.mgrid[0:64, 0:64]
    picture = np.stack([rows * 2 + 60, columns * 2 + 60, np.full_like(rows, 128)], -1).astype(np.uint8)
    repaint = hole(64, 64)
    pipe = load(None)
    repaired = np.asarray(pipe(Inpaint(picture, repaint)).images[0])
    assert np.array_equal(repaired[~repaint], picture[~repaint])
    error = np.abs(repaired.astype(float) - picture)[repaint].mean()
    assert error < np.abs(picture[repaint] - picture[~repaint].mean(0)).mean()  # better than one flat colour
