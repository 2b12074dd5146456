"""The masks of the inpainting benchmark, for pictures of 256 x 256: True (white) is to be repainted.

    python -m benchmarks.masks        # writes benchmarks/masks/{text,strokes,hole}.png

text: lines of overlaid lettering, its strokes 2 to 5 pixels wide; strokes: smooth random curves 8 pixels wide that
cover 30 %; hole: one centred square of 48 pixels. They come from fixed seeds, Python's own random numbers and Pillow's
own font, so everyone gets the same; the committed files are what the tables in the docs were measured with.
"""

import math
import random
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

SIZE = 256
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
    """Lines of lettering from edge to edge."""
    fine = 4  # drawn four times as large, then shrunk: keeps the gaps in the letters
    picture = Image.new("L", (fine * SIZE, fine * SIZE))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=26 * fine)
    pitch = fine * SIZE / len(LINES)
    for i, line in enumerate(LINES):
        draw.text((fine * SIZE / 2, (i + 0.5) * pitch), line, fill=255, font=font, anchor="mm", stroke_width=1)
    return _boolean(picture.reduce(fine))


def strokes(fraction: float = 0.3, width: float = 8.0, seed: int = 10) -> Mask:
    """Smooth curves of a round brush, drawn one after the other until they cover `fraction` of the picture."""
    rng = random.Random(seed)
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5  # pixel centres
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    while True:
        at_x, at_y = rng.uniform(0, SIZE), rng.uniform(0, SIZE)
        heading, bend = rng.uniform(0, 2 * math.pi), 0.0
        for _ in range(rng.randint(60, 180)):
            mask |= (x - at_x) ** 2 + (y - at_y) ** 2 <= (width / 2) ** 2
            if mask.mean() >= fraction:
                return mask
            bend = 0.9 * bend + rng.uniform(-0.02, 0.02)  # curvature per pixel, slowly varying
            heading += bend
            at_x, at_y = at_x + math.cos(heading), at_y + math.sin(heading)


def hole(side: int = 48) -> Mask:
    """One square in the middle."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    start = (SIZE - side) // 2
    mask[start : start + side, start : start + side] = True
    return mask


MASKS = {"text": text, "strokes": strokes, "hole": hole}


def load(name: str) -> Mask:
    """Read a committed mask, by its name in MASKS."""
    if name not in MASKS:
        raise ValueError(f"no mask is called '{name}': choose one of {list(MASKS)}")
    return _boolean(Image.open(FOLDER / f"{name}.png"))


def _boolean(picture: Image.Image) -> Mask:
    """Compare, since np.array of a 1-bit picture holds bytes of 255 called bool, which crash or mislead C code."""
    return np.array(picture.convert("L")) > 127


def write(folder: Path = FOLDER) -> None:
    """Draw all masks and write them as 1-bit PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in MASKS.items():
        mask = draw()
        Image.fromarray(mask).save(folder / f"{name}.png", optimize=True)
        print(f"{name}: {mask.mean():.1%} to repaint")


if __name__ == "__main__":
    write()
