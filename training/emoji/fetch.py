"""Download the emoji for training adhere-emoji from their npm packages.

    python -m training.emoji.fetch --to data/emoji

The packages are downloaded with `npm pack`; nothing is installed. Every image is composited onto white and scaled to
64x64 pixels. The script writes pictures.npy and manifest.csv, which training.emoji.data describes. Names, groups and
search words come from emojibase-data, which takes them from Unicode CLDR. `--choose-held-out` writes held_out.txt
again; the choice depends only on the hash of each base.
"""

import argparse
import csv
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from training.emoji.data import HELD_OUT_FILE, SIZE_PIXELS, base_of, held_out_bases

PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "names": "emojibase-data@16.0.3",
}
IMAGE_PATTERNS = {"fluent": "assets/*.webp", "google": "img/google/64/*.png", "twitter": "img/twitter/64/*.png"}
HELD_OUT_COUNTS = {  # number of held-out bases by category
    "face": 16, "heart": 5, "people & body": 14, "animals & nature": 16, "food & drink": 14, "travel & places": 10,
    "activities": 7, "objects": 13, "symbols": 4, "flags": 7,
}  # fmt: skip


def download(folder: Path) -> None:
    """Download each of `PACKAGES` and unpack it into `folder`/packages/<key>. Existing packages are kept."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for key, package in PACKAGES.items():
        if (packages / key).exists():
            continue
        out = subprocess.run(["npm", "pack", "--silent", package], cwd=packages, check=True, capture_output=True)
        with tarfile.open(packages / out.stdout.decode().split()[-1]) as archive:
            archive.extractall(packages / key, filter="data")


def read_names(folder: Path) -> dict[str, dict[str, str]]:
    """Read the names of emojibase-data.

    Args:
        folder: The data folder.

    Returns:
        A dictionary from the code (without fe0f) to name, group, subgroup and tags.
    """
    source = folder / "packages" / "names" / "package" / "en"
    messages = json.loads((source / "messages.json").read_text(encoding="utf-8"))
    table = {}
    for entry in json.loads((source / "data.json").read_text(encoding="utf-8")):
        if "group" not in entry:  # the regional indicator letters, which flags are composed of
            continue
        for variant in [entry, *entry.get("skins", [])]:
            table[_normalized_code(variant["hexcode"])] = {
                "name": variant["label"],
                "group": messages["groups"][variant["group"]]["message"],
                "subgroup": messages["subgroups"][variant["subgroup"]]["key"],
                "tags": "|".join(tag for tag in entry.get("tags", []) if tag not in variant["label"].lower()),
            }
    return table


def _normalized_code(code: str) -> str:
    """Return a code in lower case and without variation selectors."""
    return code.lower().replace("-fe0f", "")


def read_on_white(file: Path) -> np.ndarray:
    """Read an image, composite it onto white and scale it to 64x64 pixels.

    Compositing comes first, so that the colors of transparent pixels do not affect the edges.

    Args:
        file: The image file.

    Returns:
        The image of shape (64, 64, 3), uint8.
    """
    with Image.open(file) as image:
        rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    on_white = np.dstack([rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]])
    channels = [Image.fromarray(on_white[..., i]) for i in range(3)]
    if on_white.shape[:2] != (SIZE_PIXELS, SIZE_PIXELS):
        channels = [channel.resize((SIZE_PIXELS, SIZE_PIXELS), Image.Resampling.LANCZOS) for channel in channels]
    return (np.dstack([np.asarray(channel) for channel in channels]).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def find_images(folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """Find every image that has a name.

    Args:
        folder: The data folder.

    Yields:
        The row of the manifest, without the split, and the file of the image.
    """
    table = read_names(folder)
    for vendor, pattern in IMAGE_PATTERNS.items():
        for file in sorted((folder / "packages" / vendor / "package").glob(pattern)):
            if named := table.get(_normalized_code(file.stem)):
                yield {"vendor": vendor, "code": file.stem, "base": base_of(file.stem), **named}, file


def category(row: dict[str, str]) -> str:
    """Return the group of an emoji; smileys are divided into "face", "heart" and "emotion"."""
    if row["group"] != "smileys & emotion":
        return row["group"]
    return "heart" if row["subgroup"] == "heart" else "face" if "face" in row["subgroup"] else "emotion"


def choose_held_out(rows: list[dict[str, str]]) -> str:
    """Choose the held-out bases: those with the smallest SHA-256 of each category.

    Args:
        rows: The rows of the manifest, in any order.

    Returns:
        The content of held_out.txt.
    """
    shortest: dict[str, dict[str, str]] = {}  # the row of each base with the shortest code, which has no variants
    for row in rows:
        if len(row["code"]) < len(shortest.setdefault(row["base"], row)["code"]):
            shortest[row["base"]] = row
    lines = [
        "# Bases of the test images. No variant and no drawing of them is used for training. "
        "Written by training.emoji.fetch --choose-held-out"
    ]
    for name, count in HELD_OUT_COUNTS.items():
        bases = [base for base, row in shortest.items() if category(row) == name]
        bases.sort(key=lambda base: hashlib.sha256(base.encode()).hexdigest())
        lines += [f"{base} {shortest[base]['name']} ({name})" for base in bases[:count]]
    return "\n".join(lines) + "\n"


def build(folder: Path, choose: bool) -> None:
    """Write pictures.npy and manifest.csv.

    Args:
        folder: The data folder, with the downloaded packages.
        choose: Whether to write held_out.txt as well.
    """
    found = list(find_images(folder))
    if choose:
        HELD_OUT_FILE.write_text(choose_held_out([row for row, _ in found]), encoding="utf-8")
    held_out = held_out_bases()
    table = [row | {"split": "held_out" if row["base"] in held_out else "train"} for row, _ in found]
    np.save(folder / "pictures.npy", np.stack([read_on_white(file) for _, file in found]))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    test = [row for row in table if row["split"] == "held_out"]
    print(f"{len(table)} images, {len(test)} of them held out ({len({row['base'] for row in test})} bases)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/emoji"), help="folder for the packages and the data set")
    parser.add_argument("--choose-held-out", action="store_true", help="choose the held-out bases and write their list")
    args = parser.parse_args()
    download(args.to)
    build(args.to, args.choose_held_out)


if __name__ == "__main__":
    main()
