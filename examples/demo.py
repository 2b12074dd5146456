"""`make demo`: repair real photographs with the model that ships inside, by the command a user would type.

    python -m examples.demo [--to out]

For each photograph the damaged picture, its mask and the repaired picture go to the folder, and repairs.png shows them
all: damaged, repaired, original.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.photo import mask, picture

DAMAGES = (("chelsea", "text"), ("astronaut", "text"), ("coffee", "strokes"), ("rocket", "strokes"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("out"))
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    strips = []
    for name, damage in DAMAGES:
        original, repaint = picture(name), mask(damage)
        damaged = np.where(repaint[..., None], 255, original).astype(np.uint8)
        photo, mask_file, repaired = (folder / f"{name}-{kind}.png" for kind in ("damaged", "mask", "repaired"))
        Image.fromarray(damaged).save(photo)
        Image.fromarray(repaint).save(mask_file)
        command = ["adhere", "inpaint", str(photo), "--mask", str(mask_file), "-o", str(repaired), "--force"]
        print("$", " ".join(command), flush=True)
        subprocess.run([sys.executable, "-m", *command], check=True)
        with Image.open(repaired) as file:
            strips.append(np.concatenate([damaged, np.asarray(file), original], axis=1))
    sheet = np.concatenate([np.concatenate(strips[:2], axis=1), np.concatenate(strips[2:], axis=1)])
    Image.fromarray(sheet).save(folder / "repairs.png")
    print(f"damaged, repaired and original, side by side: {folder / 'repairs.png'}")


if __name__ == "__main__":
    main()
