"""A working folder with a photo and a mask, and arguments of commands that succeed."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.apps.command import arguments_for
from tests.picture_files import hole, image_of
from tests.tiny_latent_models import tiny_sd
from tests.tiny_models import save_model


@pytest.fixture(autouse=True)
def default_sigint_handler():
    """Make Ctrl-C work in every test, also in a background job, which ignores it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working folder, with photo.png and mask.png in it."""
    work = tmp_path / "work"
    work.mkdir()
    image_of("RGB").save(work / "photo.png")
    Image.fromarray(hole()).save(work / "mask.png")
    monkeypatch.chdir(work)
    return work


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory) -> Path:
    """Return the folder of a tiny model of RGB pictures, which tests must not change; no note is printed for it."""
    return save_model(tmp_path_factory.mktemp("shared") / "model", prediction_type="v_prediction")


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """Return the folder of a tiny Stable Diffusion model, which tests must not change."""
    folder = tmp_path_factory.mktemp("text")
    tiny_sd(folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def inpaint_args(folder, shared_model):
    """Return a function that returns the arguments of an inpaint command; each test changes one of them."""
    options = {"mask": "mask.png", "o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda photo="photo.png", *flags, **changes: arguments_for("inpaint", photo, *flags, **options | changes)


@pytest.fixture
def verb_args(folder, shared_model):
    """Return a function that returns the arguments of a command with any verb."""
    hints = folder.parent / "hints.png"
    image_of("RGBA").save(hints)
    words = {
        "inpaint": ["photo.png", "--mask", "mask.png"],
        "outpaint": ["photo.png", "--left", "4"],
        "upscale": ["photo.png", "--factor", "2"],
        "denoise": ["photo.png", "--sigma", "0.1"],
        "deblur": ["photo.png", "--psf", "disk:1"],
        "colorize": ["photo.png", "--hints", str(hints)],
        "generate": [],
        **{verb: ["--reference", "mask.png"] for verb in ("style", "layout", "silhouette")},
    }
    options = {"o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda verb, *flags, **changes: arguments_for(verb, *words[verb], *flags, **options | changes)
