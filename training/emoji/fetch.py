"""Fetch the emoji that adhere-emoji is trained on, from their npm packages.

    python -m training.emoji.fetch --to data/emoji

Downloads with `npm pack` (nothing is installed), composites every picture onto white, brings it to 64x64 and writes
pictures.npy and manifest.csv (see training.emoji.data). Names, groups and search words are those of emojibase-data,
which takes them from Unicode CLDR. `--choose-held-out` writes held_out.txt anew, by the hash of each base.
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

from training.emoji.data import HELD_OUT, SIDE, base_of, held_out_bases

PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "google": "emoji-datasource-google@16.0.0",
    "twitter": "emoji-datasource-twitter@16.0.0",
    "names": "emojibase-data@16.0.3",
}
PICTURES = {"fluent": "assets/*.webp", "google": "img/google/64/*.png", "twitter": "img/twitter/64/*.png"}
HELD_OUT_PER_KIND = {
    "face": 16, "heart": 5, "people & body": 14, "animals & nature": 16, "food & drink": 14, "travel & places": 10,
    "activities": 7, "objects": 13, "symbols": 4, "flags": 7,
}  # fmt: skip


def download(folder: Path) -> None:
    """Download and unpack each of PACKAGES into `folder`/packages/<its key>."""
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for key, package in PACKAGES.items():
        if (packages / key).exists():
            continue
        out = subprocess.run(["npm", "pack", "--silent", package], cwd=packages, check=True, capture_output=True)
        with tarfile.open(packages / out.stdout.decode().split()[-1]) as archive:
            archive.extractall(packages / key, filter="data")


def names(folder: Path) -> dict[str, dict[str, str]]:
    """Code (without fe0f) -> name, group, subgroup and tags."""
    source = folder / "packages" / "names" / "package" / "en"
    labels = json.loads((source / "messages.json").read_text(encoding="utf-8"))
    table = {}
    for entry in json.loads((source / "data.json").read_text(encoding="utf-8")):
        if "group" not in entry:  # the single letters that flags are spelled with
            continue
        for one in [entry, *entry.get("skins", [])]:
            table[_bare(one["hexcode"])] = {
                "name": one["label"],
                "group": labels["groups"][one["group"]]["message"],
                "subgroup": labels["subgroups"][one["subgroup"]]["key"],
                "tags": "|".join(tag for tag in entry.get("tags", []) if tag not in one["label"].lower()),
            }
    return table


def _bare(code: str) -> str:
    return code.lower().replace("-fe0f", "")


def on_white(file: Path) -> np.ndarray:
    """A picture as (64, 64, 3) uint8 on white; resized before compositing, so that no dark edge is mixed in."""
    with Image.open(file) as image:
        rgba = np.asarray(image.convert("RGBA"), np.float32) / 255
    premultiplied = np.dstack([rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]])
    planes = [Image.fromarray(premultiplied[..., i]) for i in range(3)]
    if premultiplied.shape[:2] != (SIDE, SIDE):
        planes = [plane.resize((SIDE, SIDE), Image.Resampling.LANCZOS) for plane in planes]
    return (np.dstack([np.asarray(plane) for plane in planes]).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def rows(folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """Every picture that has a name, with its manifest row; the split is left open."""
    table = names(folder)
    for vendor, pattern in PICTURES.items():
        for file in sorted((folder / "packages" / vendor / "package").glob(pattern)):
            if named := table.get(_bare(file.stem)):
                yield {"vendor": vendor, "code": file.stem, "base": base_of(file.stem), **named}, file


def kind(row: dict[str, str]) -> str:
    """The groups, with faces and hearts told apart."""
    if row["group"] != "smileys & emotion":
        return row["group"]
    return "heart" if row["subgroup"] == "heart" else "face" if "face" in row["subgroup"] else "emotion"


def choose_held_out(found: list[dict[str, str]]) -> str:
    """The text of held_out.txt: of each kind the bases with the least SHA-256."""
    plain: dict[str, dict[str, str]] = {}
    for row in found:  # one row stands for its base: the shortest code, in which variants are not yet spelled out
        if len(row["code"]) < len(plain.setdefault(row["base"], row)["code"]):
            plain[row["base"]] = row
    lines = ["# base: never trained on, with all its variants and drawings. By training.emoji.fetch --choose-held-out"]
    for wanted, count in HELD_OUT_PER_KIND.items():
        bases = [base for base, row in plain.items() if kind(row) == wanted]
        bases.sort(key=lambda base: hashlib.sha256(base.encode()).hexdigest())
        lines += [f"{base} {plain[base]['name']} ({wanted})" for base in bases[:count]]
    return "\n".join(lines) + "\n"


def build(folder: Path, choose: bool) -> None:
    """Write pictures.npy and manifest.csv, and held_out.txt if asked."""
    found = list(rows(folder))
    if choose:
        HELD_OUT.write_text(choose_held_out([row for row, _ in found]), encoding="utf-8")
    kept = held_out_bases()
    table = [row | {"split": "held_out" if row["base"] in kept else "train"} for row, _ in found]
    np.save(folder / "pictures.npy", np.stack([on_white(file) for _, file in found]))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    held = [row for row in table if row["split"] == "held_out"]
    print(f"{len(table)} pictures, {len(held)} of them held out ({len({row['base'] for row in held})} bases)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("data/emoji"), help="folder for packages and pictures")
    parser.add_argument("--choose-held-out", action="store_true", help="write held_out.txt anew")
    args = parser.parse_args()
    download(args.to)
    build(args.to, args.choose_held_out)


if __name__ == "__main__":
    main()
