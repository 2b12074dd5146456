"""One hundred emoji that adhere-emoji was not trained on, in any drawing or variant: benchmarks/data/emoji.png.

    python -m benchmarks.held_out --data data/emoji     # selects the emoji again and writes emoji.png and emoji.csv

The selection has one drawing of each base of training/emoji/held_out.txt, in its variant with the shortest code.
Vendors alternate. The kinds (face, heart, people, ...) alternate too, so that the first ten emoji are of ten kinds.
emoji.csv has one row per emoji, in the order of the grid, with a caption in the style of a user's prompt and the
license of the drawing.
"""

import argparse
import csv
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.grids import grid, split

DATA = Path(__file__).with_name("data")
HELD_OUT_FILE = Path(__file__).parents[1] / "training" / "emoji" / "held_out.txt"
COUNT = 100
COLUMNS = 10
SIZE_PIXELS = 64  # height and width of the emoji
LICENSES = {
    "fluent": "MIT, Microsoft Fluent Emoji",
    "google": "Apache-2.0, Google Noto Emoji",
    "twitter": "CC-BY-4.0, Twemoji",
}
STYLES = {"fluent": "3d", "google": "cartoon", "twitter": "flat"}  # in captions, as in those of the training


@dataclass(frozen=True)
class Item:
    """The description of one emoji."""

    code: str
    name: str
    vendor: str
    caption: str
    license: str


def load(count: int = COUNT) -> tuple[list[Item], np.ndarray]:
    """Return the first `count` items and their pictures.

    Args:
        count: From 1 to 100.

    Returns:
        The items, and the pictures (count, 64, 64, 3), uint8.

    Raises:
        ValueError: `count` is out of range.
    """
    if not 1 <= count <= COUNT:
        raise ValueError(f"{count} items: 1 to {COUNT} are possible")
    with (DATA / "emoji.csv").open(newline="", encoding="utf-8") as file:
        items = [Item(**row) for row in csv.DictReader(file)]
    with Image.open(DATA / "emoji.png") as image:
        return items[:count], split(image, SIZE_PIXELS, count)


def read_split(folder: Path, name: str) -> tuple[np.ndarray, list[dict[str, str]]]:
    """Return the pictures (N, 64, 64, 3), uint8, and the rows of a split of the data that training.emoji.fetch wrote.

    Args:
        folder: The folder with pictures.npy and manifest.csv.
        name: "train" or "held_out".

    Raises:
        SystemExit: The folder does not hold the data.
    """
    if not (folder / "manifest.csv").exists():
        raise SystemExit(f"no emoji in {folder}: run python -m training.emoji.fetch --to {folder}")
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    index = [i for i, row in enumerate(rows) if row["split"] == name]
    return np.load(folder / "pictures.npy", mmap_mode="r")[index], [rows[i] for i in index]


def select(rows: list[dict[str, str]]) -> Iterator[int]:
    """Yield the indices of the selected rows of the manifest, in order."""
    kinds: dict[str, list[str]] = {}
    for line in HELD_OUT_FILE.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            kinds.setdefault(line[line.rindex("(") :], []).append(line.split()[0])
    for turn, bases in enumerate(zip_longest(*kinds.values())):
        for k, base in enumerate(bases):
            drawings = [i for i, row in enumerate(rows) if row["base"] == base]
            if not drawings:
                continue
            vendors = sorted({rows[i]["vendor"] for i in drawings})
            vendor = vendors[(turn + k) % len(vendors)]
            yield min((i for i in drawings if rows[i]["vendor"] == vendor), key=lambda i: len(rows[i]["code"]))


def write(data: Path) -> None:
    """Select emoji of the data that training.emoji.fetch wrote, and write emoji.png and emoji.csv."""
    pictures, manifest = read_split(data, "held_out")
    indices = list(select(manifest))[:COUNT]
    selected = pictures[indices]
    grid([selected[i : i + COLUMNS] for i in range(0, COUNT, COLUMNS)]).save(DATA / "emoji.png", optimize=True)
    with (DATA / "emoji.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Item.__annotations__), lineterminator="\n")
        writer.writeheader()
        for row in (manifest[i] for i in indices):
            name = " ".join(re.findall(r"[^\W_]+", row["name"].lower()))
            caption = f"{name}, {STYLES[row['vendor']]}"
            writer.writerow(asdict(Item(row["code"], row["name"], row["vendor"], caption, LICENSES[row["vendor"]])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    write(parser.parse_args().data)


if __name__ == "__main__":
    main()
