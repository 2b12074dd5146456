"""The verbs for whole photographs, compared with what a user of a CPU would pick instead.

    python -m benchmarks.tasks --json out.json --unseen data/unseen [--grid grid.png] [--tasks denoise colorize]
    python -m benchmarks.tasks --figure docs/images/tasks.png

The photographs are the four of benchmarks.photo and the ten of benchmarks.unseen, 256x256 pixels of the middle. The
tasks are noise 25/255, means over 2x2 and 4x4 pixels, a Gaussian blur of 2 pixels and a motion of 15 pixels with noise
0.002, and the luma with 20 strokes of the true colors. Inputs are rounded to 8 bits and clipped. adhere draws one
sample with its defaults, except for the mean of `denoise`.

Baselines: scikit-image's non-local means at the best of three strengths, Wiener filter and Richardson-Lucy at the best
of seven and five settings for each picture (both on a picture that is extended by reflection), Pillow's Lanczos filter,
and Levin, Lischinski and Weiss, *Colorization using optimization* (2004).

Scores: PSNR, SSIM, the distance of EfficientNet-Lite0 features, the RMS of y - A x in [-1, 1] units, and for colors the
mean CIEDE2000.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from PIL import Image
from scipy.sparse.linalg import splu
from skimage import data, restoration
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

import adhere
from adhere.core.operators import LinearOperator
from adhere.io._samples import luma
from adhere.io.images import as_picture
from adhere.metrics import FeatureDistance
from adhere.pipelines.base import ConstrainedPipeline
from benchmarks import unseen
from benchmarks.grids import grid, label
from benchmarks.photo import PHOTOGRAPHS, psnr_uint8
from benchmarks.tables import Row, load, meta, save, table

SIZE = 256
NOISE = 25 / 255
BLUR_NOISE = 0.002
BLURS = {"deblur, gaussian:2": "gaussian:2", "deblur, motion:15,30": "motion:15,30"}
FACTORS = {"upscale x2": 2, "upscale x4": 4}
TASKS = ("denoise", *FACTORS, *BLURS, "colorize")
COLUMNS = ("psnr", "ssim", "feature_distance", "ciede2000", "residual", "nfe", "seconds")
BALANCES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the Wiener filter
ITERATIONS = (5, 10, 20, 40, 80)  # of Richardson-Lucy
STROKES, STROKE_LENGTH = 20, 24  # pixels

Results = Iterator[tuple[str, float, np.ndarray, int, float]]  # method, seconds, picture, NFE, residual


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Return a picture in about [0, 1] as uint8."""
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Return a picture (H, W, 3) uint8 as (1, 3, H, W) in [-1, 1]."""
    return as_picture(picture).tensor()


def timed(function: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Return the seconds that a function took, and what it returned."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def ours(pipe: ConstrainedPipeline, task: adhere.Upscale | adhere.Denoise | adhere.Deblur | adhere.Colorize) -> Results:
    """Yield the result of adhere with its defaults and seed 0."""
    out = pipe(task, generator=torch.Generator().manual_seed(0))
    yield "adhere", out.seconds, np.asarray(out.images[0]), out.nfe, out.residual[0]


def residual(operator: LinearOperator, picture: np.ndarray, y: np.ndarray) -> float:
    """Return the RMS of y - A x in [-1, 1] units, both given as uint8."""
    return float((to_tensor(y) - operator(to_tensor(picture))).square().mean().sqrt())


def denoised(pipe: ConstrainedPipeline, original: np.ndarray) -> Results:
    """Yield results for white noise."""
    rng = np.random.default_rng(0)
    noisy = to_uint8(original / 255 + rng.normal(0, NOISE, original.shape))
    yield "input", 0.0, noisy, 0, 0.0
    yield from ours(pipe, adhere.Denoise(noisy, 2 * NOISE))

    def filtered(strength: float) -> np.ndarray:
        options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
        return to_uint8(restoration.denoise_nl_means(noisy / 255, h=strength * NOISE, sigma=NOISE, **options))

    found = [timed(lambda s=strength: filtered(s)) for strength in (0.4, 0.6, 0.8)]
    seconds, best = max(found, key=lambda one: psnr_uint8(one[1], original))
    yield "non-local means", seconds, best, 0, residual(adhere.Identity(), best, noisy)


def enlarged(pipe: ConstrainedPipeline, original: np.ndarray, factor: int) -> Results:
    """Yield results for the means over factor x factor pixels."""
    small = Image.fromarray(original).reduce(factor)
    yield from ours(pipe, adhere.Upscale(np.asarray(small), factor))
    for name, filter in (("Lanczos", Image.Resampling.LANCZOS), ("bicubic", Image.Resampling.BICUBIC)):
        seconds, large = timed(lambda f=filter: np.asarray(small.resize((SIZE, SIZE), f)))
        yield name, seconds, large, 0, residual(adhere.Downsample(factor), large, np.asarray(small))


def deblurred(pipe: ConstrainedPipeline, scene: np.ndarray, psf: str) -> Results:
    """Yield results for a blurred picture, whose margin has seen what is outside of it."""
    kernel = adhere.Deblur(scene, psf).kernel
    radius = kernel.shape[0] // 2
    sharp = adhere.Convolve(kernel)(to_tensor(middle(scene, SIZE + 2 * radius)))[0].permute(1, 2, 0).numpy() / 2 + 0.5
    blurred = to_uint8(sharp + np.random.default_rng(0).normal(0, BLUR_NOISE, sharp.shape))
    yield "input", 0.0, blurred, 0, 0.0
    yield from ours(pipe, adhere.Deblur(blurred, psf, 2 * BLUR_NOISE))
    extended = np.pad(blurred / 255, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    weights = kernel.double().numpy()

    def per_channel(restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        x = np.stack([restore(extended[..., c]) for c in range(3)], 2)
        return to_uint8(x[radius:-radius, radius:-radius])

    methods = {
        "Wiener": [lambda x, b=b: restoration.wiener(x, weights, b) for b in BALANCES],
        "Richardson-Lucy": [lambda x, n=n: restoration.richardson_lucy(x, weights, n) for n in ITERATIONS],
    }
    original = middle(scene, SIZE)
    for name, settings in methods.items():
        found = [timed(lambda r=restore: per_channel(r)) for restore in settings]
        seconds, best = max(found, key=lambda one: psnr_uint8(one[1], original))
        yield name, seconds, best, 0, float("nan")


def colored(pipe: ConstrainedPipeline, original: np.ndarray) -> Results:
    """Yield results for the luma and strokes of the true colors."""
    gray = np.asarray(Image.fromarray(original).convert("L"))
    hints = strokes(original)
    yield "input", 0.0, np.dstack([gray] * 3), 0, 0.0
    yield from ours(pipe, adhere.Colorize(gray, hints))
    seconds, best = timed(lambda: levin(gray, hints))
    yield (
        "Levin et al.",
        seconds,
        best,
        0,
        float((luma(to_tensor(best)[0]) - to_tensor(gray)[0]).square().mean().sqrt()),
    )


def strokes(original: np.ndarray) -> np.ndarray:
    """Return hints (H, W, 4), uint8: opaque on STROKES lines of 3 pixels width at random places."""
    rng = np.random.default_rng(0)
    height, width = original.shape[:2]
    alpha = np.zeros((height, width), np.uint8)
    along = np.linspace(-0.5, 0.5, 2 * STROKE_LENGTH) * STROKE_LENGTH
    for _ in range(STROKES):
        y, x, angle = rng.integers(height), rng.integers(width), rng.uniform(0, np.pi)
        rows = np.clip(np.rint(y + along * np.sin(angle)).astype(int), 1, height - 2)
        columns = np.clip(np.rint(x + along * np.cos(angle)).astype(int), 1, width - 2)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                alpha[rows + down, columns + right] = 255
    return np.dstack([original, alpha])


def levin(gray: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """Return a gray picture (H, W) with the chroma of hints (H, W, 4), spread where neighbors have similar luma."""
    height, width = gray.shape
    y, known = gray / 255, hints[..., 3] > 0
    index = np.arange(height * width).reshape(height, width)
    padded_y, padded_index = np.pad(y, 1, constant_values=np.nan), np.pad(index, 1, constant_values=-1)
    offsets = [(down, right) for down in range(3) for right in range(3) if (down, right) != (1, 1)]
    neighbors = np.stack([padded_y[d : d + height, r : r + width] for d, r in offsets])  # (8, H, W)
    columns = np.stack([padded_index[d : d + height, r : r + width] for d, r in offsets])
    squares = np.square(neighbors - y)
    variance = np.nanvar(np.concatenate([neighbors, y[None]]), 0)
    variance = np.maximum(np.maximum(0.6 * variance, np.nanmin(squares, 0) / -np.log(0.01)), 2e-6)
    weights = np.nan_to_num(np.exp(-squares / variance))
    weights /= weights.sum(0)
    used = (columns >= 0) & ~known
    rows = np.broadcast_to(index, columns.shape)[used]
    matrix = scipy.sparse.csc_matrix((-weights[used], (rows, columns[used])), (y.size, y.size))
    factors = splu((matrix + scipy.sparse.identity(y.size)).tocsc())
    chroma = hints[..., :3] / 255 - (hints[..., :3] / 255 @ [0.299, 0.587, 0.114])[..., None]
    spread = [factors.solve(np.where(known, chroma[..., c], 0).ravel()).reshape(y.shape) for c in range(3)]
    return to_uint8(y[..., None] + np.stack(spread, 2))


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the middle side x side pixels of a picture (H, W, 3 or more)."""
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side, :3])


def results(pipe: ConstrainedPipeline, task: str, picture: np.ndarray) -> Results:
    """Yield the results of all methods."""
    original = middle(picture, SIZE)
    if task in BLURS:
        yield from deblurred(pipe, picture[..., :3], BLURS[task])
    elif task in FACTORS:
        yield from enlarged(pipe, original, FACTORS[task])
    elif task == "denoise":
        yield from denoised(pipe, original)
    else:
        yield from colored(pipe, original)


def scores(result: np.ndarray, original: np.ndarray, task: str, distance: FeatureDistance) -> dict[str, float]:
    """Return the scores of a picture, both (H, W, 3) uint8."""
    with torch.inference_mode():
        feature_distance = float(distance(to_tensor(result), to_tensor(original)))
    found = {"psnr": psnr_uint8(result, original), "feature_distance": feature_distance}
    found["ssim"] = float(np.asarray(structural_similarity(result, original, channel_axis=-1)))
    if task == "colorize":
        found["ciede2000"] = float(deltaE_ciede2000(rgb2lab(result), rgb2lab(original)).mean())
    return found


def figure(pipe: ConstrainedPipeline) -> Image.Image:
    """Return a figure of coffee: in the upper row what each verb gets, in the lower what it returns."""
    picture = data.coffee()
    original, columns = middle(picture, SIZE), []
    for task in ("denoise", "deblur, motion:15,30", "upscale x4", "colorize"):
        found = {method: result for method, _, result, _, _ in results(pipe, task, picture)}
        given = found.get("input", original)
        if task == "upscale x4":
            small = Image.fromarray(original).reduce(4)
            given = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.NEAREST))
        if task == "colorize":
            hints = strokes(original)
            given = np.where(hints[..., 3:] > 0, original, given)
        columns.append((given, found["adhere"]))
    return grid([[given for given, _ in columns], [result for _, result in columns]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="write the figure of docs/tasks.md, and nothing else")
    parser.add_argument("--json", type=Path, help="results file; what is in it is not repeated")
    parser.add_argument("--unseen", type=Path, default=Path("data/unseen"), help="folder that benchmarks.unseen wrote")
    parser.add_argument("--grid", type=Path, help="write a grid: a row per task and picture, the original first")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = adhere.load()
    pipe.set_progress_bar_config(disable=True)
    if args.figure:
        figure(pipe).save(args.figure)
        return
    if not args.json:
        parser.error("give --json or --figure")
    pictures = {name: getattr(data, name)() for name in PHOTOGRAPHS} | unseen.photographs(args.unseen)
    rows: list[Row] = load(args.json)[0] if args.json.exists() else []
    distance, lines = FeatureDistance(), []
    for task in args.tasks:
        for name, picture in pictures.items():
            heading = f"{task}, {'four' if name in PHOTOGRAPHS else 'ten'} photographs"
            if any((row.task, row.item) == (heading, name) for row in rows):
                continue
            original = middle(picture, SIZE)
            found = list(results(pipe, task, picture))
            for method, seconds, result, nfe, rms in found:
                all_scores = scores(result, original, task, distance) | {"residual": rms}
                rows.append(Row(heading, name, method, 0, nfe, seconds, scores=all_scores))
            lines.append([label(f"{task}, {name}", SIZE), original, *(result for _, _, result, _, _ in found)])
            save(args.json, rows, meta())
        for heading in dict.fromkeys(row.task for row in rows if row.task.startswith(task)):
            print(heading + "\n" + table([row for row in rows if row.task == heading], COLUMNS), flush=True)
    if args.grid and lines:
        grid(lines).save(args.grid)


if __name__ == "__main__":
    main()
