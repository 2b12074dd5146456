"""The emoji data set: images with names, split by base code, and the captions made of the names.

`training.emoji.fetch` writes two files: pictures.npy, (N, 64, 64, 3) uint8 on white, and manifest.csv with one row per
image. All drawings of one idea share a *base*: its skin tones, genders and ZWJ variants, by every vendor. The bases of
held_out.txt are used for training neither the autoencoder nor the network.
"""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

HELD_OUT_FILE = Path(__file__).with_name("held_out.txt")
SIZE_PIXELS = 64  # height and width of the images
STYLES = {"fluent": "3d", "google": "cartoon", "twitter": "flat"}  # by vendor
SAMPLING_WEIGHTS = {  # relative weight of an image by its subgroup or, if that is not listed, by its group
    "smileys & emotion": 6.0,
    "heart": 10.0,
    "animals & nature": 1.5,
    "food & drink": 1.5,
    "flags": 1.2,
    "objects": 0.8,
    "people & body": 0.5,
    "symbols": 0.5,
}
VARIANT_EXPONENT = -0.6  # an image of a base with n drawings by its vendor has the weight n^VARIANT_EXPONENT
EMPTY_CAPTION_PROBABILITY = 0.1  # for classifier-free guidance

PERSON = "1f9d1"
_IGNORED_CODES = {"fe0f", "200d", "2640", "2642", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_CANONICAL_CODES = {  # code -> the code of the same idea that stands for all of them
    **dict.fromkeys(["1f468", "1f469"], PERSON),
    **dict.fromkeys(["1f466", "1f467"], "1f9d2"),
    **dict.fromkeys(["1f474", "1f475"], "1f9d3"),
    **dict.fromkeys(["1f934", "1f478"], "1fac5"),
    **dict.fromkeys(["1f385", "1f936"], "1f9d1-1f384"),
    **dict.fromkeys(["1f935", "1f470"], "1f470"),
    **dict.fromkeys(["1f57a", "1f483"], "1f483"),
    **dict.fromkeys(["1f46b", "1f46c", "1f46d"], f"{PERSON}-1f91d-{PERSON}"),
    "1f48f": f"{PERSON}-2764-1f48b-{PERSON}",
    "1f491": f"{PERSON}-2764-{PERSON}",
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # from here on: territories that use the flag of another one
    **dict.fromkeys(["1f1e7-1f1fb", "1f1f8-1f1ef"], "1f1f3-1f1f4"),
    **dict.fromkeys(["1f1e8-1f1f5", "1f1f2-1f1eb"], "1f1eb-1f1f7"),
    "1f1ed-1f1f2": "1f1e6-1f1fa",
    "1f1ea-1f1e6": "1f1ea-1f1f8",
    "1f1e9-1f1ec": "1f1ee-1f1f4",
}


def base_of(code: str) -> str:
    """Return the base of an emoji.

    Args:
        code: Lower-case hexadecimal code points joined by "-", such as "1f44b-1f3fb".

    Returns:
        The base in the same form, such as "1f44b". The base of a base is the base itself.
    """
    points = [_CANONICAL_CODES.get(point, point) for point in code.split("-") if point not in _IGNORED_CODES] or [code]
    joined = "-".join(points)
    if points[0] == PERSON or points[0].startswith("1f1") or points[0] == "1f3f4":  # people, flags of countries, others
        return _CANONICAL_CODES.get(joined, joined)
    return points[0]


def held_out_bases() -> set[str]:
    """Return the bases of the test images."""
    lines = HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


@dataclass
class Emoji:
    """Emoji images and their rows in the manifest.

    Args:
        images: Images of shape (N, 64, 64, 3), uint8.
        rows: One dictionary per image: vendor, code, base, name, group, subgroup, tags (joined by "|") and split.
    """

    images: np.ndarray
    rows: list[dict[str, str]]

    @classmethod
    def load(cls, folder: Path, split: str) -> "Emoji":
        """Load one split of the data set.

        Args:
            folder: Folder that training.emoji.fetch wrote.
            split: "train" or "held_out".

        Returns:
            The images of the split.

        Raises:
            SystemExit: If the folder holds no data set.
        """
        if not (folder / "manifest.csv").exists():
            raise SystemExit(f"no emoji in {folder}: run python -m training.emoji.fetch --to {folder}")
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        index = [i for i, row in enumerate(rows) if row["split"] == split]
        return cls(np.load(folder / "pictures.npy", mmap_mode="r")[index], [rows[i] for i in index])

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, count: int) -> "Emoji":
        """Return `count` images without skin tones, at equal distances in the order of the manifest."""
        untoned = [i for i, row in enumerate(self.rows) if "skin tone" not in row["name"]]
        index = [untoned[j] for j in np.linspace(0, len(untoned) - 1, count).astype(int)]
        return Emoji(self.images[index], [self.rows[i] for i in index])

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Sampling probability of each image, shape (N,).

        An image has less weight the more drawings of its base the vendor has.
        """
        bases = [(row["vendor"], row["base"]) for row in self.rows]
        count = Counter(bases)
        group_weights = np.array(
            [SAMPLING_WEIGHTS.get(row["subgroup"], SAMPLING_WEIGHTS.get(row["group"], 1.0)) for row in self.rows]
        )
        weights = group_weights * np.array([count[base] ** VARIANT_EXPONENT for base in bases])
        return weights / weights.sum()


def normalize_text(text: str) -> str:
    """Return a text in lower case and without punctuation: "flag: Japan" -> "flag japan"."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def caption(row: dict[str, str], rng: np.random.Generator) -> str:
    """Draw a caption in the style of a user's prompt.

    Args:
        row: Row of the manifest.
        rng: The generator of the random numbers.

    Returns:
        The caption. It is empty with probability `EMPTY_CAPTION_PROBABILITY`.
    """
    if rng.random() < EMPTY_CAPTION_PROBABILITY:
        return ""
    text, style = normalize_text(row["name"]), STYLES[row["vendor"]]
    if rng.random() < 0.25:
        text = f"{'an' if text[:1] in 'aeiou' else 'a'} {text}"
    tags = row["tags"].split("|") if row["tags"] else []
    addition = rng.random()
    if addition < 0.25:
        text += f", {normalize_text(row['group'])}"
    elif addition < 0.4 and tags:
        text += f", {normalize_text(tags[rng.integers(len(tags))])}"
    elif addition < 0.45 and len(tags) > 1:
        text = normalize_text(" ".join(tags[i] for i in rng.permutation(len(tags))[:3]))
    position = rng.random()
    return f"{style} {text}" if position < 0.25 else f"{text}, {style}" if position < 0.5 else text


def all_captions(row: dict[str, str]) -> list[str]:
    """Return texts that contain all words `caption` can use for an image. The tokenizer is fitted to them.

    Args:
        row: Row of the manifest.

    Returns:
        The texts; the first is the plain name with its style.
    """
    name, style = normalize_text(row["name"]), STYLES[row["vendor"]]
    return [
        f"a {name}, {style}",
        f"an {name}, {normalize_text(row['group'])}",
        *map(normalize_text, row["tags"].split("|")),
    ]
