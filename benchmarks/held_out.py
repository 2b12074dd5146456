"""One hundred emoji that adhere-emoji was never trained on, in no drawing and no variant: benchmarks/data/emoji.png.

    python -m benchmarks.held_out --data data/emoji     # chooses and writes them anew, with emoji.csv

One drawing of each base of training/emoji/held_out.txt, the plainest variant, the vendors taking turns. The kinds
(face, heart, people, ...) take turns too, so that the first ten are one of each. emoji.csv says what they are, in the
order of the sheet, with the caption a user might type and the licence of the drawing.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.sheets import cut, sheet
from training.emoji.data import HELD_OUT, SIDE, STYLES, Emoji, words

DATA = Path(__file__).with_name("data")
COUNT = 100
COLUMNS = 10
LICENCES = {
    "fluent": "MIT, Microsoft Fluent Emoji",
    "google": "Apache-2.0, Google Noto Emoji",
    "twitter": "CC-BY-4.0, Twemoji",
}


@dataclass(frozen=True)
class Item:
    """What is known of one of the pictures."""

    code: str
    name: str
    vendor: str
    caption: str
    licence: str


def load(count: int = COUNT) -> tuple[list[Item], np.ndarray]:
    """The first `count` items and their pictures, (count, 64, 64, 3) uint8. ValueError if there are not so many."""
    if not 1 <= count <= COUNT:
        raise ValueError(f"{count} items: 1 to {COUNT} are possible")
    with (DATA / "emoji.csv").open(newline="", encoding="utf-8") as file:
        items = [Item(**row) for row in csv.DictReader(file)]
    with Image.open(DATA / "emoji.png") as image:
        return items[:count], cut(image, SIDE, count)


def chosen(rows: list[dict[str, str]]) -> Iterator[int]:
    """Indices of the rows to take, in order."""
    kinds: dict[str, list[str]] = {}
    for line in HELD_OUT.read_text(encoding="utf-8").splitlines():
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
    """Choose from what training.emoji.fetch wrote to `data`."""
    emoji = Emoji.load(data, "held_out")
    indices = list(chosen(emoji.rows))[:COUNT]
    pictures = emoji.pictures[indices]
    rows = [pictures[i : i + COLUMNS] for i in range(0, COUNT, COLUMNS)]
    sheet(rows).save(DATA / "emoji.png", optimize=True)
    with (DATA / "emoji.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Item.__annotations__), lineterminator="\n")
        writer.writeheader()
        for row in (emoji.rows[i] for i in indices):
            caption = f"{words(row['name'])}, {STYLES[row['vendor']]}"
            licence = LICENCES[row["vendor"]]
            writer.writerow(asdict(Item(row["code"], row["name"], row["vendor"], caption, licence)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="what training.emoji.fetch wrote")
    write(parser.parse_args().data)


if __name__ == "__main__":
    main()
