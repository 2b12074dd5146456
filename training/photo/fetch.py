"""Fetch the training photographs of adhere-photo from their Debian packages.

    python -m training.photo.fetch --to data/photo

`photographs.csv` names each picture with its package, author and licence. The packages are downloaded with
`apt-get download` (no root needed) and unpacked with `dpkg-deb -x`; nothing is installed. Every file is then
decoded and reduced to a pyramid of PNG copies whose short sides are `SHORT_SIDES`, since a prior of local
statistics must know a texture at the scales people photograph it.
"""

import argparse
import csv
import subprocess
from pathlib import Path

from PIL import Image, ImageOps

MANIFEST = Path(__file__).with_name("photographs.csv")
SHORT_SIDES = (256, 384, 512, 768, 1024, 1536)


def manifest() -> list[dict[str, str]]:
    """The rows of photographs.csv: package, path, title, author, licence."""
    with MANIFEST.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fetch(folder: Path) -> None:
    """Download and unpack every package of the manifest into `folder` / packages."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for package in sorted({row["package"] for row in manifest()}):
        if (packages / package).exists():
            continue
        subprocess.run(["apt-get", "download", package], cwd=packages, check=True)
        archive = next(packages.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=packages, check=True)


def build_pyramids(folder: Path) -> None:
    """Write `folder`/pyramid/<title>_<short side>.png for each photograph and each scale it is large enough for."""
    out = folder / "pyramid"
    out.mkdir(exist_ok=True)
    for row in manifest():
        source = folder / "packages" / row["package"] / row["path"]
        with Image.open(source) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
        for short in SHORT_SIDES:
            target = out / f"{row['title']}_{short}.png"
            scale = short / min(image.size)
            if target.exists() or scale > 0.9:  # at full size JPEG blocks show: they are not photo statistics
                continue
            size = (round(image.width * scale), round(image.height * scale))
            image.resize(size, Image.Resampling.LANCZOS).save(target, compress_level=1)
        print(row["title"], image.size, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/photo"), help="folder for packages and pyramids")
    folder = parser.parse_args().to
    fetch(folder)
    build_pyramids(folder)


if __name__ == "__main__":
    main()
