"""Tiny tensors gain nothing from threads, and lose much on a busy machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_model

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Trainings and benchmarks flush denormal numbers for speed, for the whole process; hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny epsilon model of RGB pictures; read it, do not change it."""
    return save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def model_with(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny model, configured by keyword, in a folder of the test's own."""
    return lambda **options: save_model(tmp_path / "model", **options)
