"""Ten holiday photographs on which nothing was trained or chosen: the demo of the Debian package kphotoalbum.

The package is downloaded on first use with `apt-get download` (no root needed) and unpacked into data/kphotoalbum; the
photographs are not part of this repository. They are (c) Jesper K. Pedersen, GPL-2.0-or-later.
"""

import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.masks import SIZE_PIXELS

PACKAGE = "kphotoalbum"
FOLDER = Path(__file__).parents[1] / "data" / PACKAGE
PHOTOGRAPHS = ("anne_helene", "bar55_2", "cold_water", "donna", "grand_canyon_2", "pool", "skagen", "snow", "spiff",
               "spiff_2")  # fmt: skip


def fetch(folder: Path = FOLDER) -> None:
    """Download and unpack the package into `folder`, unless that exists.

    Raises:
        subprocess.CalledProcessError: If the package is not available.
    """
    if folder.exists():
        return
    folder.parent.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder.parent, check=True)
    archive = next(folder.parent.glob(f"{PACKAGE}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", archive.name, folder.name], cwd=folder.parent, check=True)


def photograph(name: str) -> np.ndarray:
    """Return the middle of a photograph at half its size, which hides its JPEG blocks, (256, 256, 3) uint8."""
    fetch()
    with Image.open(FOLDER / "usr/share/kphotoalbum/demo" / f"{name}.jpg") as file:
        image = file.convert("RGB").reduce(2)
    left, top = (image.width - SIZE_PIXELS) // 2, (image.height - SIZE_PIXELS) // 2
    return np.asarray(image.crop((left, top, left + SIZE_PIXELS, top + SIZE_PIXELS)))
