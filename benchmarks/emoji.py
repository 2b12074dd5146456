"""Eight tasks on one hundred held-out emoji, with each method at its own or at given numbers of network evaluations.

    python -m benchmarks.emoji --json out.json [--grid grid.png] [--items 10] [--methods ddnm dps] [--tasks half x4]
        [--nfe 40 220] [--prompts without with] [--model FOLDER] [--train data/emoji]

The model was not trained on these emoji (benchmarks.held_out). The tasks are the right half, a box and strokes; super-
resolution x4 and x8 through the decoder; a coarse layout of colors, a silhouette and a style. Each is run without or
with the caption of the emoji as the prompt.

NFE is the number of forward passes (under guidance, the two of one call count as one). `work` adds 2 for every backward
pass. The residual is that before known pixels are pasted back. PSNR over the masked region, the distance of
EfficientNet-Lite0 features, and the Fréchet distance of these features between all results and all originals are those
after. Seconds are those of the batch, divided by the number of its emoji. In latents, ddnm is known as blending; it is
run under masks only. With --train, the PSNR in the masked region to the training picture that is closest to the result
there is added, which shows whether the model has memorized it.

Rows are saved after every batch, and the pictures in a folder beside the file. Runs that are in the file are not
repeated. A Fréchet distance in the file is kept if there are no pictures of its runs. Rows of 'moment_matching, GMRES'
are of the solver of version 0.1.0 (commit de98268), which is no longer here. benchmarks.peak measures memory and the
gradients of the decoder.
"""

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adhere.core.presets import PRESETS
from adhere.metrics import FeatureDistance, frechet_distance, psnr
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.prompts import PromptInputs
from benchmarks import held_out
from benchmarks.emoji_tasks import TASKS, EmojiTask, own_nfe, quiet_pipeline, reason_not_run, run, sampler_for_budget
from benchmarks.grids import grid, label, split, to_tensor, to_uint8
from benchmarks.held_out import SIZE_PIXELS
from benchmarks.tables import ALL, Row, load, meta, save, table

COLUMNS = ("psnr", "feature_distance", "frechet", "residual", "nearest_psnr", "nfe", "work", "seconds")
DEFAULT_METHODS = (
    "moment_matching",
    "moment_matching_fast",
    "moment_matching_posterior",
    "inexact_newton",
    "ddnm",
    "dps",
    "mpgd",
)


class Results:
    """Rows in a JSON file, and the pictures of each task and method as a grid in a folder beside it, item by item."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path, self.names = path, names
        rows = load(path)[0] if path.exists() else []
        self.rows = [row for row in rows if row.item != ALL]
        self.summaries = {(row.task, row.method): row for row in rows if row.item == ALL}

    def missing(self, task: str, method: str) -> list[int]:
        """Return the indices of the items without a row."""
        done = {row.item for row in self.rows if (row.task, row.method) == (task, method)}
        return [i for i, name in enumerate(self.names) if name not in done]

    def complete(self) -> list[tuple[str, str]]:
        """Return (task, method) of which all items have a row."""
        found = dict.fromkeys((row.task, row.method) for row in self.rows)
        return [group for group in found if not self.missing(*group)]

    def pictures(self, task: str, method: str) -> np.ndarray:
        """Return the pictures (100, 64, 64, 3), white for items without one."""
        if (file := self._file(task, method)).exists():
            with Image.open(file) as image:
                return split(image, SIZE_PIXELS, held_out.COUNT)
        return np.full((held_out.COUNT, SIZE_PIXELS, SIZE_PIXELS, 3), 255, np.uint8)

    def add(self, rows: list[Row], index: list[int], pictures: np.ndarray) -> None:
        """Write rows of one task and method, and their pictures, to disk."""
        task, method = rows[0].task, rows[0].method
        all_pictures = self.pictures(task, method)
        all_pictures[index] = pictures
        file = self._file(task, method)
        file.parent.mkdir(parents=True, exist_ok=True)
        columns = held_out.COLUMNS
        grid([all_pictures[i : i + columns] for i in range(0, held_out.COUNT, columns)]).save(file)
        self.rows += rows
        self.summaries.pop((task, method), None)
        self.save()

    def has_pictures(self, task: str, method: str) -> bool:
        """Return whether the pictures of a task and method are beside the file; they are not under version control."""
        return self._file(task, method).exists()

    def save(self) -> None:
        """Write the file."""
        save(self.path, self.rows + list(self.summaries.values()), meta())

    def _file(self, task: str, method: str) -> Path:
        return self.path.with_suffix("") / f"{task} {method}.png".replace(", ", " ").replace(" @ ", " ")


class Benchmark:
    """The model, the items and the metrics that all runs use."""

    def __init__(self, pipe: ConstrainedPipeline, results: Results, items: int, guidance_scale: float) -> None:
        self.pipe, self.results, self.guidance_scale = pipe, results, guidance_scale
        self.items, pictures = held_out.load(items)
        self.x = to_tensor(pictures)
        self.distance = FeatureDistance()

    def measure(self, task: str, name: str, nfe: int | None, prompted: bool, batch: int) -> None:
        """Run one method on the items of one task that have no row.

        Args:
            task: A name in TASKS.
            name: The name of a preset.
            nfe: The budget of evaluations; None: the preset's own.
            prompted: Whether the caption is the prompt.
            batch: The number of items per batch.
        """
        nfe = own_nfe(name, self.pipe.schedule()) if nfe is None else nfe
        title, method = task + (", prompt" if prompted else ""), f"{name} @ {nfe}"
        if not (missing := self.results.missing(title, method)):
            return
        if reason := reason_not_run(name, self.pipe.to_latent_constraint(TASKS[task](self.x[:1]).constraint)):
            print(f"{task}: {name} is not run, because {reason}")
            return
        sampler, work = sampler_for_budget(name, nfe, self.pipe.schedule())
        for index in (missing[i : i + batch] for i in range(0, len(missing), batch)):
            x = self.x[index]
            emoji_task = TASKS[task](x)
            prompts = PromptInputs(len(index))
            if prompted:
                captions = [self.items[i].caption for i in index]
                prompts = PromptInputs(len(index), captions, guidance_scale=self.guidance_scale)
            generators = [torch.Generator().manual_seed(i) for i in index]
            results, calls, seconds = run(self.pipe, emoji_task.constraint, sampler, prompts, generators)
            pictures, scores = self.score(emoji_task, x, results)
            rows = [
                Row(title, self.items[i].name, method, i, calls, seconds / len(index), scores=one | {"work": work})
                for i, one in zip(index, scores, strict=True)
            ]
            self.results.add(rows, index, pictures)

    @torch.inference_mode()
    def score(self, task: EmojiTask, x: Tensor, results: Tensor) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Return the results with their known pixels pasted back, and the scores of each.

        Args:
            task: The task of the batch.
            x: The originals, (B, 3, 64, 64).
            results: The samples, (B, 3, 64, 64).
        """
        scores = {"residual": task.constraint.residual_norm(results)}
        if task.mask is not None:
            results = torch.where(task.mask == 1, results, x)
        pictures = to_uint8(results)
        if task.mask is not None:
            rounded = to_tensor(pictures)
            scores |= {"psnr": psnr(rounded, x, task.mask), "feature_distance": self.distance(rounded, x)}
        return pictures, [{key: float(value[i]) for key, value in scores.items()} for i in range(len(x))]

    @torch.inference_mode()
    def summarize(self) -> None:
        """Add one row per task and method with the Fréchet distance of all items and their mean seconds."""
        for task, method in self.results.complete() if len(self.x) > 1 else []:
            if (task, method) in self.results.summaries or not self.results.has_pictures(task, method):
                continue
            x = to_tensor(self.results.pictures(task, method)[: len(self.x)])
            rows = [row for row in self.results.rows if (row.task, row.method) == (task, method)]
            seconds = sum(row.seconds for row in rows) / len(rows)
            scores = {"frechet": frechet_distance(self.distance.pooled(x), self.distance.pooled(self.x))}
            self.results.summaries[task, method] = Row(task, ALL, method, 0, rows[0].nfe, seconds, scores=scores)
        self.results.save()

    def compare_with_training(self, folder: Path) -> dict[tuple[str, str], np.ndarray]:
        """Add the score nearest_psnr where a task has a mask, and return the nearest training pictures.

        Args:
            folder: The folder that training.emoji.fetch wrote.

        Returns:
            The pictures (N, 64, 64, 3) by (task, method).
        """
        train, _ = held_out.read_split(folder, "train")
        nearest = {}
        for task, method in self.results.complete():
            mask = TASKS[task.removesuffix(", prompt")](self.x[:1]).mask
            if mask is None or not self.results.has_pictures(task, method):
                continue
            pictures = self.results.pictures(task, method)[: len(self.x)]
            index = nearest_pictures(pictures, train, mask[0, 0].bool().numpy())
            found = nearest[task, method] = np.stack([train[i] for i in index])
            values = psnr(to_tensor(pictures), to_tensor(found), mask).tolist()
            score = {item.name: {"nearest_psnr": value} for item, value in zip(self.items, values, strict=True)}
            self.results.rows = [
                replace(row, scores=row.scores | score.get(row.item, {}))
                if (row.task, row.method) == (task, method)
                else row
                for row in self.results.rows
            ]
        return nearest

    def contact_sheet(self, nearest: dict[tuple[str, str], np.ndarray], columns: int = 10) -> Image.Image:
        """Return a grid of the first items: for each task what is given, the results and the originals.

        Args:
            nearest: The nearest training pictures; those of the first method are shown.
            columns: The number of items.
        """
        rows: list[tuple[str, np.ndarray]] = []
        originals = to_uint8(self.x)
        groups = [group for group in self.results.complete() if self.results.has_pictures(*group)]
        for task in dict.fromkeys(task for task, _ in groups):
            given = to_uint8(TASKS[task.removesuffix(", prompt")](self.x[:columns]).given)
            rows.append((f"{task}: given", given))
            methods = [method for other, method in groups if other == task]
            rows += [(method, self.results.pictures(task, method)) for method in methods]
            if (task, methods[0]) in nearest:
                rows.append((f"trained on,\nnearest to\n{methods[0]}", nearest[task, methods[0]]))
            rows.append(("original", originals))
        return grid([[label(text, SIZE_PIXELS), *pictures[: min(columns, len(self.x))]] for text, pictures in rows])


def nearest_pictures(pictures: np.ndarray, train: np.ndarray, mask: np.ndarray) -> list[int]:
    """Return for each picture the index of the training picture with the smallest squared difference in a region.

    Args:
        pictures: (N, H, W, 3), uint8.
        train: The training pictures, (M, H, W, 3), uint8.
        mask: The region, bool (H, W).
    """
    a = torch.from_numpy(pictures[:, mask].reshape(len(pictures), -1)).float() / 255  # (N, 3 * number of pixels)
    best, found = torch.full((len(pictures),), torch.inf), torch.zeros(len(pictures), dtype=torch.long)
    for start in range(0, len(train), 1000):
        b = torch.from_numpy(train[start : start + 1000][:, mask].reshape(-1, a.shape[1])).float() / 255
        distance, index = torch.cdist(a, b).min(1)
        found = torch.where(distance < best, index + start, found)
        best = best.minimum(distance)
    return found.tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; runs that are in it are not repeated")
    parser.add_argument("--grid", type=Path, help="write a grid of the results of the first ten items")
    parser.add_argument(
        "--items", type=int, default=held_out.COUNT, help="number of items; the first 10 are of 10 kinds"
    )
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=list(PRESETS), default=list(DEFAULT_METHODS))
    parser.add_argument(
        "--nfe", nargs="+", type=int, default=[None], help="evaluations per picture; by default, the preset's own"
    )
    parser.add_argument("--prompts", nargs="+", choices=["without", "with"], default=["without"])
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="guidance scale of the prompts")
    parser.add_argument("--batch", type=int, default=20, help="items per batch")
    parser.add_argument("--model", default="adhere-emoji", help="a diffusers folder instead of the shipped model")
    parser.add_argument("--train", type=Path, help="the training data, to find the nearest picture to each result")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = quiet_pipeline(args.model)
    results = Results(args.json, [item.name for item in held_out.load(args.items)[0]])
    benchmark = Benchmark(pipe, results, args.items, args.guidance_scale)
    for task, prompt in product(args.tasks, args.prompts):
        for nfe, name in product(args.nfe, args.methods):
            benchmark.measure(task, name, nfe, prompt == "with", args.batch)
        title = task + (", prompt" if prompt == "with" else "")
        benchmark.summarize()
        rows = [*results.rows, *results.summaries.values()]
        print(table([row for row in rows if row.task == title], COLUMNS), flush=True)
    nearest = benchmark.compare_with_training(args.train) if args.train else {}
    results.save()
    if args.grid:
        benchmark.contact_sheet(nearest).save(args.grid)


if __name__ == "__main__":
    main()
