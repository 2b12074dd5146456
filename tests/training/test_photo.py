"""The crops of the high-noise network of adhere-photo."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.photo.train import RandomCrops


@pytest.fixture
def checkerboard(tmp_path: Path) -> Path:
    """A data folder with one picture of 256x256 pixels, alternately 0 and 254, so that its means are 127."""
    (tmp_path / "pyramid").mkdir()
    pixels = np.indices((256, 256)).sum(0) % 2 * 254
    Image.fromarray(np.repeat(pixels[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "pyramid" / "board_256.png")
    return tmp_path


def is_mean(crop: np.ndarray) -> bool:
    assert (crop == 127).all() or set(np.unique(crop)) == {0, 254}
    return bool((crop == 127).all())


@pytest.mark.parametrize(("max_factor", "p"), [(1, 0), (2, 1 / 2), (4, 2 / 3)])
def test_crops_are_of_the_picture_or_of_its_means(checkerboard: Path, max_factor: int, p: float):
    crops = RandomCrops(checkerboard, seed=0, size=64, max_factor=max_factor)
    found = [crops._crop(64) for _ in range(400)]
    assert {crop.shape for crop in found} == {(64, 64, 3)}
    assert abs(np.mean([is_mean(crop) for crop in found]) - p) <= 4 * (p * (1 - p) / 400) ** 0.5


def test_a_picture_that_is_too_small_for_means_is_taken_as_it_is(checkerboard: Path):
    crops = RandomCrops(checkerboard, seed=0, size=192, max_factor=4)
    assert not any(is_mean(crops._crop(192)) for _ in range(50))


def test_a_batch_is_in_the_range_of_the_model(checkerboard: Path):
    batch = RandomCrops(checkerboard, seed=0, size=32).batch(16, 32)
    assert batch.shape == (16, 3, 32, 32) and batch.min() >= -1 and batch.max() <= 1
    assert batch.std() > 0


def test_missing_pictures_are_named(tmp_path: Path):
    with pytest.raises(SystemExit, match="fetch"):
        RandomCrops(tmp_path, seed=0, size=64)
