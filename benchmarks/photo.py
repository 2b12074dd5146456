"""Repairing and denoising real photographs with the shipped model, beside what a CPU user would pick instead.

    python -m benchmarks.photo --json out.json [--sheet sheet.png] [--methods moment_matching ddnm] [--model FOLDER]

Astronaut, chelsea, coffee and rocket (scikit-image; never trained on), centre-cropped to 256x256, under the three
committed masks: a text overlay, 30 % in strokes about 8 px wide, one 48x48 hole. Every result has its known pixels put
back. Reported: PSNR over the repainted pixels, the distance of EfficientNet-Lite0 features over the whole picture, the
residual before the known pixels are put back, seconds and NFE. Rivals: scikit-image's biharmonic inpainting, OpenCV's
Telea. The denoising row is one call of the network on noise of 25/255, beside scikit-image's non-local means at its
best of three strengths.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from skimage import data
from skimage.restoration import denoise_nl_means, inpaint_biharmonic

from adhere import ConstrainedPipeline, Inpaint
from adhere.core.schedule import log_snr
from adhere.core.solvers import METHODS
from adhere.images import picture_from
from benchmarks import masks
from benchmarks.features import FeatureDistance
from benchmarks.rows import Row, load, meta, save, table
from benchmarks.sheets import sheet

PICTURES = ("astronaut", "chelsea", "coffee", "rocket")
NOISE = 25 / 255
COLUMNS = ("psnr", "feature_distance", "residual", "nfe", "seconds")
DEFAULT_METHODS = ("moment_matching_calm", "moment_matching", "inexact_newton", "ddnm")


def picture(name: str) -> np.ndarray:
    """uint8 (256, 256, 3), the centre of one of scikit-image's pictures."""
    return centre(getattr(data, name)())


def centre(image: np.ndarray) -> np.ndarray:
    """uint8 (256, 256, 3) of a larger picture."""
    top, left = (image.shape[0] - masks.SIZE) // 2, (image.shape[1] - masks.SIZE) // 2
    return np.ascontiguousarray(image[top : top + masks.SIZE, left : left + masks.SIZE, :3])


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Of two uint8 arrays, in dB."""
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / error))


def biharmonic(image: np.ndarray, repaint: np.ndarray) -> np.ndarray:
    """scikit-image's, (H, W, 3) uint8 under a mask (H, W), True = repaint."""
    return (inpaint_biharmonic(image, repaint, channel_axis=-1).clip(0, 1) * 255).round().astype(np.uint8)


def telea(image: np.ndarray, repaint: np.ndarray) -> np.ndarray:
    """OpenCV's, of the same."""
    return cv2.inpaint(image, repaint.astype(np.uint8) * 255, 3, cv2.INPAINT_TELEA)


RIVALS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"biharmonic": biharmonic, "telea": telea}


def repairs(
    pipe: ConstrainedPipeline, methods: list[str], seeds: list[int], task: str, item: str, done: set[tuple[str, int]]
) -> Iterator[tuple[Row, np.ndarray]]:
    """What every rival, and every method with every seed, makes of one picture under one mask, and what it cost.

    done: the (method, seed) to leave out.
    """
    repaint = masks.load(task)
    damaged = np.where(repaint[..., None], 0, picture(item)).astype(np.uint8)
    for name, repair in RIVALS.items():
        if (name, 0) in done:
            continue
        begin = time.perf_counter()
        result = repair(damaged, repaint)
        yield Row(task, item, name, 0, 0, time.perf_counter() - begin), result
    for name, seed in product(methods, seeds):
        if (name, seed) in done:
            continue
        out = pipe(Inpaint(damaged, repaint), solver=name, generator=torch.Generator().manual_seed(seed))
        assert not isinstance(out, tuple)
        row = Row(task, item, name, seed, out.nfe, out.seconds, scores={"residual": out.error[0]})
        yield row, np.asarray(out.images[0])


def inpainting(
    pipe: ConstrainedPipeline, methods: list[str], seeds: list[int], rows: list[Row], path: Path
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Add to the rows those that are missing, scored, and save them; the new results themselves by (task, item)."""
    distance = FeatureDistance()
    results: dict[tuple[str, str], list[np.ndarray]] = {}
    for task in masks.MASKS:
        for item in PICTURES:
            original, repaint = picture(item), masks.load(task)
            done = {(row.method, row.seed) for row in rows if (row.task, row.item) == (task, item)}
            for row, result in repairs(pipe, methods, seeds, task, item, done):
                with torch.inference_mode():
                    far = float(distance(picture_from(result).tensor(), picture_from(original).tensor()))
                scores = {"psnr": psnr(result[repaint], original[repaint]), "feature_distance": far}
                rows.append(replace(row, scores=scores | row.scores))
                results.setdefault((task, item), []).append(result)
                save(path, rows, meta())
        print(table([row for row in rows if row.task == task], COLUMNS), flush=True)
    return results


def denoising(pipe: ConstrainedPipeline) -> list[Row]:
    """One call of the network on each noisy picture, beside non-local means."""
    rows: list[Row] = []
    denoiser = pipe.denoiser()
    t = denoiser.schedule.time_at(-np.log(2 * NOISE))  # x_t / alpha_t = x0 + 2 NOISE eps, in [-1, 1] units
    alpha_t, _ = denoiser.schedule(t)
    for item in PICTURES:
        original = picture(item)
        generator = torch.Generator().manual_seed(0)
        noisy = picture_from(original).tensor() + 2 * NOISE * torch.randn(
            1, 3, masks.SIZE, masks.SIZE, generator=generator
        )
        begin = time.perf_counter()
        with torch.inference_mode():
            x0 = denoiser(alpha_t * noisy, t)
        seconds = time.perf_counter() - begin
        found = ((x0[0].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).round().astype(np.uint8)
        scores = {"psnr": psnr(found, original)}
        rows.append(Row("denoising", item, "adhere-photo, one call", 0, 1, seconds, scores=scores))
        rows.append(non_local_means(item, original, ((noisy[0].permute(1, 2, 0).numpy() + 1) / 2)))
    print(f"log-SNR {log_snr(denoiser.schedule, t):.2f}\n" + table(rows, ("psnr", "nfe", "seconds")), flush=True)
    return rows


def non_local_means(item: str, original: np.ndarray, noisy: np.ndarray) -> Row:
    """scikit-image's, with the strength h that suits this picture best, told the noise."""
    best = 0.0
    begin = time.perf_counter()
    for strength in (0.4, 0.6, 0.8):
        found = denoise_nl_means(
            noisy, patch_size=5, patch_distance=6, h=strength * NOISE, sigma=NOISE, fast_mode=True, channel_axis=-1
        )
        best = max(best, psnr((found.clip(0, 1) * 255).round().astype(np.uint8), original))
    return Row("denoising", item, "nlm", 0, 0, (time.perf_counter() - begin) / 3, scores={"psnr": best})


def strip(task: str, item: str, results: list[np.ndarray]) -> list[np.ndarray]:
    """A row of the contact sheet."""
    original = picture(item)
    return [original, np.where(masks.load(task)[..., None], 255, original).astype(np.uint8), *results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go; what is there is not run again")
    parser.add_argument("--sheet", type=Path, help="a contact sheet of what this run made: original, damaged, methods")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of every method; rivals need none")
    parser.add_argument("--model", type=Path, help="a diffusers folder instead of the shipped model")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = ConstrainedPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    rows = load(args.json)[0] if args.json.exists() else denoising(pipe)
    results = inpainting(pipe, args.methods, args.seeds, rows, args.json)
    if args.sheet and results:
        sheet([strip(task, item, found) for (task, item), found in results.items()]).save(args.sheet)


if __name__ == "__main__":
    main()
