"""Inpaint four photographs and complete ten emoji with the models that are part of adhere: `make demo`.

    python -m examples.demo [--to out]

Photographs are inpainted by the command line. The folder gets the damaged picture, the mask and the result of each, and
repairs.png with all of them: damaged, inpainted, original.

Emoji are completed from Python. emoji.png shows ten emoji that the model was not trained on: the given left half, the
result, the original. Its last row shows three new emoji for three prompts.

The masks and the emoji are files of the benchmarks, and the photographs are part of scikit-image.
"""

import argparse
import csv
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers.utils.logging import disable_progress_bar, set_verbosity
from PIL import Image, ImageDraw
from skimage import data
from transformers.utils import logging as transformers_logging

import adhere
from adhere.pipelines._index import SHIPPED_MODELS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PHOTOGRAPHS = (("chelsea", "text"), ("coffee", "strokes"), ("astronaut", "strokes"), ("rocket", "hole"))  # and masks
PHOTOGRAPH_SIZE = 256  # pixels
EMOJI_SIZE = 64  # pixels
NUM_EMOJI = 10
PROMPTS = ("a red heart, 3d", "smiling face with sunglasses, cartoon", "cat face, cartoon")
PROMPT_GUIDANCE_SCALE = 3.0
COMPLETION_GUIDANCE_SCALE = 1.0  # off: the model was not trained on these captions, and guidance would mislead it


def inpaint_photographs(folder: Path) -> None:
    """Write the damaged picture, the mask and the result of each photograph, and repairs.png, into a folder."""
    rows = []
    for name, mask_name in PHOTOGRAPHS:
        original, mask = photograph(name), read_mask(mask_name)
        damaged = np.where(mask[..., None], 255, original).astype(np.uint8)
        files = [folder / f"{name}-{kind}.png" for kind in ("damaged", "mask", "repaired")]
        Image.fromarray(damaged).save(files[0])
        Image.fromarray(mask).save(files[1])
        run_command("inpaint", str(files[0]), "--mask", str(files[1]), "-o", str(files[2]), "--force")
        with Image.open(files[2]) as image:
            rows.append([damaged, np.asarray(image), original])
    titles = [label(title, 24, PHOTOGRAPH_SIZE) for title in ("damaged", "repaired", "original")]
    gap = np.full((PHOTOGRAPH_SIZE, 16, 3), 255, np.uint8)
    pairs = [[*titles, gap[:24], *titles], [*rows[0], gap, *rows[1]], [gap[:16]], [*rows[2], gap, *rows[3]]]
    grid(pairs).save(folder / "repairs.png")
    print(f"damaged, inpainted and original photographs: {folder / 'repairs.png'}", flush=True)


def complete_emoji(folder: Path, model: str) -> None:
    """Write emoji.png into a folder."""
    pipe = load_without_messages(model)
    captions, originals = held_out_emoji(NUM_EMOJI)
    mask = np.arange(EMOJI_SIZE)[None].repeat(EMOJI_SIZE, 0) >= EMOJI_SIZE // 2  # the right half
    completed, seconds, residuals = [], 0.0, []
    for seed, (caption, original) in enumerate(zip(captions, originals, strict=True)):
        out = pipe(
            adhere.Inpaint(original, mask),
            caption,
            guidance_scale=COMPLETION_GUIDANCE_SCALE,
            generator=torch.Generator().manual_seed(seed),
        )
        completed.append(np.asarray(out.images[0]))
        seconds += out.seconds
        residuals.append(out.residual[0])
    given = np.where(mask[..., None], 200, originals).astype(np.uint8)
    grid([given, completed, originals, generated_emoji(pipe)], scale=2).save(folder / "emoji.png")
    print(f"{NUM_EMOJI} emoji in {seconds:.0f} s, largest residual {max(residuals):.3f}")
    print(f"given, completed and original emoji, and emoji for prompts: {folder / 'emoji.png'}")


def generated_emoji(pipe: adhere.ConstrainedPipeline) -> list[np.ndarray]:
    """Return a new emoji for each prompt, each followed by its prompt."""
    generator = torch.Generator().manual_seed(0)
    out = pipe(adhere.Generate(), PROMPTS, guidance_scale=PROMPT_GUIDANCE_SCALE, generator=generator)
    pictures = []
    for prompt, image in zip(PROMPTS, out.images, strict=True):
        pictures += [np.asarray(image), label(prompt.replace(", ", ",\n"), EMOJI_SIZE, 149)]
    return pictures


def run_command(*arguments: str) -> None:
    """Print a command of adhere, as a user would type it, and run it."""
    print("$ adhere", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "adhere", *arguments], check=True)


def load_without_messages(model: str) -> adhere.ConstrainedPipeline:
    """Load a model with the warnings and the progress bars of the libraries switched off."""
    set_verbosity(logging.ERROR)
    transformers_logging.set_verbosity(logging.ERROR)
    disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = adhere.load(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def photograph(name: str) -> np.ndarray:
    """Return the middle of a picture of scikit-image, (256, 256, 3) uint8."""
    image = getattr(data, name)()
    top, left = (image.shape[0] - PHOTOGRAPH_SIZE) // 2, (image.shape[1] - PHOTOGRAPH_SIZE) // 2
    return np.ascontiguousarray(image[top : top + PHOTOGRAPH_SIZE, left : left + PHOTOGRAPH_SIZE, :3])


def read_mask(name: str) -> np.ndarray:
    """Return a mask of the benchmarks, (256, 256) bool, True = inpaint."""
    with Image.open(BENCHMARKS / "masks" / f"{name}.png") as image:
        return np.array(image.convert("L")) > 127


def held_out_emoji(count: int) -> tuple[list[str], np.ndarray]:
    """Return the captions and the pictures, (count, 64, 64, 3) uint8, of emoji that the model was not trained on."""
    with (BENCHMARKS / "data" / "emoji.csv").open(newline="", encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    with Image.open(BENCHMARKS / "data" / "emoji.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    rows, columns = pixels.shape[0] // EMOJI_SIZE, pixels.shape[1] // EMOJI_SIZE
    pictures = pixels.reshape(rows, EMOJI_SIZE, columns, EMOJI_SIZE, 3).swapaxes(1, 2)
    return captions[:count], pictures.reshape(-1, EMOJI_SIZE, EMOJI_SIZE, 3)[:count]


def grid(rows: Sequence[Sequence[np.ndarray] | np.ndarray], scale: int = 1) -> Image.Image:
    """Join rows of pictures, (H, W, 3) uint8 each, into one picture that is enlarged by an integer factor."""
    width = max(sum(picture.shape[1] for picture in row) for row in rows)
    strips = [np.concatenate(row, axis=1) for row in rows]
    filled = [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips]
    image = Image.fromarray(np.concatenate(filled))
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def label(text: str, height: int, width: int) -> np.ndarray:
    """Return black text on white, (height, width, 3) uint8."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((2, height / 2), text, fill="black", anchor="lm")
    return np.asarray(image)


def main() -> None:
    """Write all pictures into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("out"), help="the folder to write to (default: out)")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    inpaint_photographs(folder)
    if "adhere-emoji" in SHIPPED_MODELS:
        complete_emoji(folder, "adhere-emoji")
    else:
        print("this package does not contain adhere-emoji, so there is no emoji.png")


if __name__ == "__main__":
    main()
