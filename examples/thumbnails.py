"""Make the small before/after pictures of the README.

    python -m examples.thumbnails [--to docs/images/thumbnails]

Left is what is given, right is the result. Photographs are repaired with adhere-photo, emoji with adhere-emoji.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from skimage import data
from torch import Tensor

import adhere

SIZE = 96  # pixels per side of one picture


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator with a seed."""
    return torch.Generator().manual_seed(seed)


def scribble(size: int) -> np.ndarray:
    """Return a mask (size, size) of two strokes, True = inpaint."""
    mask = Image.new("1", (size, size))
    draw = ImageDraw.Draw(mask)
    for points in (((10, 20), (70, 45), (120, 25)), ((20, 110), (60, 70), (115, 100))):
        draw.line(points, fill=1, width=7, joint="curve")
    return np.asarray(mask)


def save_pair(path: Path, before: Image.Image, after: Image.Image) -> None:
    """Save two pictures side by side, each SIZE pixels wide and high."""
    pair = Image.new("RGB", (2 * SIZE + 4, SIZE), "white")
    for i, image in enumerate((before, after)):
        pair.paste(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS), (i * (SIZE + 4), 0))
    pair.save(path)
    print(path)


def to_tensor(image: np.ndarray) -> Tensor:
    """Return a picture (H, W, 3) of bytes as (1, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def photographs(folder: Path) -> None:
    """Save the pictures of inpainting, upscaling and restoration."""
    pipe = adhere.load()
    photo = data.chelsea()[40:168, 130:258]
    mask = scribble(128)
    damaged = Image.fromarray(np.where(mask[..., None], 255, photo).astype(np.uint8))
    out = pipe(adhere.Inpaint(photo, mask), generator=seeded())
    save_pair(folder / "inpaint.png", damaged, out.images[0])

    small = Image.fromarray(photo).resize((32, 32), Image.Resampling.BOX)
    out = pipe(adhere.Upscale(small, 4), generator=seeded())
    save_pair(folder / "upscale.png", small.resize((SIZE, SIZE), Image.Resampling.NEAREST), out.images[0])

    blur = adhere.Blur(2.0)
    y = blur(to_tensor(photo))
    out = pipe(adhere.Restore(y, blur, noise=0.005), generator=seeded())
    blurred = Image.fromarray((y[0].permute(1, 2, 0) * 127.5 + 127.5).round().byte().numpy())
    save_pair(folder / "restore.png", blurred, out.images[0])


def emoji(folder: Path) -> None:
    """Save the pictures of a layout and of a prompt."""
    pipe = adhere.load("adhere-emoji")
    sketch = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(sketch).ellipse((6, 6, 58, 58), fill=(250, 200, 60))
    ImageDraw.Draw(sketch).rectangle((10, 22, 54, 34), fill=(30, 30, 40))
    prompt = "smiling face with sunglasses, cartoon"
    out = pipe(adhere.Layout(sketch), prompt, guidance_scale=2.0, generator=seeded(2))
    save_pair(folder / "layout.png", sketch, out.images[0])
    prompts = ["a red heart, 3d", "smiling face with sunglasses, cartoon"]
    out = pipe(adhere.Generate(), prompts, guidance_scale=3.0, generator=seeded())
    save_pair(folder / "generate.png", *out.images)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("docs/images/thumbnails"))
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    photographs(folder)
    emoji(folder)


if __name__ == "__main__":
    main()
