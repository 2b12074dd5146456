"""Inpainting and denoising of photographs with the shipped model, compared with classical methods for the CPU.

    python -m benchmarks.photo --json out.json [--grid grid.png] [--methods moment_matching ddnm] [--model FOLDER]
        [--one-network]

The photographs are astronaut, chelsea, coffee and rocket of scikit-image, the middle 256x256 pixels; the model was not
trained on them. The masks of benchmarks.masks are a text, strokes over 30 % of the pixels, and two square holes. Known
pixels are pasted back into every result. The scores are PSNR over the masked pixels, the distance of EfficientNet-Lite0
features over the whole picture, and the residual before known pixels are pasted back. The baselines are scikit-image's
biharmonic inpainting and OpenCV's Telea. Denoising is one evaluation of the network at noise 25/255, compared with
scikit-image's non-local means at the best of three strengths. With --one-network, the model's network for low noise,
`unet_2`, is left out, and the methods are called '..., one network'. Rows of 'moment_matching, GMRES' are of the solver
and the model of version 0.1.0 (commit de98268), which are no longer here.
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

import adhere
from adhere.core.presets import PRESETS
from adhere.core.schedules import log_snr
from adhere.io.images import as_picture
from adhere.metrics import FeatureDistance, psnr
from adhere.pipelines.base import ConstrainedPipeline
from benchmarks import masks
from benchmarks.grids import grid, to_uint8
from benchmarks.masks import SIZE_PIXELS
from benchmarks.tables import Row, load, meta, save, table

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
NOISE = 25 / 255
COLUMNS = ("psnr", "feature_distance", "residual", "nfe", "seconds")
DEFAULT_METHODS = ("moment_matching", "moment_matching_fast", "moment_matching_posterior", "inexact_newton", "ddnm")


def photograph(name: str) -> np.ndarray:
    """Return the middle of a picture of scikit-image, (256, 256, 3) uint8."""
    return center_crop(getattr(data, name)())


def center_crop(image: np.ndarray) -> np.ndarray:
    """Return the middle 256x256 pixels of a picture (H, W, 3 or more), (256, 256, 3) uint8."""
    top, left = (image.shape[0] - SIZE_PIXELS) // 2, (image.shape[1] - SIZE_PIXELS) // 2
    return np.ascontiguousarray(image[top : top + SIZE_PIXELS, left : left + SIZE_PIXELS, :3])


def psnr_uint8(a: np.ndarray, b: np.ndarray) -> float:
    """Return the PSNR of two uint8 arrays of one shape, in dB."""
    first, second = (torch.from_numpy(np.ascontiguousarray(x)).double()[None] for x in (a, b))
    return float(psnr(first, second, data_range=255))


def biharmonic(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaint a picture (H, W, 3), uint8, with scikit-image; the mask is (H, W), True = inpaint."""
    return (inpaint_biharmonic(image, mask, channel_axis=-1).clip(0, 1) * 255).round().astype(np.uint8)


def telea(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Inpaint a picture (H, W, 3), uint8, with OpenCV; the mask is (H, W), True = inpaint."""
    return cv2.inpaint(image, mask.astype(np.uint8) * 255, 3, cv2.INPAINT_TELEA)


ONE_NETWORK = ", one network"  # the end of a method's name
BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"biharmonic": biharmonic, "telea": telea}


def inpainted(
    pipe: ConstrainedPipeline, methods: list[str], seeds: list[int], task: str, item: str, done: set[tuple[str, int]]
) -> Iterator[tuple[Row, np.ndarray]]:
    """Yield the row and the result of each baseline, and of each method with each seed, on one picture.

    Args:
        pipe: The model.
        methods: Names of presets.
        seeds: The seeds of the methods; the baselines have none.
        task: The name of the mask.
        item: The name of the photograph.
        done: (method, seed) that are left out.
    """
    mask = masks.load(task)
    damaged = np.where(mask[..., None], 0, photograph(item)).astype(np.uint8)
    for name, inpaint in BASELINES.items():
        if (name, 0) in done:
            continue
        begin = time.perf_counter()
        result = inpaint(damaged, mask)
        yield Row(task, item, name, 0, 0, time.perf_counter() - begin), result
    one_network = ONE_NETWORK if pipe.components["unet_2"] is None else ""
    for name, seed in product(methods, seeds):
        if (name + one_network, seed) in done:
            continue
        out = pipe(adhere.Inpaint(damaged, mask), solver=name, generator=torch.Generator().manual_seed(seed))
        row = Row(task, item, name + one_network, seed, out.nfe, out.seconds, scores={"residual": out.residual[0]})
        yield row, np.asarray(out.images[0])


def inpainting(
    pipe: ConstrainedPipeline, methods: list[str], seeds: list[int], rows: list[Row], path: Path
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Add the missing rows to `rows`, save them, and return the new results by (mask, photograph)."""
    distance = FeatureDistance()
    results: dict[tuple[str, str], list[np.ndarray]] = {}
    for task in masks.MASKS:
        for item in PHOTOGRAPHS:
            original, mask = photograph(item), masks.load(task)
            done = {(row.method, row.seed) for row in rows if (row.task, row.item) == (task, item)}
            for row, result in inpainted(pipe, methods, seeds, task, item, done):
                with torch.inference_mode():
                    feature_distance = float(distance(as_picture(result).tensor(), as_picture(original).tensor()))
                scores = {"psnr": psnr_uint8(result[mask], original[mask]), "feature_distance": feature_distance}
                rows.append(replace(row, scores=scores | row.scores))
                results.setdefault((task, item), []).append(result)
                save(path, rows, meta())
        print(table([row for row in rows if row.task == task], COLUMNS), flush=True)
    return results


def denoising(pipe: ConstrainedPipeline) -> list[Row]:
    """Return the rows of one evaluation of the network on each noisy photograph, and of non-local means."""
    rows: list[Row] = []
    denoiser = pipe.make_denoiser()
    t = denoiser.schedule.t_from_log_snr(-np.log(2 * NOISE))  # x_t / alpha_t = x0 + 2 NOISE eps, for x0 in [-1, 1]
    alpha_t, _ = denoiser.schedule(t)
    for item in PHOTOGRAPHS:
        original = photograph(item)
        eps = torch.randn(1, 3, SIZE_PIXELS, SIZE_PIXELS, generator=torch.Generator().manual_seed(0))
        noisy = as_picture(original).tensor() + 2 * NOISE * eps
        begin = time.perf_counter()
        with torch.inference_mode():
            x0 = denoiser(alpha_t * noisy, t)
        seconds = time.perf_counter() - begin
        scores = {"psnr": psnr_uint8(to_uint8(x0)[0], original)}
        rows.append(Row("denoising", item, "adhere-photo, one call", 0, 1, seconds, scores=scores))
        rows.append(non_local_means(item, original, (noisy[0].permute(1, 2, 0).numpy() + 1) / 2))
    print(f"log-SNR {log_snr(denoiser.schedule, t):.2f}\n" + table(rows, ("psnr", "nfe", "seconds")), flush=True)
    return rows


def non_local_means(item: str, original: np.ndarray, noisy: np.ndarray) -> Row:
    """Return the row of scikit-image's non-local means, with the noise known and the best of three strengths."""
    best = 0.0
    begin = time.perf_counter()
    for strength in (0.4, 0.6, 0.8):
        denoised = denoise_nl_means(
            noisy, patch_size=5, patch_distance=6, h=strength * NOISE, sigma=NOISE, fast_mode=True, channel_axis=-1
        )
        best = max(best, psnr_uint8((denoised.clip(0, 1) * 255).round().astype(np.uint8), original))
    return Row("denoising", item, "nlm", 0, 0, (time.perf_counter() - begin) / 3, scores={"psnr": best})


def grid_row(task: str, item: str, results: list[np.ndarray]) -> list[np.ndarray]:
    """Return the original, the damaged picture and the results."""
    original = photograph(item)
    return [original, np.where(masks.load(task)[..., None], 255, original).astype(np.uint8), *results]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; runs that are in it are not repeated")
    parser.add_argument("--grid", type=Path, help="write a grid: original, damaged, and the results of this run")
    parser.add_argument("--methods", nargs="+", choices=list(PRESETS), default=list(DEFAULT_METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds of each method")
    parser.add_argument("--model", type=Path, help="a diffusers folder instead of the shipped model")
    parser.add_argument("--one-network", action="store_true", help="leave out the network for low noise")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = adhere.load(args.model, **({"unet_2": None} if args.one_network else {}))
    pipe.set_progress_bar_config(disable=True)
    rows = load(args.json)[0] if args.json.exists() else denoising(pipe)
    results = inpainting(pipe, args.methods, args.seeds, rows, args.json)
    if args.grid and results:
        grid([grid_row(task, item, found) for (task, item), found in results.items()]).save(args.grid)


if __name__ == "__main__":
    main()
