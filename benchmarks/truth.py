"""Every method against exact posterior sampling, on a prior whose posterior is known.

    python -m benchmarks.truth --json out.json [--images 8] [--samples 32] [--methods ddnm moment_matching]

The prior is a mixture of factor analysers on 16x16 colour emoji (`training/truth/fit.py`); x0 is drawn from it,
measured as y = A x0 + 0.05 n by four operators, and each method draws samples of x0 given y. Reported, averaged over
the images:

- residual: RMS of y - A x0 (an exact sample's is near the noise, 0.05);
- mean_error: RMS distance of the sample mean from the exact posterior mean;
- sw2: sliced Wasserstein-2 distance to as many exact samples, per dimension;
- log_p: log density of the samples under the prior, per dimension (too high: too smooth);
- spread: standard deviation of the samples over the exact posterior's.

Under a mask the distances are over the unknown entries only. 'exact' is a second, independent exact draw: the floor.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from adhere.core.constraints import Linear
from adhere.core.denoise import Counted
from adhere.core.operators import Blur, Downsample, Mask, Operator, measured
from adhere.core.priors import FactorMixture
from adhere.core.sample import end_of
from adhere.core.schedule import Discrete
from adhere.core.solvers import METHODS, Method, serves
from benchmarks.rows import Row, meta, save, table

PRIOR = Path(__file__).parent / "data" / "emoji_prior.safetensors"
NOISE = 0.05
COLUMNS = ("nfe", "residual", "mean_error", "sw2", "log_p", "spread", "seconds")


def emoji_prior() -> FactorMixture:
    """The fitted prior, in float64."""
    tensors = {name: value.double() for name, value in load_file(PRIOR).items()}
    weights = tensors["weights"] / tensors["weights"].sum()
    return FactorMixture(
        weights, tensors["means"], tensors["loadings"], tensors["noise_variance"].reshape(tensors["means"].shape)
    )


def operators(generator: Generator) -> dict[str, Operator]:
    """By the title of their table; the generator draws the pixels that one of them knows."""
    left = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    left[..., :8] = 1
    pixels = (torch.rand(1, 1, 16, 16, generator=generator, dtype=torch.float64) < 0.25).double()
    return {
        "left half": Mask(left),
        "down-sampling x4": Downsample(4),
        "25 % of pixels": Mask(pixels),
        "blur 1.2 px": Blur(1.2),
    }


def sliced_w2(a: Tensor, b: Tensor, projections: int = 256) -> float:
    """Sliced Wasserstein-2 distance of two equally large sets (N, n), scaled: a shift by s in every entry is s."""
    generator = Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=a.dtype)
    directions = directions / directions.norm(dim=0) * a.shape[1] ** 0.5
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt()) / a.shape[1] ** 0.5


def run_method(method: Method, prior: FactorMixture, constraint: Linear, samples: int, seed: int) -> tuple[Tensor, int]:
    """Samples (N, 3, 16, 16) given the constraint, and the evaluations they cost."""
    denoiser = Counted(prior.denoiser(Discrete.from_betas()))
    generator = Generator().manual_seed(seed)
    timesteps = method.levels(denoiser.schedule, method.steps)
    shape = (samples, *prior.shape)
    return end_of(method.states(denoiser, constraint, shape, timesteps, constraint.y, generator)), denoiser.nfe


def measure(
    drawn: Tensor, exact: Tensor, mean: Tensor, std: float, unknown: Tensor, constraint: Linear, prior: FactorMixture
) -> dict[str, float]:
    """The figures of the module's docstring for samples (N, 3, 16, 16) of one image."""
    pick: Callable[[Tensor], Tensor] = lambda x: x[..., unknown]  # noqa: E731
    return {
        "residual": float(constraint.error(drawn).square().mean().sqrt()),
        "mean_error": float(pick(drawn.mean(0) - mean).square().mean().sqrt()),
        "sw2": sliced_w2(pick(drawn).flatten(1), pick(exact).flatten(1)),
        "log_p": float(prior.log_density(drawn).mean()) / prior.size,
        "spread": float(pick(drawn).var(0).mean().sqrt()) / std,
    }


def benchmark(methods: dict[str, Method], images: int, samples: int) -> list[Row]:
    """A row for every operator, image and method, and for 'exact'; prints each operator's table on the way."""
    prior = emoji_prior()
    generator = Generator().manual_seed(1)
    truths = prior.sample(images, generator)
    rows: list[Row] = []
    for task, operator in operators(generator).items():
        for item in range(images):
            clean = operator(truths[item : item + 1])
            noise = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
            constraint = Linear(operator, clean + NOISE * noise * measured(operator, clean), NOISE)
            posterior = prior.posterior(operator, constraint.y[0], NOISE)
            exact = posterior.sample(samples, generator)
            unknown = operator.known[0, 0] == 0 if isinstance(operator, Mask) else torch.ones(16, 16, dtype=torch.bool)
            std = float(posterior.covariance.diag().reshape(prior.shape)[..., unknown].mean().sqrt())
            for name in ["exact", *methods]:
                if name != "exact" and not serves(methods[name].solver, constraint):
                    continue
                begin = time.perf_counter()
                if name == "exact":
                    drawn, nfe = posterior.sample(samples, generator), 0
                else:
                    drawn, nfe = run_method(methods[name], prior, constraint, samples, seed=item)
                seconds = time.perf_counter() - begin
                scores = measure(drawn, exact, posterior.mean, std, unknown, constraint, prior)
                rows.append(Row(task, str(item), name, seed=item, nfe=nfe, seconds=seconds, scores=scores))
        print(table([row for row in rows if row.task == task], COLUMNS), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--samples", type=int, default=32)
    constrained = [name for name in METHODS if name != "plain"]
    quick = [name for name in constrained if name != "newton_exact"]  # that one takes 800 evaluations a level
    parser.add_argument("--methods", nargs="+", choices=constrained, default=quick)
    args = parser.parse_args()
    with torch.no_grad():  # not inference_mode: dps takes the prior into a graph
        rows = benchmark({name: METHODS[name] for name in args.methods}, args.images, args.samples)
    save(args.json, rows, meta())


if __name__ == "__main__":
    main()
