"""`make demo`: repair photographs and complete emoji with the models that ship inside.

    python -m examples.demo [--to out]

Photographs, by the command a user would type: the damaged picture, its mask and the repaired picture go to the folder,
and repairs.png shows them all: damaged, repaired, original. Emoji, from Python: emoji.png shows ten that the model
never saw, their left halves given, completed, and as they were drawn; below, what it makes of three prompts.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adhere import Inpaint
from adhere.loading import SHIPPED
from adhere.tasks import Generate
from benchmarks import held_out, masks
from benchmarks.emoji_tasks import half, quiet_pipeline
from benchmarks.photo import picture
from benchmarks.sheets import label, sheet

DAMAGES = (("chelsea", "text"), ("coffee", "strokes"), ("astronaut", "strokes"), ("rocket", "hole"))
EMOJI = 10
GUIDANCE = 3.0  # of the prompts; the names of the ten, of ideas it never saw, would mislead at more than 1
PROMPTS = ("a red heart, 3d", "smiling face with sunglasses, cartoon", "cat face, cartoon")


def photographs(folder: Path) -> None:
    strips = []
    for name, damage in DAMAGES:
        original, repaint = picture(name), masks.load(damage)
        damaged = np.where(repaint[..., None], 255, original).astype(np.uint8)
        photo, mask_file, repaired = (folder / f"{name}-{kind}.png" for kind in ("damaged", "mask", "repaired"))
        Image.fromarray(damaged).save(photo)
        Image.fromarray(repaint).save(mask_file)
        command = ["adhere", "inpaint", str(photo), "--mask", str(mask_file), "-o", str(repaired), "--force"]
        print("$", " ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
        with Image.open(repaired) as file:
            strips.append([damaged, np.asarray(file), original])
    sheet([[*strips[0], *strips[1]], [*strips[2], *strips[3]]]).save(folder / "repairs.png")
    print(f"damaged, repaired and original, side by side: {folder / 'repairs.png'}", flush=True)


def emoji(folder: Path, model: str) -> None:
    pipe = quiet_pipeline(model)
    items, originals = held_out.load(EMOJI)
    unknown = half()
    completed, seconds = [], 0.0
    for i, (item, original) in enumerate(zip(items, originals, strict=True)):
        generator = torch.Generator().manual_seed(i)
        out = pipe(Inpaint(original, unknown), item.caption, guidance_scale=1.0, generator=generator)
        assert not isinstance(out, tuple)
        completed.append(np.asarray(out.images[0]))
        seconds += out.seconds
    drawn = pipe(Generate(), PROMPTS, guidance_scale=GUIDANCE)
    assert not isinstance(drawn, tuple)
    given = np.where(unknown[..., None], 200, originals).astype(np.uint8)
    captions = [
        part
        for text, image in zip(PROMPTS, drawn.images, strict=True)
        for part in (np.asarray(image), label(text.replace(", ", ",\n"), 64, width=149))
    ]
    sheet([given, completed, originals, captions], scale=2).save(folder / "emoji.png")
    print(f"{EMOJI} emoji completed in {seconds:.0f} s; given, completed, original: {folder / 'emoji.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("out"))
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    photographs(folder)
    if "adhere-emoji" in SHIPPED:
        emoji(folder, "adhere-emoji")
    else:
        print("adhere-emoji is not in this package: no emoji.png")


if __name__ == "__main__":
    main()
