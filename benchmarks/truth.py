"""Every method against exact posterior sampling, on a prior whose posterior is known.

    python -m benchmarks.truth --json out.json [--images 16] [--samples 64] [--noises 0.05] [--methods ddnm mmps]

The prior is a mixture of factor analysers on 16x16 colour emoji (`training/truth/fit.py`); x0 is drawn from it,
measured as y = A x0 + noise n by five operators, and each method draws samples of x0 given y. Reported, averaged over
the images:

- residual: RMS of y - A x0 (an exact sample's is near the noise);
- mean_error: RMS distance of the sample mean from the exact posterior mean;
- cov_error: RMS distance of the samples' covariance from the exact one along 32 random directions, over its mean;
- sw2, energy: sliced Wasserstein-2 and energy distance (its root) to as many exact samples, per dimension;
- log_p: log density of the samples under the prior, per dimension (too high: too smooth);
- spread: standard deviation of the samples over the exact posterior's.

Under a mask the distances are over the unknown entries only. 'exact' is a second, independent exact draw: the floor.
What is in the file already, a method on a task, is not run again.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from adhere.core.constraints import Linear
from adhere.core.denoise import Counted
from adhere.core.operators import Blur, Downsample, Gray, Mask, Operator, measured
from adhere.core.priors import FactorMixture, GaussianMixture
from adhere.core.sample import end_of, serves
from adhere.core.schedule import Discrete
from adhere.core.solvers import METHODS, Method
from benchmarks.rows import Row, load, meta, save, table

PRIOR = Path(__file__).parent / "data" / "emoji_prior.safetensors"
NOISES = (0.02, 0.05, 0.2)
COLUMNS = ("nfe", "residual", "mean_error", "cov_error", "sw2", "energy", "log_p", "spread", "seconds")
SIDE = 16


def emoji_prior() -> FactorMixture:
    """The fitted prior, in float64."""
    tensors = {name: value.double() for name, value in load_file(PRIOR).items()}
    weights = tensors["weights"] / tensors["weights"].sum()
    return FactorMixture(
        weights, tensors["means"], tensors["loadings"], tensors["noise_variance"].reshape(tensors["means"].shape)
    )


def operators(generator: Generator) -> dict[str, Operator]:
    """By the title of their table; the generator draws the pixels that one of them knows."""
    left = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    left[..., : SIDE // 2] = 1
    pixels = (torch.rand(1, 1, SIDE, SIDE, generator=generator, dtype=torch.float64) < 0.25).double()
    return {
        "left half": Mask(left),
        "down-sampling x4": Downsample(4),
        "25 % of pixels": Mask(pixels),
        "blur 1.2 px": Blur(1.2),
        "gray": Gray(),
    }


def sliced_w2(a: Tensor, b: Tensor, projections: int = 256) -> float:
    """Sliced Wasserstein-2 distance of two equally large sets (N, n), scaled: a shift by s in every entry is s."""
    generator = Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=a.dtype)
    directions = directions / directions.norm(dim=0) * a.shape[1] ** 0.5
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt()) / a.shape[1] ** 0.5


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Root of 2 E|a - b| - E|a - a'| - E|b - b'| for two sets (N, n) (Szekely & Rizzo, 2013), per dimension."""

    def apart(x: Tensor, y: Tensor, pairs: int) -> Tensor:
        return torch.cdist(x, y).sum() / pairs

    across = apart(a, b, len(a) * len(b))
    within = apart(a, a, len(a) * (len(a) - 1)) + apart(b, b, len(b) * (len(b) - 1))
    return float((2 * across - within).clamp_min(0) / a.shape[1] ** 0.5) ** 0.5


@dataclass(frozen=True)
class Problem:
    """What was measured of one image, its exact posterior, and draws from that to compare with."""

    constraint: Linear
    posterior: GaussianMixture
    exact: Tensor  # (N, 3, 16, 16)

    def pick(self, x: Tensor) -> Tensor:
        """The entries that are compared, (..., n): under a mask the unknown ones."""
        operator = self.constraint.operator
        if isinstance(operator, Mask):
            return x[..., operator.known[0, 0] == 0].flatten(-2)
        return x.flatten(-3)

    def measure(self, drawn: Tensor, prior: FactorMixture) -> dict[str, float]:
        """The figures of the module's docstring for samples (N, 3, 16, 16)."""
        found, exact = self.pick(drawn), self.pick(self.exact)
        n = found.shape[1]
        index = self.pick(torch.arange(prior.size).view(prior.shape))
        covariance = self.posterior.covariance[index][:, index]
        directions = torch.randn(n, 32, generator=Generator().manual_seed(0), dtype=found.dtype)
        wanted = (directions * (covariance @ directions)).sum(0)  # the exact variances along the directions
        return {
            "residual": float(self.constraint.error(drawn).square().mean().sqrt()),
            "mean_error": float((found.mean(0) - self.pick(self.posterior.mean)).square().mean().sqrt()),
            "cov_error": float(((found @ directions).var(0) - wanted).square().mean().sqrt() / wanted.mean()),
            "sw2": sliced_w2(found, exact),
            "energy": energy_distance(found, exact),
            "log_p": float(prior.log_density(drawn).mean()) / prior.size,
            "spread": float((found.var(0).mean() / covariance.diag().mean()).sqrt()),
        }


def problems(
    prior: FactorMixture, noise: float, images: int, samples: int, seed: int = 1
) -> Iterator[tuple[str, list[Problem]]]:
    """For each operator its title, and a problem for each image; another seed draws other images."""
    generator = Generator().manual_seed(seed)
    truths = prior.sample(images, generator)
    for title, operator in operators(generator).items():
        found = []
        for x0 in truths.split(1):
            clean = operator(x0)
            n = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
            constraint = Linear(operator, clean + noise * n * measured(operator, clean), noise)
            posterior = prior.posterior(operator, constraint.y[0], noise)
            found.append(Problem(constraint, posterior, posterior.sample(samples, generator)))
        yield f"{title}, noise {noise:g}", found


def run_method(method: Method, prior: FactorMixture, constraint: Linear, samples: int, seed: int) -> tuple[Tensor, int]:
    """Samples (N, 3, 16, 16) given the constraint, and the evaluations they cost."""
    denoiser = Counted(prior.denoiser(Discrete.from_betas()))
    generator = Generator().manual_seed(seed)
    timesteps = method.levels(denoiser.schedule, method.steps)
    shape = (samples, *prior.shape)
    return end_of(method.states(denoiser, constraint, shape, timesteps, constraint.y, generator)), denoiser.nfe


def compare(methods: dict[str, Method], prior: FactorMixture, task: str, asked: list[Problem]) -> list[Row]:
    """A row for every image and method, and for 'exact'."""
    rows = []
    for (item, problem), name in product(enumerate(asked), ["exact", *methods]):
        if name != "exact" and not serves(methods[name].solver, problem.constraint):
            continue
        begin = time.perf_counter()
        if name == "exact":
            drawn, nfe = problem.posterior.sample(len(problem.exact), Generator().manual_seed(1000 + item)), 0
        else:
            drawn, nfe = run_method(methods[name], prior, problem.constraint, len(problem.exact), seed=item)
        seconds = time.perf_counter() - begin
        scores = problem.measure(drawn, prior)
        rows.append(Row(task, str(item), name, seed=item, nfe=nfe, seconds=seconds, scores=scores))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--noises", nargs="+", type=float, default=list(NOISES), help="of the measurements")
    constrained = [name for name in METHODS if name != "plain"]
    quick = [name for name in constrained if name != "newton_exact"]  # that one takes 800 evaluations a level
    parser.add_argument("--methods", nargs="+", choices=constrained, default=quick)
    args = parser.parse_args()
    if args.images < 1 or args.samples < 2:
        parser.error(
            f"{args.images} images, {args.samples} samples: at least 1 and 2, for there is a covariance to tell"
        )
    prior = emoji_prior()
    rows, size = [], {"images": args.images, "samples": args.samples}
    if args.json.exists():
        rows, about = load(args.json)
        if (there := {key: about.get(key) for key in size}) != size:
            parser.error(f"{args.json} is of {there}, not {size}: ask for as many, or name another file")
    done = {(row.task, row.method) for row in rows}
    with torch.no_grad():  # not inference_mode: dps takes the prior into a graph
        for noise in args.noises:
            for task, asked in problems(prior, noise, args.images, args.samples):
                missing = {name: METHODS[name] for name in args.methods if (task, name) not in done}
                found = compare(missing, prior, task, asked) if missing else []
                rows += [row for row in found if row.method != "exact" or (task, "exact") not in done]
                save(args.json, rows, meta() | size)
                print(table([row for row in rows if row.task == task], COLUMNS), flush=True)


if __name__ == "__main__":
    main()
