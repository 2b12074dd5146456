"""The emoji data set: pictures with names, split by base, and the captions made of them.

`training.emoji.fetch` writes two files: pictures.npy, (N, 64, 64, 3) uint8 on white, and manifest.csv with one row for
each picture. A *base* is what all drawings of one idea share: skin tones, genders, ZWJ variants and the drawings of
every vendor. The bases of held_out.txt are never trained on, neither by the autoencoder nor by the network.
"""

import csv
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

HELD_OUT = Path(__file__).with_name("held_out.txt")
SIDE = 64  # pixels
STYLES = {"fluent": "3d", "google": "cartoon", "twitter": "flat"}
WEIGHT = {  # of a group, or of a subgroup, which goes first: faces drawn well are worth more than all drawn badly
    "smileys & emotion": 6.0,
    "heart": 10.0,
    "animals & nature": 1.5,
    "food & drink": 1.5,
    "flags": 1.2,
    "objects": 0.8,
    "people & body": 0.5,
    "symbols": 0.5,
}
DROPOUT = 0.1  # share of empty captions, for guidance

PERSON = "1f9d1"
_DROPPED = {"fe0f", "200d", "2640", "2642", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_SAME = {  # one idea under several code points
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
    "1f1fa-1f1f2": "1f1fa-1f1f8",  # territories that fly another's flag
    **dict.fromkeys(["1f1e7-1f1fb", "1f1f8-1f1ef"], "1f1f3-1f1f4"),
    **dict.fromkeys(["1f1e8-1f1f5", "1f1f2-1f1eb"], "1f1eb-1f1f7"),
    "1f1ed-1f1f2": "1f1e6-1f1fa",
    "1f1ea-1f1e6": "1f1ea-1f1f8",
    "1f1e9-1f1ec": "1f1ee-1f1f4",
}


def base_of(code: str) -> str:
    """The base of a code such as '1f44b-1f3fb' (lower-case hexadecimal code points joined by '-')."""
    points = [_SAME.get(point, point) for point in code.split("-") if point not in _DROPPED] or [code]
    whole = "-".join(points)
    if points[0] == PERSON or points[0].startswith("1f1") or points[0] == "1f3f4":  # people, country and other flags
        return _SAME.get(whole, whole)
    return points[0]


def held_out_bases() -> set[str]:
    """The bases that are kept for testing."""
    lines = HELD_OUT.read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line and not line.startswith("#")}


@dataclass
class Emoji:
    """Pictures and their manifest rows (vendor, code, base, name, group, subgroup, tags, split)."""

    pictures: np.ndarray  # (N, 64, 64, 3) uint8
    rows: list[dict[str, str]]

    @classmethod
    def load(cls, folder: Path, split: str) -> "Emoji":
        """The pictures of one split, 'train' or 'held_out', of a folder that training.emoji.fetch wrote."""
        if not (folder / "manifest.csv").exists():
            raise SystemExit(f"no pictures in {folder}: run python -m training.emoji.fetch --to {folder} first")
        with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        index = [i for i, row in enumerate(rows) if row["split"] == split]
        return cls(np.load(folder / "pictures.npy", mmap_mode="r")[index], [rows[i] for i in index])

    def __len__(self) -> int:
        return len(self.rows)

    def thinned(self, count: int) -> "Emoji":
        """`count` pictures, evenly spread over the vendors and groups, without skin tones."""
        plain = [i for i, row in enumerate(self.rows) if "skin tone" not in row["name"]]
        index = [plain[j] for j in np.linspace(0, len(plain) - 1, count).astype(int)]
        return Emoji(self.pictures[index], [self.rows[i] for i in index])

    @cached_property
    def weight(self) -> np.ndarray:
        """Probability of each picture, (N,): the many variants of one idea share what one of a few would have."""
        ideas = [(row["vendor"], row["base"]) for row in self.rows]
        count = {idea: ideas.count(idea) for idea in set(ideas)}
        group = np.array([WEIGHT.get(row["subgroup"], WEIGHT.get(row["group"], 1.0)) for row in self.rows])
        weight = group * np.array([count[idea] ** -0.6 for idea in ideas])
        return weight / weight.sum()


def words(text: str) -> str:
    """Lower case, without punctuation: 'flag: Japan' -> 'flag japan'."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def caption(row: dict[str, str], rng: np.random.Generator) -> str:
    """One of the ways a user may ask for a picture, or with probability DROPOUT nothing."""
    if rng.random() < DROPOUT:
        return ""
    text, style = words(row["name"]), STYLES[row["vendor"]]
    if rng.random() < 0.25:
        text = f"{'an' if text[:1] in 'aeiou' else 'a'} {text}"
    tags = row["tags"].split("|") if row["tags"] else []
    extra = rng.random()
    if extra < 0.25:
        text += f", {words(row['group'])}"
    elif extra < 0.4 and tags:
        text += f", {words(tags[rng.integers(len(tags))])}"
    elif extra < 0.45 and len(tags) > 1:
        text = words(" ".join(tags[i] for i in rng.permutation(len(tags))[:3]))
    where = rng.random()
    return f"{style} {text}" if where < 0.25 else f"{text}, {style}" if where < 0.5 else text


def all_captions(row: dict[str, str]) -> list[str]:
    """Every text `caption` can draw its words from: what the tokenizer is fitted to."""
    name, style = words(row["name"]), STYLES[row["vendor"]]
    return [f"a {name}, {style}", f"an {name}, {words(row['group'])}", *map(words, row["tags"].split("|"))]
