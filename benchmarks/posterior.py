"""Samples of every method compared with exact posterior samples, for a prior whose posterior is known.

    python -m benchmarks.posterior --json out.json [--images 16] [--samples 64] [--noises 0.05] [--methods ddnm mmps]

The prior is a mixture of factor analyzers on 16x16 color emoji (`training/posterior/fit.py`). Images x0 are drawn from
it and measured by five operators as y = A x0 + noise n, and each method draws samples of x0 given y. The scores are
averaged over the images:

- residual: RMS of y - A x0; that of exact samples is close to the noise;
- mean_error: RMS distance of the sample mean from the exact posterior mean;
- cov_error: RMS distance of the variances of the samples from the exact ones along 32 random directions, divided by the
  mean of the exact ones;
- sw2, energy: sliced Wasserstein-2 distance and the root of the energy distance to as many exact samples, per
  dimension;
- log_p: log density of the samples under the prior, per dimension; samples that are too smooth have a larger one;
- spread: standard deviation of the samples over that of the exact posterior.

Under a mask, the distances are over the masked entries only. 'exact' is a second exact draw and gives the floor.
`moment_matching_posterior` is also run with fewer Jacobian products per noise level, and with products at higher noise.
Runs that are in the file are not repeated. Rows of 'moment_matching, GMRES' are of the solver of version 0.1.0 (commit
de98268), which is no longer here.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from adhere.core.constraints import Linear, mask_of
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import CountingDenoiser
from adhere.core.filters import Blur, Downsample
from adhere.core.noise import randn
from adhere.core.operators import Gray, LinearOperator, Mask
from adhere.core.presets import PRESETS
from adhere.core.sampling import Sampler
from adhere.core.schedules import DDPMSchedule
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.testing.priors import FactorMixture, GaussianMixture
from benchmarks.tables import Row, load, meta, save, table

PRIOR_FILE = Path(__file__).parent / "data" / "emoji_prior.safetensors"
NOISES = (0.02, 0.05, 0.2)
COLUMNS = ("nfe", "residual", "mean_error", "cov_error", "sw2", "energy", "log_p", "spread", "seconds")
SIZE_PIXELS = 16
NOT_RUN_BY_DEFAULT = {"newton_exact": "it takes 770 evaluations per noise level"}


def _variant(jacobian_products: int, fusion_snr: float, product_center: float) -> Sampler:
    """The preset `moment_matching_posterior` with other settings, which were chosen on draws with the seeds 2 to 4."""
    sampler = PRESETS["moment_matching_posterior"]
    assert isinstance(sampler.solver, MomentMatching)
    changed = {"jacobian_products": jacobian_products, "fusion_snr": fusion_snr, "product_center": product_center}
    return replace(sampler, solver=replace(sampler.solver, **changed))


SAMPLERS: dict[str, Sampler] = {name: sampler for name, sampler in PRESETS.items() if name != "plain"} | {
    "moment_matching_posterior, product_center=-0.6": _variant(2, 0.6, -0.6),
    "moment_matching_posterior, jacobian_products=1, product_center=-0.6": _variant(1, 0.6, -0.6),
    "moment_matching_posterior, jacobian_products=0, fusion_snr=1": _variant(0, 1.0, 0.0),
}


def emoji_prior() -> FactorMixture:
    """Return the fitted prior, in float64."""
    tensors = {name: value.double() for name, value in load_file(PRIOR_FILE).items()}
    weights = tensors["weights"] / tensors["weights"].sum()
    return FactorMixture(
        weights, tensors["means"], tensors["loadings"], tensors["noise_variance"].reshape(tensors["means"].shape)
    )


def operators(generator: Generator) -> dict[str, LinearOperator]:
    """Return the operators by title; the generator draws the known pixels of one of them."""
    left = torch.zeros(1, 1, SIZE_PIXELS, SIZE_PIXELS, dtype=torch.float64)
    left[..., : SIZE_PIXELS // 2] = 1
    pixels = (torch.rand(1, 1, SIZE_PIXELS, SIZE_PIXELS, generator=generator, dtype=torch.float64) < 0.25).double()
    return {
        "left half": Mask(left),
        "down-sampling x4": Downsample(4),
        "25 % of pixels": Mask(pixels),
        "blur 1.2 px": Blur(1.2),
        "gray": Gray(),
    }


def sliced_w2(a: Tensor, b: Tensor, num_projections: int = 256) -> float:
    """Return the sliced Wasserstein-2 distance of two sets of samples.

    It is scaled such that a shift by s in every entry gives s.

    Args:
        a: Samples (N, n).
        b: Samples (N, n).
        num_projections: The number of random directions.
    """
    generator = Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], num_projections, generator=generator, dtype=a.dtype)
    directions = directions / directions.norm(dim=0) * a.shape[1] ** 0.5
    difference = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(difference.square().mean().sqrt()) / a.shape[1] ** 0.5


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Return the root of 2 E|a - b| - E|a - a'| - E|b - b'|, per dimension, for samples (N, n) and (M, n).

    Source: Székely and Rizzo, *Energy statistics* (2013).
    """

    def mean_distance(x: Tensor, y: Tensor, num_pairs: int) -> Tensor:
        return torch.cdist(x, y).sum() / num_pairs

    between = mean_distance(a, b, len(a) * len(b))
    within = mean_distance(a, a, len(a) * (len(a) - 1)) + mean_distance(b, b, len(b) * (len(b) - 1))
    return float((2 * between - within).clamp_min(0) / a.shape[1] ** 0.5) ** 0.5


@dataclass(frozen=True)
class Problem:
    """The measurement of one image, its exact posterior, and exact samples (N, 3, 16, 16) to compare with."""

    constraint: Linear
    posterior: GaussianMixture
    exact: Tensor

    def compared_entries(self, x: Tensor) -> Tensor:
        """Return the entries of x (..., 3, 16, 16) that are compared, (..., n): under a mask, the masked ones."""
        known = mask_of(self.constraint)
        return x.flatten(-3) if known is None else x[..., known[0, 0] == 0].flatten(-2)

    def measure(self, samples: Tensor, prior: FactorMixture) -> dict[str, float]:
        """Return the scores of the module's docstring for samples (N, 3, 16, 16)."""
        x, exact = self.compared_entries(samples), self.compared_entries(self.exact)
        n = x.shape[1]
        index = self.compared_entries(torch.arange(prior.size).view(prior.shape))
        covariance = self.posterior.covariance[index][:, index]
        directions = torch.randn(n, 32, generator=Generator().manual_seed(0), dtype=x.dtype)
        exact_variances = (directions * (covariance @ directions)).sum(0)
        variance_errors = (x @ directions).var(0) - exact_variances
        return {
            "residual": float(self.constraint.residual_norm(samples).square().mean().sqrt()),
            "mean_error": float((x.mean(0) - self.compared_entries(self.posterior.mean)).square().mean().sqrt()),
            "cov_error": float(variance_errors.square().mean().sqrt() / exact_variances.mean()),
            "sw2": sliced_w2(x, exact),
            "energy": energy_distance(x, exact),
            "log_p": float(prior.log_density(samples).mean()) / prior.size,
            "spread": float((x.var(0).mean() / covariance.diag().mean()).sqrt()),
        }


def problems(
    prior: FactorMixture, noise: float, num_images: int, num_samples: int, seed: int = 1
) -> Iterator[tuple[str, list[Problem]]]:
    """Yield the title and the problems of each operator, one problem per image.

    Args:
        prior: The prior.
        noise: The standard deviation of the measurement's noise.
        num_images: The number of images.
        num_samples: The number of exact samples per image.
        seed: The seed of the images and of the known pixels.
    """
    generator = Generator().manual_seed(seed)
    images = prior.sample(num_images, generator)
    for title, operator in operators(generator).items():
        found = []
        for x0 in images.split(1):
            clean = operator(x0)
            n = torch.randn(clean.shape, generator=generator, dtype=clean.dtype)
            constraint = Linear(operator, clean + noise * n * operator.measurement_support(clean), noise)
            posterior = prior.posterior(operator, constraint.y[0], noise)
            found.append(Problem(constraint, posterior, posterior.sample(num_samples, generator)))
        yield f"{title}, noise {noise:g}", found


def run_method(
    sampler: Sampler, prior: FactorMixture, constraint: Linear, num_samples: int, seed: int
) -> tuple[Tensor, int]:
    """Return samples (N, 3, 16, 16) given the constraint, and the number of evaluations."""
    denoiser = CountingDenoiser(prior.denoiser(DDPMSchedule.from_betas()))
    generator = Generator().manual_seed(seed)
    noise = randn((num_samples, *prior.shape), constraint.y, generator)
    sampler = sampler.for_model(1.0, _covariance(prior))
    *_, last = sampler.trajectory(denoiser, constraint, noise, generator)
    return last.x0, denoiser.nfe


@cache
def _covariance(prior: FactorMixture) -> StationaryCovariance:
    """Return the covariance model, fitted to draws that no problem uses."""
    return StationaryCovariance.fit(prior.sample(4000, Generator().manual_seed(99)))


def compare(methods: dict[str, Sampler], prior: FactorMixture, task: str, items: list[Problem]) -> list[Row]:
    """Return a row per image for each method that supports the operator, and for 'exact'."""
    rows = []
    for (item, problem), name in product(enumerate(items), ["exact", *methods]):
        if name != "exact" and not methods[name].solver.supports(problem.constraint):
            continue
        begin = time.perf_counter()
        if name == "exact":
            samples, nfe = problem.posterior.sample(len(problem.exact), Generator().manual_seed(1000 + item)), 0
        else:
            samples, nfe = run_method(methods[name], prior, problem.constraint, len(problem.exact), seed=item)
        seconds = time.perf_counter() - begin
        scores = problem.measure(samples, prior)
        rows.append(Row(task, str(item), name, seed=item, nfe=nfe, seconds=seconds, scores=scores))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; runs that are in it are not repeated")
    parser.add_argument("--images", type=int, default=16, help="number of images per operator")
    parser.add_argument("--samples", type=int, default=64, help="number of samples per image")
    parser.add_argument("--noises", nargs="+", type=float, default=list(NOISES), help="noises of the measurements")
    default_methods = [name for name in SAMPLERS if name not in NOT_RUN_BY_DEFAULT]
    parser.add_argument("--methods", nargs="+", choices=list(SAMPLERS), default=default_methods)
    args = parser.parse_args()
    if args.images < 1 or args.samples < 2:
        parser.error(f"{args.images} images, {args.samples} samples: at least 1 and 2 are needed for a covariance")
    prior = emoji_prior()
    rows, sizes = [], {"images": args.images, "samples": args.samples}
    if args.json.exists():
        rows, about = load(args.json)
        if (found := {key: about.get(key) for key in sizes}) != sizes:
            parser.error(f"{args.json} has {found}, not {sizes}: use these numbers, or name another file")
    done = {(row.task, row.method) for row in rows}
    with torch.no_grad():  # not inference_mode: dps differentiates the prior
        for noise in args.noises:
            for task, items in problems(prior, noise, args.images, args.samples):
                missing = {name: SAMPLERS[name] for name in args.methods if (task, name) not in done}
                found = compare(missing, prior, task, items) if missing else []
                rows += [row for row in found if row.method != "exact" or (task, "exact") not in done]
                save(args.json, rows, meta() | sizes)
                print(table([row for row in rows if row.task == task], COLUMNS), flush=True)


if __name__ == "__main__":
    main()
