"""A working folder, and arguments that succeed."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.command import spelled
from tests.picture_files import hole, image_of
from tests.tiny_latent_models import tiny_sd


@pytest.fixture(autouse=True)
def control_c():
    """A command that has written its files ignores it for good; a job in the background does from the beginning."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a photo and its mask in it."""
    here = tmp_path / "work"
    here.mkdir()
    image_of("RGB").save(here / "photo.png")
    Image.fromarray(hole()).save(here / "mask.png")
    monkeypatch.chdir(here)
    return here


@pytest.fixture(scope="session")
def text_model(tmp_path_factory) -> Path:
    """A tiny Stable Diffusion; read it, do not change it."""
    folder = tmp_path_factory.mktemp("text")
    tiny_sd(folder).save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def good(folder, shared_model):
    """Arguments that succeed; tests change one thing."""
    options = {"mask": "mask.png", "o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda photo="photo.png", *flags, **changes: spelled("inpaint", photo, *flags, **options | changes)


@pytest.fixture
def verb(folder, shared_model):
    """As `good`, for the verb that is given."""
    words = {"inpaint": ["photo.png", "--mask", "mask.png"], "upscale": ["photo.png", "--factor", "2"], "generate": []}
    options = {"o": "out.png", "model": str(shared_model), "steps": "1"}
    return lambda name, *flags, **changes: spelled(name, *words[name], *flags, **options | changes)
