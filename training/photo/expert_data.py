"""Training crops and validation pictures of the low-noise expert of adhere-photo.

The pictures are those that `training.photo.fetch` writes. All are decoded once, when a `Crops` is made, and stay on the
device of the training, where the crops are cut.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

HELD_OUT = ("Garden", "friends", "picosdeeuropa")  # titles in photographs.csv, for validation
SCALE_WEIGHTS = {256: 1.0, 384: 2.0, 512: 2.0, 768: 1.0, 1024: 0.5}  # by short side; larger copies are mostly smooth
PYRAMID_SHARE = 0.4  # of the crops; the others are from gcompris/, which has more subjects and fewer pixels
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
VALIDATION_SIDE = 256


class Crops:
    """Random crops of the training photographs, augmented.

    Args:
        folder: The data folder, with the subfolders pyramid and gcompris.
        size: Side of a crop in pixels, even.
        device: Where the pictures are kept.

    Raises:
        FileNotFoundError: If either subfolder has no picture of this size.
    """

    def __init__(self, folder: Path, size: int, device: str = "cpu"):
        self.size, self.device = size, device
        self.pictures: list[Tensor] = []
        weights: list[float] = []
        for name, share, weigh in (
            ("pyramid", PYRAMID_SHARE, self._pyramid_weight),
            ("gcompris", 1 - PYRAMID_SHARE, lambda file: 1.0),
        ):
            pictures, group = self._read(sorted((folder / name).glob("*.png")), weigh)
            if not pictures:
                raise FileNotFoundError(
                    f"no training pictures of at least {size} pixels in {folder / name}: "
                    "run `python -m training.photo.fetch` first"
                )
            self.pictures += pictures
            weights += [share * weight / sum(group) for weight in group]
        self.cumulative = np.cumsum(weights)

    @staticmethod
    def _pyramid_weight(file: Path) -> float:
        """Return the weight of <title>_<short side>.png, 0 if it is not for training."""
        title, short_side = file.stem.rsplit("_", 1)
        return 0.0 if title in HELD_OUT else SCALE_WEIGHTS.get(int(short_side), 0.0)

    def _read(self, files: Iterable[Path], weigh: Callable[[Path], float]) -> tuple[list[Tensor], list[float]]:
        """Return the pictures (3, H, W), uint8, that have a weight and are large enough, and their weights."""
        pictures, weights = [], []
        for file in files:
            if (weight := weigh(file)) == 0:
                continue
            with Image.open(file) as image:
                if min(image.size) >= self.size:
                    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
                    pictures.append(pixels.to(self.device))
                    weights.append(weight)
        return pictures, weights

    def _crop(self, rng: np.random.Generator) -> Tensor:
        """Return a crop (3, size, size) in [0, 1], now and then of a picture at half its scale."""
        index = int(np.searchsorted(self.cumulative, rng.random() * self.cumulative[-1], side="right"))
        picture = self.pictures[min(index, len(self.pictures) - 1)]
        height, width = picture.shape[1:]
        factor = 2 if rng.random() < 0.2 and min(height, width) >= 2 * self.size else 1
        side = factor * self.size
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        crop = picture[:, top : top + side, left : left + side].float() / 255
        return avg_pool2d(crop, factor) if factor > 1 else crop

    def _augmented(self, rng: np.random.Generator) -> Tensor:
        """Return a crop (3, size, size) in [0, 1], flipped, transposed, darkened or made gray at random."""
        crop = self._crop(rng)
        if rng.random() < 0.5:  # skies and blurred backgrounds teach little: prefer the busier of two
            other = self._crop(rng)
            crop = torch.where(other[1].std() > crop[1].std(), other, crop)
        if rng.random() < 0.5:
            crop = crop.flip(2)
        if rng.random() < 0.5:
            crop = crop.flip(1)
        if rng.random() < 0.5:
            crop = crop.transpose(1, 2)
        if rng.random() < 0.3:
            crop = crop * 0.25 ** rng.random()  # exposures down to a quarter, log-uniform
        if rng.random() < 0.08:
            crop = torch.tensordot(crop.new_tensor(LUMA), crop, 1).expand(3, -1, -1)
        return crop

    def batch(self, count: int, rng: np.random.Generator) -> Tensor:
        """Draw crops, without waiting for the device.

        Args:
            count: Number of crops, B.
            rng: The source of all random choices.

        Returns:
            The crops, (B, 3, size, size), in [0, 1].
        """
        return torch.stack([self._augmented(rng) for _ in range(count)])


def validation_pictures(folder: Path) -> Tensor:
    """Return the validation pictures, which are neither trained on nor in a benchmark.

    They are 256x256 pixels of scikit-image's `motorcycle_left` and of the middle of each held-out photograph.

    Args:
        folder: The data folder, with the subfolder pyramid.

    Returns:
        The pictures, (4, 3, 256, 256), in [0, 1].
    """
    from skimage import data_dir  # only the validation needs scikit-image

    with Image.open(Path(data_dir) / "motorcycle_left.png") as image:
        pictures = [np.asarray(image.convert("RGB"))[120:376, 200:456]]
    for title in HELD_OUT:
        with Image.open(folder / "pyramid" / f"{title}_512.png") as image:
            left, top = ((side - VALIDATION_SIDE) // 2 for side in image.size)
            box = (left, top, left + VALIDATION_SIDE, top + VALIDATION_SIDE)
            pictures.append(np.asarray(image.convert("RGB").crop(box)))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@torch.inference_mode()
def denoising_psnr(
    denoiser: Callable[[Tensor, Tensor], Tensor], pictures: Tensor, levels: Iterable[int]
) -> dict[int, float]:
    """Measure a denoiser.

    Args:
        denoiser: A function of noisy pictures (B, 3, H, W) in units of [0, 1] and sigma (B,).
        pictures: Clean pictures, (N, 3, H, W), in [0, 1].
        levels: Standard deviations of the noise, of 255.

    Returns:
        For each level the mean PSNR of the pictures in dB. The noisy pictures are not clipped, the results are.
    """
    result = {}
    for level in levels:
        eps = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(level))
        sigma = torch.tensor([level / 255], device=pictures.device)
        psnr = []
        for picture, noise in zip(pictures, eps.to(pictures.device), strict=True):
            denoised = denoiser((picture + sigma * noise)[None], sigma)[0].clamp(0, 1)
            psnr.append(-10 * (denoised - picture).square().mean().log10())
        result[level] = round(float(torch.stack(psnr).mean()), 3)
    return result
