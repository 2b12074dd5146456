"""What the verbs guarantee, measured beside what other libraries do.

    python -m benchmarks.guarantees --json out.json [--embed docs/results.md] [--figures known gray] [--again]

The photographs are the fourteen of benchmarks.tasks, 256x256 pixels, and the emoji the first EMOJI of
benchmarks.held_out. Every method gets the same files. The figures are

- the share of known pixels that are changed, of photographs under the four masks of benchmarks.masks and of emoji under
  three masks of benchmarks.emoji_tasks;
- the seam ratio: the mean absolute difference of neighbors of which one is masked, over that of neighbors that both are
  known and at most 3 pixels from the mask; both means are over all pictures;
- the mean offset, in levels of 8 bits, of filled discs in plain areas and in photographs of a quarter of their
  brightness, and the largest absolute value of one picture;
- the chroma of a gray photograph: the largest difference of two channels, for files with one channel and with three;
- the RMS error of `upscale` x2 in bands of 8 pixels along the borders of tiles, over that of the other pixels, with
  small tiles of TILE_SIZE pixels, of the same pixels without tiles, and the first over the second.

The other libraries are OpenCV (Telea, Navier-Stokes), scikit-image (biharmonic), Real-ESRGAN (see benchmarks.tasks) and
diffusers' StableDiffusionInpaintPipeline with the components of adhere-emoji, 20 steps and strength 1. Figures that are
in the file are kept, unless --again is given.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import StableDiffusionInpaintPipeline
from PIL import Image
from skimage import data

import adhere
from adhere.core._tiles import spans
from adhere.pipelines.base import ConstrainedPipeline
from adhere.tasks.base import Task
from benchmarks import held_out, masks, unseen
from benchmarks.baselines import BASELINES_PYTHON, navier_stokes, real_esrgan
from benchmarks.emoji_tasks import box, free_form, half, quiet_pipeline
from benchmarks.photo import PHOTOGRAPHS, biharmonic, telea
from benchmarks.tables import ALL, METRICS, Row, embed, load, meta, save
from benchmarks.tasks import SIZE, middle

PHOTO, EMOJI_MODEL = "adhere-photo", "adhere-emoji"
EMOJI = 20
EMOJI_MASKS = {"half": half, "box": box, "free_form": free_form}
STEPS = 20  # of diffusers' pipeline
RING_PIXELS = 3
SEEDS = (0, 1, 2)  # of the offsets
DARK_SHARE = 0.25
DARK_SIDE, DARK_RADIUS = 128, 10
DARK_CENTERS = ((32, 32), (32, 96), (96, 32), (96, 96))
PLAIN_COLORS = ((127, 127, 127), (80, 80, 80), (60, 90, 140), (230, 230, 230))
TILE_SIZE, TILED_SIDE, BAND_PIXELS = 128, 384, 8
FIGURES = ("known", "offset", "gray", "emoji", "tiles")
FILLS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Telea": telea, "Navier-Stokes": navier_stokes, "biharmonic": biharmonic}  # fmt: skip
OURS, DIFFUSERS, REAL_ESRGAN, ORIGINAL = "adhere", "diffusers", "Real-ESRGAN", "original"
COLUMNS = (OURS, *FILLS, DIFFUSERS, REAL_ESRGAN, ORIGINAL)

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of a picture (H, W, 3) uint8 and a mask (H, W)


@cache
def pipeline(model: str) -> ConstrainedPipeline:
    return quiet_pipeline(model)


def ours(task: Task, seed: int = 0, model: str = PHOTO) -> np.ndarray:
    """Return the result of adhere with its defaults."""
    out = pipeline(model)(task, generator=torch.Generator().manual_seed(seed))
    return np.asarray(out.images[0])


def adhere_fill(picture: np.ndarray, mask: np.ndarray, seed: int = 0, model: str = PHOTO) -> np.ndarray:
    return ours(adhere.Inpaint(picture, mask), seed, model)


@cache
def diffusers_pipeline() -> StableDiffusionInpaintPipeline:
    """Return diffusers' inpainting with the components of adhere-emoji."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    components = {name: pipeline(EMOJI_MODEL).components[name] for name in names}
    missing: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
    pipe = StableDiffusionInpaintPipeline(**components, **missing, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def diffusers_fill(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaint an emoji (64, 64, 3), uint8, with diffusers, without a prompt."""
    height, width = mask.shape
    out = diffusers_pipeline()(
        prompt="", image=Image.fromarray(picture), mask_image=Image.fromarray(mask), height=height, width=width,
        strength=1.0, num_inference_steps=STEPS, guidance_scale=1.0, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return np.asarray(out.images[0])  # type: ignore[union-attr]


def neighbors(picture: np.ndarray, mask: np.ndarray, ring: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the absolute differences of neighbors across the edge of the mask, and of those inside the ring."""
    across, inside = [], []
    x = picture.astype(np.float64)
    for first, second in (((slice(1, None), slice(None)), (slice(None, -1), slice(None))),
                          ((slice(None), slice(1, None)), (slice(None), slice(None, -1)))):  # fmt: skip
        difference = np.abs(x[first] - x[second])
        across.append(difference[mask[first] != mask[second]])
        inside.append(difference[ring[first] & ring[second]])
    return across, inside


def ring_of(mask: np.ndarray) -> np.ndarray:
    """Return the pixels outside a mask whose distance from it is at most RING_PIXELS."""
    grown = mask.copy()
    for _ in range(RING_PIXELS):
        padded = np.pad(grown, 1)
        grown = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return grown & ~mask


def seam_ratio(pictures: list[np.ndarray], mask_list: list[np.ndarray]) -> float:
    """Return the mean difference across the edges of masks over that of the rings outside them.

    Args:
        pictures: (H, W, 3) uint8 each.
        mask_list: the mask of each, (H, W), True = inpainted.
    """
    across, inside = [], []
    for picture, mask in zip(pictures, mask_list, strict=True):
        at_edge, in_ring = neighbors(picture, mask, ring_of(mask))
        across += at_edge
        inside += in_ring
    return float(np.concatenate(across).mean() / np.concatenate(inside).mean())


def share_changed(result: np.ndarray, picture: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the pixels outside the mask in which a result differs."""
    return float((result != picture).any(2)[~mask].mean())


def inpainted(
    fills: dict[str, Fill], pictures: dict[str, np.ndarray], mask_by_name: dict[str, np.ndarray], kind: str
) -> Iterator[Row]:
    """Yield the known pixels changed and the seam ratios, of the originals too.

    Args:
        fills: the methods.
        pictures: (H, W, 3) uint8 each.
        mask_by_name: (H, W) each.
        kind: what the pictures are, for the names of the figures.
    """
    for method, fill in {**fills, ORIGINAL: lambda picture, _: picture}.items():
        everything: list[tuple[np.ndarray, np.ndarray]] = []
        changed: list[float] = []
        for name, mask in mask_by_name.items():
            begin = time.perf_counter()
            results = []
            for picture in pictures.values():
                damaged = picture if method == ORIGINAL else np.where(mask[..., None], 0, picture).astype(np.uint8)
                results.append(fill(damaged, mask))
                changed.append(share_changed(results[-1], picture, mask))
            seconds = (time.perf_counter() - begin) / len(results)
            scores = {"seam": seam_ratio(results, [mask] * len(results))}
            yield Row(f"seam ratio, {kind}, {name}", ALL, method, 0, 0, seconds, scores=scores)
            everything += [(result, mask) for result in results]
        scores = {"seam": seam_ratio([one for one, _ in everything], [mask for _, mask in everything])}
        yield Row(f"seam ratio, {kind}, all masks", ALL, method, 0, 0, 0.0, scores=scores)
        if method != ORIGINAL:
            scores = {"changed": fmean(changed)}
            yield Row(f"known pixels changed, {kind}", ALL, method, 0, 0, 0.0, scores=scores)


def photographs(folder: Path) -> dict[str, np.ndarray]:
    """Return the fourteen photographs by name, of different sizes, (H, W, 3 or more) uint8."""
    return {name: getattr(data, name)() for name in PHOTOGRAPHS} | unseen.photographs(folder)


def known(args: argparse.Namespace) -> Iterator[Row]:
    pictures = {name: middle(picture, SIZE) for name, picture in photographs(args.unseen).items()}
    yield from inpainted({OURS: adhere_fill, **FILLS}, pictures, {n: masks.load(n) for n in masks.MASKS}, "photographs")


def emoji(args: argparse.Namespace) -> Iterator[Row]:
    items, pictures = held_out.load(EMOJI)
    fills = {OURS: partial(adhere_fill, model=EMOJI_MODEL), **FILLS, DIFFUSERS: diffusers_fill}
    by_name = {item.code: picture for item, picture in zip(items, pictures, strict=True)}
    yield from inpainted(fills, by_name, {name: make() for name, make in EMOJI_MASKS.items()}, "emoji")


def disc(side: int, center: tuple[int, int], radius: int) -> np.ndarray:
    """Return a mask (side, side) of a disc."""
    rows, columns = np.mgrid[:side, :side]
    return np.asarray((rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2)


def offset(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the mean offset of each picture that is filled, over all seeds."""
    places: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for color in PLAIN_COLORS:
        plain = np.full((DARK_SIDE, DARK_SIDE, 3), color, np.uint8)
        places.append(("plain areas", str(color), plain, disc(DARK_SIDE, (64, 64), 12)))
    discs = np.any([disc(DARK_SIDE, center, DARK_RADIUS) for center in DARK_CENTERS], 0)
    for name, picture in photographs(args.unseen).items():
        small = np.asarray(Image.fromarray(middle(picture, SIZE)).reduce(2))
        places.append(("dark photographs", name, (small * DARK_SHARE).round().astype(np.uint8), discs))
    for method, fill in {OURS: adhere_fill, **FILLS}.items():
        for task, item, picture, mask in places:
            seeds = SEEDS if method == OURS else (0,)
            damaged = np.where(mask[..., None], 255, picture).astype(np.uint8)
            begin = time.perf_counter()
            results = [fill(damaged, mask, seed) if method == OURS else fill(damaged, mask) for seed in seeds]  # type: ignore[call-arg]
            seconds = (time.perf_counter() - begin) / len(seeds)
            difference = np.mean([result[mask] for result in results], 0) - picture[mask]
            scores = {"offset": float(difference.mean())}
            yield Row(f"mean offset, {task}", item, method, 0, 0, seconds, scores=scores)


def chroma(picture: np.ndarray) -> float:
    """Return the largest difference of two channels; 0 for a picture with one channel."""
    return 0.0 if picture.ndim == 2 else float((picture.max(2).astype(int) - picture.min(2)).max())


def gray(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the largest chroma of all verbs for gray photographs with one channel and with three."""
    mask = masks.load("strokes")
    for item in PHOTOGRAPHS:
        plane = np.asarray(Image.fromarray(middle(getattr(data, item)(), SIZE)).convert("L"))
        for title, picture in (("one channel", plane), ("RGB", np.dstack([plane] * 3))):
            small = np.ascontiguousarray(picture[::2, ::2])
            tasks = (adhere.Inpaint(picture, mask), adhere.Outpaint(picture, right=48), adhere.Upscale(small, 2),
                     adhere.Denoise(picture, 0.1), adhere.Deblur(picture, "gaussian:2"))  # fmt: skip
            results = {OURS: [ours(task) for task in tasks]}
            if title == "RGB":
                results |= {name: [fill(picture, mask)] for name, fill in FILLS.items()}
                results[REAL_ESRGAN] = [real_esrgan(Image.fromarray(small), 4, args.baselines)]
            for method, found in results.items():
                scores = {"chroma": max(map(chroma, found))}
                yield Row(f"chroma of gray photographs, {title}", item, method, 0, 0, 0.0, scores=scores)


def bands(side: int) -> np.ndarray:
    """Return the pixels along the borders of tiles, (side, side), True within BAND_PIXELS // 2 of one."""
    borders = {end for span in spans(side, TILE_SIZE, TILE_SIZE // 8) for end in (span.start, span.stop)} - {0, side}
    position = np.arange(side)
    near = np.any([(position >= b - BAND_PIXELS // 2) & (position < b + BAND_PIXELS // 2) for b in borders], 0)
    return np.logical_or(near[:, None], near)


def tiles(args: argparse.Namespace) -> Iterator[Row]:
    """Yield the RMS error in bands along tiles over that of the other pixels, of all pictures together."""
    near, pipe, found = bands(TILED_SIDE), pipeline(PHOTO), []
    pictures = [p for p in photographs(args.unseen).values() if min(p.shape[:2]) >= TILED_SIDE]
    for title, tile_size in (("with tiles", TILE_SIZE), ("without tiles", pipe.tile_size)):
        usual, pipe.tile_size = pipe.tile_size, tile_size
        errors, begin = [], time.perf_counter()
        for picture in pictures:
            original = middle(picture, TILED_SIDE)
            result = ours(adhere.Upscale(np.asarray(Image.fromarray(original).reduce(2)), 2))
            errors.append(np.square(result.astype(np.float64) - original).mean(2))
        pipe.tile_size = usual
        square = np.mean(errors, 0)
        seconds = (time.perf_counter() - begin) / len(pictures)
        found.append(float(np.sqrt(square[near].mean() / square[~near].mean())))
        scores = {"band": found[-1]}
        yield Row(f"error along tile borders, upscale x2, {title}", ALL, OURS, 0, 0, seconds, scores=scores)
    scores = {"band": found[0] / found[1]}
    yield Row("error along tile borders, upscale x2, with over without tiles", ALL, OURS, 0, 0, 0.0, scores=scores)


FUNCTIONS = {"known": known, "offset": offset, "gray": gray, "emoji": emoji, "tiles": tiles}
AIMS = {
    "known": "0",
    "seam": "0.9 to 1.1",
    "mean offset, plain": "-1 to 1",
    "mean offset, dark": "-2 to 2",
    "chroma of gray photographs, one": "0",
    "chroma": "at most 1",
    "error along tile borders, upscale x2, without": "–",
    "error": "0.95 to 1.05",
}


def guarantees_table(rows: list[Row]) -> str:
    """Return Markdown with one line per figure and one column per method."""
    used = [method for method in COLUMNS if any(row.method == method for row in rows)]
    lines = [["figure", "aim", *used], ["---", "---", *("---:" for _ in used)]]
    for task in dict.fromkeys(row.task for row in rows):
        aim = next(text for start, text in AIMS.items() if task.startswith(start))
        mine = {method: [row for row in rows if (row.task, row.method) == (task, method)] for method in used}
        lines.append([task, aim, *(_cell(mine[method]) for method in used)])
        if "offset" in task:
            largest = (_cell(mine[method], lambda values: max(map(abs, values))) for method in used)
            lines.append([f"{task}, largest of one picture", "–", *largest])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(rows: list[Row], combine: Callable[[list[float]], float] = fmean) -> str:
    """One value of several rows as text; of chroma, the largest."""
    if not rows:
        return "–"
    ((metric, _),) = rows[0].scores.items()
    values = [row.scores[metric] for row in rows]
    return format((max if metric == "chroma" else combine)(values), METRICS[metric].format)


def figure_of(row: Row) -> str:
    """Return which of FIGURES measured a row."""
    if "emoji" in row.task:
        return "emoji"
    starts = {"known": "known", "seam": "known", "mean": "offset", "chroma": "gray", "error": "tiles"}
    return starts[row.task.split()[0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; what is in it is not repeated")
    parser.add_argument("--embed", type=Path, metavar="PAGE", help="page whose table is replaced")
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--again", action="store_true", help="measure again what is in the file")
    parser.add_argument("--unseen", type=Path, default=Path("data/unseen"), help="folder that benchmarks.unseen wrote")
    parser.add_argument("--baselines", type=Path, default=BASELINES_PYTHON, help="the Python of `make baselines`")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    rows = load(args.json)[0] if args.json.exists() else []
    if args.again:
        rows = [row for row in rows if figure_of(row) not in args.figures]
    for name in args.figures:
        if not any(figure_of(row) == name for row in rows):
            rows += list(FUNCTIONS[name](args))
            rows.sort(key=lambda row: FIGURES.index(figure_of(row)))
            save(args.json, rows, meta())
    text = guarantees_table(rows)
    print(text)
    if args.embed:
        embed(args.embed, "guarantees", text)


if __name__ == "__main__":
    main()
