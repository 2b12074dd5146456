"""The public interface: each line of 'Objects, not strings' in the architecture, names, types, and newcomers' mistakes.

A tiny random Stable Diffusion in a local hub cache stands for the model on the hub.
"""

import importlib.resources
import json
import os
import pydoc
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image

import adhere
from adhere.core.presets import PRESETS
from adhere.core.schedules import log_snr_spacing
from adhere.pipelines import loading
from adhere.pipelines.sd import SDPipeline
from tests.picture_files import hole, noise
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import edit_weights, load, save_model, tiny_unet

HUB_NAME = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture(scope="module")
def hub_cache(tmp_path_factory) -> Path:
    """Return a hub cache that holds a tiny model under the name of Stable Diffusion 1.5."""
    cache = tmp_path_factory.mktemp("hub")
    entry = cache / f"models--{HUB_NAME.replace('/', '--')}"
    tiny_sd(tmp_path_factory.mktemp("tokenizer")).save_pretrained(entry / "snapshots" / ("0" * 40))
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("0" * 40)
    return cache


@pytest.fixture
def hub(hub_cache, monkeypatch):
    """Use the cache with the tiny model, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_cache))
    monkeypatch.setattr(loading, "hub_is_reachable", lambda: False)


@pytest.fixture(scope="module")
def latent_pipe(hub_cache):
    (snapshot,) = (hub_cache / f"models--{HUB_NAME.replace('/', '--')}" / "snapshots").iterdir()
    return load(snapshot)


@pytest.fixture(scope="module")
def pixel_pipe(tmp_path_factory):
    """A model whose network predicts v = 0, so that x0 = alpha x_t stays in the range of pictures."""
    folder = save_model(tmp_path_factory.mktemp("pixel") / "model", prediction_type="v_prediction")
    edit_weights(folder, lambda w: w | {n: torch.zeros_like(w[n]) for n in ("conv_out.weight", "conv_out.bias")})
    return load(folder)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- models, tasks and results


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_a_hub_model_repairs_a_picture_file_in_four_ways(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture, mask = noise(43, 61, 3), hole(43, 61)
    Image.fromarray(picture).save("photo.png")
    Image.fromarray(mask).save("mask.png")
    pipe = adhere.load(HUB_NAME, torch_dtype=torch.float16).to("cpu")
    assert type(pipe) is SDPipeline
    assert pipe.dtype == torch.float16
    out = pipe(
        adhere.Inpaint("photo.png", "mask.png"),
        prompt="a brick wall",
        num_images_per_prompt=4,
        num_inference_steps=2,
        generator=seeded(),
    )
    assert isinstance(out, adhere.ConstrainedOutput)
    out.images[0].save("repaired.png")
    for image in [Image.open("repaired.png"), *out.images[1:]]:
        assert np.array_equal(np.asarray(image)[~mask], picture[~mask])
    assert len(out.images) == len(out.residual) == 4
    assert out.nfe == PRESETS["moment_matching"].evaluations(pipe.schedule(), 2)
    assert out.seconds > 0
    assert not np.array_equal(np.asarray(out.images[0]), np.asarray(out.images[1]))


def test_from_pipe_gives_the_pictures_of_load(hub, latent_pipe, tmp_path):
    pipe = adhere.from_pipe(tiny_sd(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    ours, expected = (
        one(adhere.Generate((32, 32)), "a", num_inference_steps=2, generator=seeded(), output_type="pt").images
        for one in (pipe, latent_pipe)
    )
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


# --- solvers


def test_a_solver_is_a_name_an_object_or_a_sampler(latent_pipe):
    task = adhere.Inpaint(noise(32, 48, 3), hole(32, 48))
    posterior = PRESETS["moment_matching_posterior"]
    results = {}
    for name, solver in {
        "name": "moment_matching_posterior",
        "sampler": posterior,
        "object": posterior.solver,
        "other object": adhere.MomentMatching(fusion_snr=0.1),
        "other sampler": adhere.Sampler(
            adhere.MomentMatching(fusion_snr=0.1), adhere.DDIM(eta=0.5), log_snr_spacing, num_steps=2
        ),
    }.items():
        results[name] = latent_pipe(
            task, "a", solver=solver, num_inference_steps=None if name == "other sampler" else 2, generator=seeded()
        )
    assert {name: out.solver for name, out in results.items()} == {
        "name": "moment_matching_posterior",
        "sampler": "moment_matching_posterior",
        "object": "MomentMatching",
        "other object": "MomentMatching",
        "other sampler": "MomentMatching",
    }
    pixels = {name: np.asarray(out.images[0]) for name, out in results.items()}
    assert np.array_equal(pixels["name"], pixels["sampler"])
    assert np.array_equal(pixels["name"], pixels["object"])
    assert results["other sampler"].num_steps == 2
    assert not np.array_equal(pixels["name"], pixels["other sampler"])


def test_a_solver_object_gets_the_settings_of_its_preset(pixel_pipe):
    task = adhere.Inpaint(noise(16, 16, 3), hole(16, 16))
    sampler = replace(PRESETS["moment_matching"], solver=adhere.MomentMatching(fusion_snr=0.1))
    ours, expected = (
        pixel_pipe(task, solver=solver, generator=seeded(), output_type="pt")
        for solver in (adhere.MomentMatching(fusion_snr=0.1), sampler)
    )
    assert torch.equal(ours.images, expected.images)
    assert ours.num_steps == sampler.num_steps


# --- tasks made of constraints and operators


def test_tasks_with_their_own_prompts_share_a_batch_and_equal_single_runs(latent_pipe):
    mask = np.zeros((40, 48), bool)
    mask[:, 20:30] = True
    tasks = [adhere.Inpaint(noise(40, 48, 3), hole(40, 48)), adhere.Inpaint(noise(40, 48, 3, seed=1), mask)]
    options = {"num_inference_steps": 2, "solver": "ddnm"}
    batch = latent_pipe(tasks, ["a b", "c"], generator=[seeded(1), seeded(2)], **options)
    singles = [
        latent_pipe(task, prompt, generator=seeded(seed), **options)
        for task, prompt, seed in zip(tasks, ["a b", "c"], (1, 2), strict=True)
    ]
    assert batch.nfe == singles[0].nfe
    assert batch.residual == pytest.approx([one.residual[0] for one in singles], rel=1e-3)
    for image, one in zip(batch.images, singles, strict=True):
        assert np.abs(np.asarray(image).astype(int) - np.asarray(one.images[0])).max() <= 1


@pytest.mark.parametrize("which", ["pixel", "latent"])
def test_any_linear_function_is_an_operator_to_restore_from(which, pixel_pipe, latent_pipe):
    """A picture of 21x30 pixels has no side that is a multiple of 8, or of 4."""
    pipe = pixel_pipe if which == "pixel" else latent_pipe

    def fn(x):
        return x.flip(3)[:, :, ::3] + 0.5 * x[:, [1, 2, 0], ::3]

    A = adhere.operator(fn, (3, 21, 30))
    y = A(torch.rand(1, 3, 21, 30, generator=seeded()) * 2 - 1)
    task = adhere.Restore(y, A, noise=0.02)
    out = pipe(task, num_inference_steps=2, generator=seeded(), output_type="pt")
    assert out.images.shape == (1, 3, 21, 30)
    assert np.isfinite(out.residual).all()
    if which == "pixel":
        assert (A(out.images * 2 - 1) - y).square().mean() < 0.1 * y.square().mean()
        exact = pipe(adhere.Restore(y, A), solver="ddnm", num_inference_steps=4, generator=seeded())
        assert exact.residual[0] < 1e-3


@pytest.mark.parametrize("which", ["pixel", "latent"])
def test_a_custom_loss_lowers_its_value(which, pixel_pipe, latent_pipe):
    pipe = pixel_pipe if which == "pixel" else latent_pipe

    def fn(x):
        return (x - 0.5).square().mean((1, 2, 3))

    options = {"num_inference_steps": 4, "output_type": "pt"}
    task = adhere.Custom(adhere.Loss(fn), size=(24, 32))
    constrained = pipe(task, decoder_backward=True, generator=seeded(), **options)
    plain = pipe(adhere.Generate((24, 32)), generator=seeded(), **options)
    assert constrained.images.shape == (1, 3, 24, 32)
    assert fn(constrained.images * 2 - 1) < fn(plain.images * 2 - 1)
    assert len(constrained.residual) == 1


# --- any network


class WatchedNetwork(torch.nn.Module):
    """A plain module that notes how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = tiny_unet()
        self.times: list[torch.Tensor] = []
        self.with_gradients: list[bool] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.times.append(t)
        self.with_gradients.append(torch.is_grad_enabled())
        return self.unet(x, t).sample


def known_half(batch_size: int = 4, side: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (known, y) of a random picture, for a batch."""
    known = (torch.arange(side) < side // 2).float().expand(1, 1, side, side)
    return known, known * (torch.rand(batch_size, 3, side, side, generator=seeded(9)) * 2 - 1)


def test_any_network_is_sampled_under_a_constraint():
    net, (known, y) = WatchedNetwork(), known_half()
    ac = torch.linspace(0.9999, 0.005, 1000)
    D = adhere.NetworkDenoiser.from_alphas_cumprod(net, ac, prediction_type="epsilon")
    constraint = adhere.Linear(adhere.Mask(known), y)
    x0 = adhere.sample(D, constraint, shape=(4, 3, 16, 16), generator=seeded())
    assert x0.shape == (4, 3, 16, 16)
    assert x0.dtype == torch.float32
    assert x0.isfinite().all()
    assert not x0.requires_grad
    assert len(net.times) == PRESETS["moment_matching_posterior"].evaluations(D.schedule)
    assert all(t.dtype == torch.long and t.shape == (4,) and (t == t[0]).all() for t in net.times)
    assert all(0 <= int(t[0]) <= 999 for t in net.times)
    assert not any(net.with_gradients)
    assert torch.equal(x0, adhere.sample(D, constraint, (4, 3, 16, 16), generator=seeded()))
    exact = adhere.sample(D, constraint, (4, 3, 16, 16), solver="ddnm", num_inference_steps=3, generator=seeded())
    torch.testing.assert_close(known * exact, y, atol=1e-5, rtol=0)


def test_a_network_gives_the_samples_of_its_pipeline(pixel_pipe):
    known, y = known_half(1)
    constraint = adhere.Linear(adhere.Mask(known), y, noise=0.1)
    D = adhere.NetworkDenoiser(lambda x, t: pixel_pipe.unet(x, t).sample, pixel_pipe.schedule(), "v_prediction")
    for solver in ("moment_matching", "ddnm", adhere.InexactNewton(num_iterations=1)):
        options = {"solver": solver, "num_inference_steps": 3}
        task = adhere.Custom(constraint, (16, 16))
        expected = pixel_pipe(task, generator=seeded(), output_type="latent", **options).images
        x0 = adhere.sample(D, constraint, (1, 3, 16, 16), generator=seeded(), **options)
        torch.testing.assert_close(x0, expected, atol=1e-5, rtol=1e-5)


def test_sample_draws_its_seed_from_the_global_generator_if_none_is_given():
    known, y = known_half(1)
    D = adhere.NetworkDenoiser.from_alphas_cumprod(lambda x, t: 0 * x, torch.linspace(0.9999, 0.005, 1000))
    constraint = adhere.Linear(adhere.Mask(known), y)
    torch.manual_seed(3)
    first, second = (adhere.sample(D, constraint, (1, 3, 16, 16), num_inference_steps=2) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(adhere.sample(D, constraint, (1, 3, 16, 16), num_inference_steps=2), first)
    assert not torch.equal(first, second)
    state = torch.get_rng_state()
    adhere.sample(D, constraint, (1, 3, 16, 16), num_inference_steps=2, generator=seeded())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_run_leaves_no_graph_even_if_the_network_needs_gradients(pixel_pipe):
    task = adhere.Custom(adhere.Loss(lambda x: x.square().mean((1, 2, 3))), (16, 16))
    with torch.enable_grad():
        out = pixel_pipe(task, num_inference_steps=2, output_type="latent", solver="inexact_newton")
    assert all(p.requires_grad for p in pixel_pipe.unet.parameters())
    assert not out.images.requires_grad
    assert out.images.grad_fn is None
    assert all(p.grad is None for p in pixel_pipe.unet.parameters())


# --- names and types


def test_the_names_of_the_package_are_listed_and_exist():
    assert dir(adhere) == sorted(adhere.__all__)
    assert {"Inpaint", "load", "PRESETS", "Linear", "NetworkDenoiser", "sample", "Sampler"} <= set(dir(adhere))
    assert all(getattr(adhere, name) is not None for name in adhere.__all__)
    with pytest.raises(AttributeError, match="module 'adhere' has no attribute 'inpaint'"):
        _ = adhere.inpaint  # pyright: ignore[reportAttributeAccessIssue]


def test_help_lists_the_classes_and_functions():
    text = pydoc.render_doc(adhere, renderer=pydoc.plaintext)
    for name in set(adhere.__all__) - {"__version__", "PRESETS", "load", "from_pipe", "sample", "operator"}:
        assert f"class {name}(" in text
    for name in ("load", "from_pipe", "sample", "operator"):
        assert f"    {name}(" in text
    for word in ("Models:", "Tasks:", "Constraints:", "Operators:", "Solvers:", "Any network:"):
        assert word in text


def test_the_list_in_the_docstring_has_every_name():
    assert adhere.__doc__ is not None
    listed = set(adhere.__doc__.replace(",", " ").split())
    assert set(adhere.__all__) - {"__version__", "AdhereError"} <= listed


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("adhere").joinpath("py.typed").is_file()


def test_type_checkers_know_what_a_call_returns():
    command = [sys.executable, "-m", "pyright", "--outputjson", "tests/typed_calls.py"]
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    assert [diagnostic["message"] for diagnostic in report["generalDiagnostics"]] == []


# --- newcomers' mistakes


@pytest.fixture(scope="module")
def outcomes(shared_model, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """Return the outcome of each call in `tests/newcomer_calls.py`."""
    model = tmp_path_factory.mktemp("newcomer") / "model"
    shutil.copytree(shared_model, model)
    command = [sys.executable, "-m", "tests.newcomer_calls", str(model)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: tuple(outcome) for name, outcome in json.loads(done.stdout).items()}


MAKE_A_TASK = "give a task, such as adhere.Inpaint(image, mask)"
WRITE_INPAINT = "write pipe(adhere.Inpaint(image, mask))"
PREDICTION_TYPES = "it must be one of 'epsilon', 'sample', 'v_prediction', 'flow_prediction'"
LOAD_IMAGE = "https://example.org/photo.jpg: is a URL, not a file; download it first (in Python, diffusers.utils"
EXPECTED = {  # call: (exception or 'works', a part of the message or of the result)
    "pipe(path, path)": ("TypeError", MAKE_A_TASK),
    "pipe(image, mask)": ("TypeError", MAKE_A_TASK),
    "pipe(array, mask)": ("TypeError", MAKE_A_TASK),
    "pipe([])": ("ValueError", "the list of tasks is empty: give at least one"),
    "pipe(constraint)": ("TypeError", "write pipe(adhere.Custom(constraint, size=(height, width)))"),
    "pipe(class)": ("TypeError", "the task is the class Generate: give an object, such as adhere.Generate()"),
    "sample(network)": ("TypeError", "give a denoiser, such as a NetworkDenoiser, and a constraint"),
    "schedule=scheduler": ("TypeError", "use NetworkDenoiser.from_alphas_cumprod(network, alphas_cumprod)"),
    "pipe()": ("TypeError", "missing 1 required positional argument: 'task'"),
    "pipe(task, mask)": ("TypeError", "prompt has the type ndarray: give a text, or a list of texts"),
    "pipe(image=)": ("TypeError", WRITE_INPAINT),
    "pipe(mask_image=)": ("TypeError", WRITE_INPAINT),
    "pipe(mask=)": ("TypeError", WRITE_INPAINT),
    "pipe(strength=)": ("TypeError", "there is no strength: the task's constraint decides what changes"),
    "pipe(seed=)": ("TypeError", "write generator=torch.Generator().manual_seed(seed)"),
    "pipe(batch_size=)": ("TypeError", "write num_images_per_prompt="),
    "pipe(steps=)": ("TypeError", "write num_inference_steps="),
    "pipe(size=)": ("TypeError", "write height= and width="),
    "pipe(num_inference_step=)": ("TypeError", "did you mean num_inference_steps=?"),
    "generator=3": ("TypeError", "write generator=torch.Generator().manual_seed(3)"),
    "generator=[3]": ("TypeError", "give a torch.Generator, or a list with one per sample"),
    "num_inference_steps=2.0": ("TypeError", "num_inference_steps = 2.0: give an integer, such as 20"),
    "num_images_per_prompt=2.0": ("ValueError", "num_images_per_prompt = 2.0: give an integer of at least 1"),
    "solver=class": ("TypeError", "solver = DDNM is a class: give an object, DDNM(...)"),
    "solver=Sampler class": ("TypeError", "solver = Sampler is a class: give an object, Sampler(...)"),
    "latents=array": ("TypeError", "latents have the type ndarray: give a torch tensor"),
    "guidance_scale=0": ("AdhereError", "it must be above 0; 1 is off"),
    "Upscale factor": ("AdhereError", "factor = '2': give a number from 1.5 to 8; 2 and 4 are usual"),
    "Upscale scale=": ("TypeError", "Upscale() has no argument 'scale': call it factor"),
    "Generate(int)": ("works", "(512, 512)"),
    "Generate(str)": ("AdhereError", "size = '512': give (height, width) in pixels, such as (512, 512)"),
    "Generate(float)": ("AdhereError", "give (height, width) in pixels, such as (512, 512)"),
    "Generate(512, 512)": ("TypeError", "takes from 1 to 2 positional arguments"),
    "Generate(height=)": ("TypeError", "write Generate((height, width))"),
    "Generate(prompt=)": ("TypeError", "give it to the pipeline: pipe(task, prompt=...)"),
    "Generate run": ("works", "(16, 16)"),
    "Inpaint mask_image=": ("TypeError", "call it mask"),
    "Inpaint prompt=": ("TypeError", "give it to the pipeline: pipe(task, prompt=...)"),
    "Inpaint strength=": ("TypeError", "there is no strength: the mask decides what changes"),
    "Custom(function)": ("AdhereError", "constraint is a function: give a Constraint, such as adhere.Loss(fn)"),
    "Custom size": ("works", "(64, 64)"),
    "Restore(y, function)": ("AdhereError", "give a LinearOperator, such as adhere.operator(fn, (3, H, W))"),
    "Restore image=": ("TypeError", "call it y, the measurement"),
    "NetworkDenoiser(prediction=)": ("TypeError", "call it prediction_type"),
    "NetworkDenoiser(prediction_type='eps')": ("ValueError", PREDICTION_TYPES),
    "from_alphas_cumprod(prediction=)": ("TypeError", "call it prediction_type"),
    "from_alphas_cumprod(prediction_type='eps')": ("ValueError", PREDICTION_TYPES),
    "sample(generator=3)": ("TypeError", "write generator=torch.Generator().manual_seed(3)"),
    "sample(solver=class)": ("TypeError", "solver = DDNM is a class: give an object, DDNM(...)"),
    "load(torch_dtype='float16')": ("works", "torch.float16"),
    "load(dtype='bfloat16')": ("works", "torch.bfloat16"),
    "load(torch_dtype='float17')": ("AdhereError", "write torch.float32, torch.float16 or torch.bfloat16"),
    "load(pipeline)": ("AdhereError", "use adhere.from_pipe(pipeline)"),
    "load('~/model')": ("works", "PixelPipeline"),
    "from_pipe(path)": ("AdhereError", "give a diffusers pipeline, or use adhere.load"),
    "picture=URL": ("AdhereError", LOAD_IMAGE),
    "mask=URL": ("AdhereError", LOAD_IMAGE),
    "Upscale(URL)": ("AdhereError", LOAD_IMAGE),
    "picture=~/x.png": ("works", "(16, 16)"),
    "picture=Path(~/x.png)": ("works", "(16, 16)"),
    "attribute of adhere": ("AttributeError", "module 'adhere' has no attribute 'inpaint'"),
}


@pytest.mark.parametrize("call", EXPECTED)
def test_what_newcomers_write_works_or_is_answered_by_one_line_that_says_what_to_write(outcomes, call):
    kind, text = outcomes[call]
    expected_kind, part = EXPECTED[call]
    assert kind in (expected_kind, "InvalidInput"), text  # which is an AdhereError, a TypeError and a ValueError
    assert part in text
    assert "\n" not in text


def test_every_newcomers_call_has_an_expected_outcome(outcomes):
    assert outcomes.keys() == EXPECTED.keys()
