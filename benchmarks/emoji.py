"""The paper's tasks on one hundred held-out emoji, every method at equal numbers of network evaluations.

    python -m benchmarks.emoji --json out.json [--sheet sheet.png] [--items 10] [--methods ddnm dps] [--tasks half x4]
        [--nfe 40 220] [--prompts without with] [--model FOLDER] [--train data/emoji]

The emoji (benchmarks.held_out) were never trained on. Asked: the other half, a box, strokes; super-resolution x4 and
x8, through the decoder; a coarse colour layout, a silhouette, a style; each without and with its caption as the prompt.

NFE counts forward passes (under guidance the two of one call are one); `work` adds 2 for every backward pass. Residual:
before known pixels are put back. After: PSNR over the unknown region, distance of EfficientNet-Lite0 features, Fréchet
distance of those features between all results and all originals. Seconds: a batch's, shared out evenly. ddnm, which in
latents is known as blending, is run under masks only. --train adds the PSNR in the unknown region to the training
picture that is nearest to the result there: memorised or made?

Rows are saved after every batch, pictures in a folder beside them, and what is there is not run again. Peak memory and
decoder gradients: benchmarks.peak.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adhere import ConstrainedPipeline
from adhere.conditioning import Conditioning
from adhere.core.solvers import METHODS
from benchmarks import held_out
from benchmarks.emoji_tasks import TASKS, Asked, can_run, method_at, quiet_pipeline, run
from benchmarks.features import FeatureDistance, frechet_distance
from benchmarks.rows import Row, load, meta, save, table
from benchmarks.sheets import cut, label, sheet
from training.emoji.autoencoder import to_pictures, to_tensor
from training.emoji.data import SIDE, Emoji

COLUMNS = ("psnr", "feature_distance", "frechet", "residual", "nearest_psnr", "nfe", "work", "seconds")
DEFAULT_METHODS = ("inexact_newton", "moment_matching", "moment_matching_calm", "ddnm", "dps", "mpgd")
ALL = "all"  # the item of a row about all items


def psnr(a: Tensor, b: Tensor, where: Tensor) -> Tensor:
    """In dB, over the pixels where `where` (1, 1, H, W) is 1: (B,)."""
    error = (where * (a - b)).square().sum((1, 2, 3)) / (3 * where.sum())
    return 10 * torch.log10(4 / error)


class Results:
    """Rows in a JSON file, the pictures of each task and method in one sheet of a folder beside it, item by item."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path, self.names = path, names
        self.rows = [row for row in load(path)[0] if row.item != ALL] if path.exists() else []

    def missing(self, task: str, method: str) -> list[int]:
        """Indices of the items that were not run yet."""
        done = {row.item for row in self.rows if (row.task, row.method) == (task, method)}
        return [i for i, name in enumerate(self.names) if name not in done]

    def complete(self) -> list[tuple[str, str]]:
        """(task, method) of which all items are there."""
        found = dict.fromkeys((row.task, row.method) for row in self.rows)
        return [group for group in found if not self.missing(*group)]

    def pictures(self, task: str, method: str) -> np.ndarray:
        """(100, 64, 64, 3), white where an item was not run."""
        if (file := self._sheet(task, method)).exists():
            with Image.open(file) as image:
                return cut(image, SIDE, held_out.COUNT)
        return np.full((held_out.COUNT, SIDE, SIDE, 3), 255, np.uint8)

    def add(self, rows: list[Row], index: list[int], pictures: np.ndarray) -> None:
        """Rows of one task and method, and their pictures: on disk when this returns."""
        task, method = rows[0].task, rows[0].method
        known = self.pictures(task, method)
        known[index] = pictures
        file = self._sheet(task, method)
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet([known[i : i + held_out.COLUMNS] for i in range(0, held_out.COUNT, held_out.COLUMNS)]).save(file)
        self.rows += rows
        save(self.path, self.rows, meta())

    def _sheet(self, task: str, method: str) -> Path:
        return self.path.with_suffix("") / f"{task} {method}.png".replace(", ", " ").replace(" @ ", " ")


class Benchmark:
    """What all runs share."""

    def __init__(self, pipe: ConstrainedPipeline, results: Results, items: int, guidance: float) -> None:
        self.pipe, self.results, self.guidance = pipe, results, guidance
        self.items, pictures = held_out.load(items)
        self.x = to_tensor(pictures)
        self.distance = FeatureDistance()
        self.frechet: dict[tuple[str, str], float] = {}

    def measure(self, task: str, name: str, nfe: int, prompted: bool, batch: int) -> None:
        """Run what is missing of one method on one task."""
        title, method_title = task + (", prompt" if prompted else ""), f"{name} @ {nfe}"
        missing = self.results.missing(title, method_title)
        for index in (missing[i : i + batch] for i in range(0, len(missing), batch)):
            x = self.x[index]
            asked = TASKS[task](x)
            if not can_run(name, asked.constraint):
                return
            method, work = method_at(name, nfe, self.pipe.schedule())
            captions = [self.items[i].caption for i in index]
            conditioning = Conditioning(len(index))
            if prompted:
                conditioning = Conditioning(len(index), captions, guidance_scale=self.guidance)
            generators = [torch.Generator().manual_seed(i) for i in index]
            made, calls, seconds = run(self.pipe, asked.constraint, method, conditioning, generators)
            pictures, scores = self.score(asked, x, made)
            each = seconds / len(index)
            rows = [
                Row(title, self.items[i].name, method_title, i, calls, each, scores=one | {"work": work})
                for i, one in zip(index, scores, strict=True)
            ]
            self.results.add(rows, index, pictures)

    @torch.inference_mode()
    def score(self, asked: Asked, x: Tensor, made: Tensor) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Pictures with their known pixels put back, and the scores of each."""
        scores = {"residual": asked.constraint.error(made)}
        if asked.unknown is not None:
            made = torch.where(asked.unknown == 1, made, x)
        pictures = to_pictures(made)
        if asked.unknown is not None:
            shown = to_tensor(pictures)
            scores |= {"psnr": psnr(shown, x, asked.unknown), "feature_distance": self.distance(shown, x)}
        return pictures, [{key: float(value[i]) for key, value in scores.items()} for i in range(len(x))]

    @torch.inference_mode()
    def summaries(self) -> list[Row]:
        """For each task and method, one row with the Fréchet distance of all items, the rest being their means."""
        out = []
        for task, method in self.results.complete() if len(self.x) > 1 else []:
            if (task, method) not in self.frechet:
                made = to_tensor(self.results.pictures(task, method)[: len(self.x)])
                self.frechet[task, method] = frechet_distance(self.distance.pooled(made), self.distance.pooled(self.x))
            rows = [row for row in self.results.rows if (row.task, row.method) == (task, method)]
            seconds = sum(row.seconds for row in rows) / len(rows)
            scores = {"frechet": self.frechet[task, method]}
            out.append(Row(task, ALL, method, 0, rows[0].nfe, seconds, scores=scores))
        return out

    def compare_with_training(self, folder: Path) -> dict[tuple[str, str], np.ndarray]:
        """Add the score nearest_psnr where a region was unknown; the nearest training pictures by (task, method)."""
        train = Emoji.load(folder, "train").pictures
        nearest = {}
        for task, method in self.results.complete():
            unknown = TASKS[task.removesuffix(", prompt")](self.x[:1]).unknown
            if unknown is None:
                continue
            made = self.results.pictures(task, method)[: len(self.x)]
            index = nearest_pictures(made, train, unknown[0, 0].bool().numpy())
            found = nearest[task, method] = np.stack([train[i] for i in index])
            values = psnr(to_tensor(made), to_tensor(found), unknown).tolist()
            score = {item.name: {"nearest_psnr": value} for item, value in zip(self.items, values, strict=True)}
            self.results.rows = [
                replace(row, scores=row.scores | score.get(row.item, {}))
                if (row.task, row.method) == (task, method)
                else row
                for row in self.results.rows
            ]
        return nearest

    def contact_sheet(self, nearest: dict[tuple[str, str], np.ndarray], columns: int = 10) -> Image.Image:
        """For each task: what was shown, what each method made, the original, and of the first the nearest trained."""
        rows: list[tuple[str, np.ndarray]] = []
        truth = to_pictures(self.x)
        groups = self.results.complete()
        for task in dict.fromkeys(task for task, _ in groups):
            shown = to_pictures(TASKS[task.removesuffix(", prompt")](self.x[:columns]).shown)
            rows.append((f"{task}: given", shown))
            methods = [method for other, method in groups if other == task]
            rows += [(method, self.results.pictures(task, method)) for method in methods]
            if (task, methods[0]) in nearest:
                rows.append((f"trained on,\nnearest to\n{methods[0]}", nearest[task, methods[0]]))
            rows.append(("original", truth))
        return sheet([[label(text, SIDE), *pictures[: min(columns, len(self.x))]] for text, pictures in rows])


def nearest_pictures(made: np.ndarray, train: np.ndarray, where: np.ndarray) -> list[int]:
    """Index of the training picture with the least squared difference over `where` (H, W), for each picture made."""
    a = torch.from_numpy(made[:, where].reshape(len(made), -1)).float() / 255  # (N, 3 * pixels)
    best, found = torch.full((len(made),), torch.inf), torch.zeros(len(made), dtype=torch.long)
    for start in range(0, len(train), 1000):
        b = torch.from_numpy(train[start : start + 1000][:, where].reshape(-1, a.shape[1])).float() / 255
        distance, index = torch.cdist(a, b).min(1)
        found = torch.where(distance < best, index + start, found)
        best = best.minimum(distance)
    return found.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go; what is there is not run again")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first ten items")
    parser.add_argument("--items", type=int, default=held_out.COUNT, help="the first so many; 10 are one of each kind")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS))
    parser.add_argument("--nfe", nargs="+", type=int, default=[40, 220], help="network evaluations for each picture")
    parser.add_argument("--prompts", nargs="+", choices=["without", "with"], default=["without"])
    parser.add_argument("--guidance", type=float, default=1.0, help="guidance_scale of prompts")
    parser.add_argument("--batch", type=int, default=20, help="items run at once")
    parser.add_argument("--model", default="adhere-emoji", help="a diffusers folder instead of the shipped model")
    parser.add_argument("--train", type=Path, help="the training pictures, to find the nearest to each result")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = quiet_pipeline(args.model)
    results = Results(args.json, [item.name for item in held_out.load(args.items)[0]])
    benchmark = Benchmark(pipe, results, args.items, args.guidance)
    for task, prompt in product(args.tasks, args.prompts):
        for nfe, name in product(args.nfe, args.methods):
            benchmark.measure(task, name, nfe, prompt == "with", args.batch)
        title = task + (", prompt" if prompt == "with" else "")
        print(table([row for row in results.rows + benchmark.summaries() if row.task == title], COLUMNS), flush=True)
    nearest = benchmark.compare_with_training(args.train) if args.train else {}
    save(args.json, results.rows + benchmark.summaries(), meta())
    if args.sheet:
        benchmark.contact_sheet(nearest).save(args.sheet)


if __name__ == "__main__":
    main()
