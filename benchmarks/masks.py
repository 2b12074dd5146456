"""The masks of the inpainting benchmark, for pictures of 256x256 pixels: True (white) = inpaint.

    python -m benchmarks.masks        # writes benchmarks/masks/{text,strokes,hole,large_hole}.png

text: lines of letters whose strokes are 2 to 5 pixels wide. strokes: smooth random curves 8 pixels wide that cover
30 %. hole, large_hole: one square of 48 or 64 pixels in the middle. The masks are reproducible, because they use a
fixed seed, Python's random numbers and Pillow's own font. The tables in the docs were measured with the
committed files.
"""

import math
import random
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

SIZE_PIXELS = 256
FOLDER = Path(__file__).with_name("masks")

Mask = Bool[np.ndarray, "H W"]

LINES = (
    "All rights reserved.",
    "Proof of a picture,",
    "not for any printing.",
    "Quick brown foxes",
    "jump over lazy dogs",
    "and 42 black wolves,",
    "leaving letters laid",
    "over all of the rest.",
)


def text() -> Mask:
    """Return lines of letters from edge to edge."""
    scale = 4  # drawn larger and reduced afterwards, which preserves the gaps in the letters
    image = Image.new("L", (scale * SIZE_PIXELS, scale * SIZE_PIXELS))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=26 * scale)
    pitch = scale * SIZE_PIXELS / len(LINES)
    for i, line in enumerate(LINES):
        position = (scale * SIZE_PIXELS / 2, (i + 0.5) * pitch)
        draw.text(position, line, fill=255, font=font, anchor="mm", stroke_width=1)
    return _to_bool(image.reduce(scale))


def strokes(fraction: float = 0.3, width: float = 8.0, seed: int = 10) -> Mask:
    """Return smooth curves of a round brush, drawn one after another until they cover a fraction of the picture.

    Args:
        fraction: The fraction to cover.
        width: The width of the brush in pixels.
        seed: The seed of the random curves.
    """
    rng = random.Random(seed)
    y, x = np.mgrid[:SIZE_PIXELS, :SIZE_PIXELS] + 0.5  # pixel centers
    mask = np.zeros((SIZE_PIXELS, SIZE_PIXELS), dtype=bool)
    while True:
        at_x, at_y = rng.uniform(0, SIZE_PIXELS), rng.uniform(0, SIZE_PIXELS)
        heading, curvature = rng.uniform(0, 2 * math.pi), 0.0
        for _ in range(rng.randint(60, 180)):
            mask |= (x - at_x) ** 2 + (y - at_y) ** 2 <= (width / 2) ** 2
            if mask.mean() >= fraction:
                return mask
            curvature = 0.9 * curvature + rng.uniform(-0.02, 0.02)  # per pixel; it varies slowly
            heading += curvature
            at_x, at_y = at_x + math.cos(heading), at_y + math.sin(heading)


def hole(side: int = 48) -> Mask:
    """Return one square of `side` pixels in the middle."""
    mask = np.zeros((SIZE_PIXELS, SIZE_PIXELS), dtype=bool)
    start = (SIZE_PIXELS - side) // 2
    mask[start : start + side, start : start + side] = True
    return mask


MASKS = {"text": text, "strokes": strokes, "hole": hole, "large_hole": partial(hole, 64)}


def load(name: str) -> Mask:
    """Return a committed mask, bool (256, 256), True = inpaint.

    Raises:
        ValueError: The name is not in MASKS.
    """
    if name not in MASKS:
        raise ValueError(f"no mask is called '{name}': choose one of {list(MASKS)}")
    return _to_bool(Image.open(FOLDER / f"{name}.png"))


def _to_bool(image: Image.Image) -> Mask:
    """Compare instead of casting: np.array of a 1-bit image has bytes of 255 with dtype bool, which mislead C code."""
    return np.array(image.convert("L")) > 127


def write(folder: Path = FOLDER) -> None:
    """Draw all masks and write them as 1-bit PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in MASKS.items():
        mask = draw()
        Image.fromarray(mask).save(folder / f"{name}.png", optimize=True)
        print(f"{name}: {mask.mean():.1%} masked")


if __name__ == "__main__":
    write()
