"""What large pictures cost: seconds and peak memory of the command, each run in a process of its own.

    python -m benchmarks.sizes --json benchmarks/results/sizes.json [--runs hole-512 hole-4000 emoji-512 upscale-2048]

- hole-512, hole-4000: `adhere inpaint` of a hole of 200 x 200 pixels in the middle of a photograph of 512 x 512 and of
  4000 x 3000 pixels. The results are bitmaps, which take no time to encode; reading the photograph is not counted.
- emoji-512: `adhere generate` with adhere-emoji, whose native side is 64 pixels.
- upscale-2048: `adhere upscale --factor 2` of 2048 x 2048 pixels.

The photographs are smooth noise with a power spectrum of 1/f^2, since the cost does not depend on what they show. A row
has the seconds that the command reports, and the peak memory of its process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.tables import Row, meta, save, table


@dataclass(frozen=True)
class Size:
    """One run: the verb with its options, and the (width, height) of the photograph or None."""

    arguments: tuple[str, ...]
    photo: tuple[int, int] | None = None
    has_hole: bool = False


RUNS = {
    "hole-512": Size(("inpaint",), (512, 512), has_hole=True),
    "hole-4000": Size(("inpaint",), (4000, 3000), has_hole=True),
    "emoji-512": Size(("generate", "--model", "adhere-emoji", "--prompt", "a red heart", "--size", "512x512")),
    "upscale-2048": Size(("upscale", "--factor", "2"), (2048, 2048)),
}
HOLE_PIXELS = 200


def photograph(width: int, height: int) -> Image.Image:
    """Return RGB noise of the power spectrum 1/f^2."""
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    f = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)).clamp_min(1 / max(width, height))
    x = torch.fft.irfft2(torch.fft.rfft2(noise) / f, s=(height, width))
    pixels = (127.5 + 50 * x / x.std()).clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def hole(width: int, height: int) -> Image.Image:
    """Return a mask that is white in the middle."""
    mask = np.zeros((height, width), np.uint8)
    top, left = (height - HOLE_PIXELS) // 2, (width - HOLE_PIXELS) // 2
    mask[top : top + HOLE_PIXELS, left : left + HOLE_PIXELS] = 255
    return Image.fromarray(mask)


def write_pictures(size: Size, photo: Path, mask: Path) -> None:
    """Write the photograph and the mask of a run."""
    assert size.photo is not None
    photograph(*size.photo).save(photo)
    hole(*size.photo).save(mask)


def measure(name: str, folder: Path) -> Row:
    """Run the command, and return what it reports."""
    size = RUNS[name]
    verb, *options = size.arguments
    files: list[str] = []
    if size.photo is not None:
        paths = folder / "photo.png", folder / "mask.png"
        # In a process of its own: Linux passes the largest memory of this process on to the command.
        process = get_context("spawn").Process(target=write_pictures, args=(size, *paths))
        process.start()
        process.join()
        files = [str(paths[0]), *(["--mask", str(paths[1])] if size.has_hole else [])]
    report = folder / f"{name}.json"
    output = ["-o", str(folder / f"{name}.bmp"), "--json", str(report)]
    subprocess.run([sys.executable, "-m", "adhere", verb, *files, *options, *output], check=True)
    figures = json.loads(report.read_text())
    method = f"{' '.join(size.arguments)} @ {figures['nfe']}"
    return Row(name, "noise", method, 0, figures["nfe"], figures["seconds"], 1024 * (figures["peak_gb"] or 0.0), {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    args = parser.parse_args()
    rows: list[Row] = []
    for name in args.runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, Path(folder)))
        save(args.json, rows, meta())
    print(table(rows, ["seconds", "peak_mb"]))


if __name__ == "__main__":
    main()
