"""Fixtures of all tests. One thread is faster for tiny tensors, above all on a busy machine."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_model

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def keep_denormal_numbers() -> Iterator[None]:
    """Undo that trainings and benchmarks flush denormal numbers in the whole process: hypothesis needs them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny epsilon model of RGB pictures, which tests must not change."""
    return save_model(tmp_path_factory.mktemp("shared") / "model")


@pytest.fixture
def model_with(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a tiny model, configured by keyword, in a folder of the test."""
    return lambda **options: save_model(tmp_path / "model", **options)
