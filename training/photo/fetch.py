"""Fetch the training photographs of adhere-photo from their Debian packages.

    python -m training.photo.fetch --to data/photo

Two manifests name each picture with its package, title, author and licence:

- `photographs.csv`: files of wallpaper packages. Each is reduced to a pyramid of PNG copies whose short sides are
  `SHORT_SIDES`, in `pyramid/`, since a prior of local statistics must know a texture at the scales at which people
  photograph it.
- `gcompris.csv`: photographs inside the Qt resource archives (.rcc) of `gcompris-qt-data`, by byte offset and length.
  Each is written at the scales `ARCHIVE_SCALES`, in `gcompris/`. The names, authors and licences are those that the
  package's copyright file gives for the name in the archive. The author is empty where the file names only the
  project. Left out are paintings, drawings, pictures under the GFDL or under a version of CC-BY or CC-BY-SA that is not
  compatible with the GPL, and `categorization_fish*`, whose entries do not describe the pictures.

The packages are downloaded with `apt-get download` (no root needed) and unpacked with `dpkg-deb -x`; nothing is
installed. What exists already is not written again.
"""

import argparse
import csv
import io
import subprocess
from pathlib import Path

from PIL import Image, ImageOps

MANIFEST = Path(__file__).with_name("photographs.csv")
ARCHIVE_MANIFEST = Path(__file__).with_name("gcompris.csv")
SHORT_SIDES = (256, 384, 512, 768, 1024, 1536)
ARCHIVE_SCALES = (0.6, 0.35)  # the archives are compressed: at full size the blocks of the compression are visible
MIN_SIDE = 96  # pixels, of a scaled picture out of an archive


def manifest(path: Path = MANIFEST) -> list[dict[str, str]]:
    """Return the rows of a manifest.

    Args:
        path: A CSV file with the columns package, path, title, author and licence; for pictures inside archives also
            version, offset, length (bytes) and source (URL).

    Returns:
        One dictionary per picture.
    """
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def fetch(folder: Path) -> None:
    """Download and unpack every package of the manifests into `folder`/packages.

    Args:
        folder: The data folder.

    Raises:
        subprocess.CalledProcessError: If a package, or the version that the manifest names, is not available.
    """
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    versions = {row["package"]: row.get("version", "") for row in manifest() + manifest(ARCHIVE_MANIFEST)}
    for package, version in sorted(versions.items()):
        if (packages / package).exists():
            continue
        name = f"{package}={version}" if version else package
        subprocess.run(["apt-get", "download", name], cwd=packages, check=True)
        archive = next(packages.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", archive.name, package], cwd=packages, check=True)


def write_scaled(image: Image.Image, scale: float, target: Path) -> None:
    """Write a reduced copy of a picture.

    Args:
        image: An RGB picture.
        scale: Factor of both sides, in (0, 1).
        target: The PNG file to write.
    """
    size = (round(image.width * scale), round(image.height * scale))
    image.resize(size, Image.Resampling.LANCZOS).save(target, compress_level=1)


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
            write_scaled(image, scale, target)
        print(row["title"], image.size, flush=True)


def read_embedded(archive: Path, offset: int, length: int) -> Image.Image:
    """Decode a WebP picture that is stored inside another file.

    Args:
        archive: The file that contains the picture.
        offset: Position of its first byte.
        length: Its size in bytes, the RIFF header included.

    Returns:
        The RGB picture.

    Raises:
        ValueError: If there is no WebP picture of this length at the offset.
    """
    with archive.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or int.from_bytes(data[4:8], "little") + 8 != length:
        raise ValueError(
            f"{archive} has no WebP picture of {length} bytes at offset {offset}: "
            f"it is not from the package version that {ARCHIVE_MANIFEST.name} names"
        )
    return Image.open(io.BytesIO(data)).convert("RGB")


def extract_embedded(folder: Path) -> None:
    """Write `folder`/gcompris/<title>_<percent>.png for each picture of `gcompris.csv` and each scale."""
    out = folder / "gcompris"
    out.mkdir(exist_ok=True)
    rows = manifest(ARCHIVE_MANIFEST)
    for row in rows:
        archive = folder / "packages" / row["package"] / row["path"]
        image = read_embedded(archive, int(row["offset"]), int(row["length"]))
        for scale in ARCHIVE_SCALES:
            target = out / f"{row['title']}_{round(100 * scale)}.png"
            if not target.exists() and scale * min(image.size) >= MIN_SIDE:
                write_scaled(image, scale, target)
    print(f"{len(rows)} pictures of {ARCHIVE_MANIFEST.name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/photo"), help="folder for packages and pictures")
    folder = parser.parse_args().to
    fetch(folder)
    build_pyramids(folder)
    extract_embedded(folder)


if __name__ == "__main__":
    main()
