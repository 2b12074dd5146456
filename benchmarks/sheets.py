"""Pictures side by side, and apart again."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def sheet(rows: Sequence[Sequence[np.ndarray] | np.ndarray], scale: int = 1) -> Image.Image:
    """Rows of pictures, uint8 (H, W, 3) each, as one picture `scale` times as large; short rows end in white."""
    width = max(sum(picture.shape[1] for picture in row) for row in rows)
    strips = [np.concatenate(row, axis=1) for row in rows]
    filled = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    image = Image.fromarray(np.concatenate(filled))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def cut(image: Image.Image, side: int, count: int) -> np.ndarray:
    """The first `count` squares of a sheet, row by row: (count, side, side, 3) uint8."""
    pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    squares = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return squares[:count]


def label(text: str, height: int, width: int = 150) -> np.ndarray:
    """Black on white, to begin a row of a sheet with: (height, width, 3) uint8."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((2, height / 2), text, fill="black", anchor="lm")
    return np.asarray(image)
