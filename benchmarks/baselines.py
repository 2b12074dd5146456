"""What benchmarks.tasks and benchmarks.guarantees compare with, where no library has it as one call."""

import subprocess
import tempfile
from pathlib import Path

import cv2
import numpy as np
import scipy.sparse
from PIL import Image
from scipy.sparse.linalg import splu

BASELINES_PYTHON = Path(".venv-baselines/bin/python")
REAL_ESRGAN = Path(__file__).with_name("real_esrgan.py")


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return a picture in about [0, 1] as uint8."""
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def navier_stokes(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaint a picture (H, W, 3), uint8, with OpenCV; the mask is (H, W), True = inpaint."""
    return cv2.inpaint(image, mask.astype(np.uint8) * 255, 3, cv2.INPAINT_NS)


def real_esrgan(image: Image.Image, factor: int, python: Path) -> np.ndarray:
    """Return a picture enlarged by a process, for a factor of 2 with the means over 2x2 pixels of four times the size.

    Args:
        image: the small picture.
        factor: 2 or 4.
        python: the Python of `make baselines`.
    """
    with tempfile.TemporaryDirectory() as folder:
        small, large = (str(Path(folder) / name) for name in ("small.png", "large.png"))
        image.save(small)
        subprocess.run([python, REAL_ESRGAN, small, large], check=True)
        return np.asarray(Image.open(large).reduce(4 // factor))


def levin(gray: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """Return a gray picture (H, W) with the chroma of hints (H, W, 4), spread where neighbors have similar luma."""
    height, width = gray.shape
    y, known = gray / 255, hints[..., 3] > 0
    index = np.arange(height * width).reshape(height, width)
    padded_y, padded_index = np.pad(y, 1, constant_values=np.nan), np.pad(index, 1, constant_values=-1)
    offsets = [(down, right) for down in range(3) for right in range(3) if (down, right) != (1, 1)]
    neighbors = np.stack([padded_y[d : d + height, r : r + width] for d, r in offsets])  # (8, H, W)
    columns = np.stack([padded_index[d : d + height, r : r + width] for d, r in offsets])
    squares = np.square(neighbors - y)
    variance = np.nanvar(np.concatenate([neighbors, y[None]]), 0)
    variance = np.maximum(np.maximum(0.6 * variance, np.nanmin(squares, 0) / -np.log(0.01)), 2e-6)
    weights = np.nan_to_num(np.exp(-squares / variance))
    weights /= weights.sum(0)
    used = (columns >= 0) & ~known
    rows = np.broadcast_to(index, columns.shape)[used]
    matrix = scipy.sparse.csc_matrix((-weights[used], (rows, columns[used])), (y.size, y.size))
    factors = splu((matrix + scipy.sparse.identity(y.size)).tocsc())
    chroma = hints[..., :3] / 255 - (hints[..., :3] / 255 @ [0.299, 0.587, 0.114])[..., None]
    spread = [factors.solve(np.where(known, chroma[..., c], 0).ravel()).reshape(y.shape) for c in range(3)]
    return to_uint8(y[..., None] + np.stack(spread, 2))
