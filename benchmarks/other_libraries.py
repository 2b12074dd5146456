# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# (deepinv and azula are installed in .venv-libraries only)
"""Methods of other libraries, through their own APIs, on the networks, pictures and measurements of this project.

    make bench-libraries      # in .venv-libraries, because deepinv needs torchvision, which needs a torch of its own
    python -m benchmarks.other_libraries posterior --json out.json [--images 4] [--samples 16] [--work 40 100]
    python -m benchmarks.other_libraries photo --json out.json [--tasks strokes hole] [--work 40 100]

`posterior` uses the exact prior, the measurements and the scores of benchmarks.posterior; `photo` uses adhere-photo and
the pictures and masks of benchmarks.photo. Each library gets the denoiser in its own form (deepinv: a denoiser of a
noise level; azula: a Denoiser; diffusers: a network that predicts the noise), its documented settings, and as many
steps as `work` allows, where a backward pass counts as two evaluations. A method with a strength gets the best of
STRENGTHS, which are factors on the documented strength. On exact priors the best one has the smallest mean error over
two images that are not scored, for each operator; on photographs it has the highest PSNR under the strokes, on two
pictures of scikit-learn. Samples are drawn one at a time, because azula's DPS divides its step by the norm of the whole
batch.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import azula.denoise
import azula.guidance
import azula.linalg.covariance
import azula.noise
import azula.sample
import deepinv
import numpy as np
import torch
from azula.guidance.dps import DPSSampler
from azula.guidance.mmps import MMPSDenoiser
from azula.guidance.pgdm import PGDMSampler
from diffusers.pipelines.deprecated.repaint.pipeline_repaint import RePaintPipeline
from diffusers.schedulers.scheduling_repaint import RePaintScheduler
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from adhere.core.constraints import Linear, mask_of
from adhere.core.denoisers import CountingDenoiser, Denoiser
from adhere.core.operators import Mask
from adhere.core.presets import PRESETS
from adhere.core.schedules import DDPMSchedule, Schedule
from adhere.io.images import as_picture
from adhere.metrics import FeatureDistance
from benchmarks import masks, posterior
from benchmarks.emoji_tasks import quiet_pipeline
from benchmarks.grids import to_uint8
from benchmarks.photo import PHOTOGRAPHS, center_crop, photograph, psnr_uint8
from benchmarks.tables import Row, load, meta, save, table

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
TUNING_PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # they are not scored
LOG_SNR_MIN, LOG_SNR_MAX = -2.7, 3.5  # the defaults of log_snr_spacing
OWN_METHODS = ("moment_matching_posterior", "moment_matching", "inexact_newton", "mmps")  # for comparison
NOISE_FLOOR = 0.01  # some methods divide by the noise


@dataclass(frozen=True)
class Problem:
    """A denoiser, and the measurement of one picture in [-1, 1] of shape (1, C, H, W).

    Attributes:
        denoiser: The denoiser.
        constraint: The measurement.
        shape: (1, C, H, W).
        strength: The factor on the documented strength of the method.
    """

    denoiser: Denoiser
    constraint: Linear
    shape: tuple[int, ...]
    strength: float = 1.0

    @property
    def noise(self) -> float:
        """The standard deviation of the noise, at least NOISE_FLOOR."""
        return max(float(self.constraint.noise), NOISE_FLOOR)


class AzulaSchedule(azula.noise.Schedule):
    """A schedule with uniform log-SNR: t = 1 at LOG_SNR_MIN and t = 0 at LOG_SNR_MAX, at the nearest times."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def time(self, t: Tensor) -> float:
        return self.schedule.t_from_log_snr(LOG_SNR_MAX + (LOG_SNR_MIN - LOG_SNR_MAX) * float(t))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self.schedule(self.time(one)) for one in t.flatten()]
        alpha_t, sigma_t = torch.tensor(pairs).to(t).T
        return alpha_t.view_as(t), sigma_t.view_as(t)


class AzulaDenoiser(azula.denoise.Denoiser):
    """A denoiser for azula."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser, self.schedule = denoiser, AzulaSchedule(denoiser.schedule)

    def forward(self, x_t: Tensor, t: Tensor, **_: object) -> azula.denoise.DiracPosterior:
        return azula.denoise.DiracPosterior(mean=self.denoiser(x_t, self.schedule.time(t)))


def run_azula(sampler: azula.sample.Sampler, problem: Problem) -> Tensor:
    """Sample; the last step ends at LOG_SNR_MAX, so one more call denoises the result, as in azula's tutorials."""
    x_1 = sampler.init(problem.shape).to(problem.constraint.y.dtype)
    x_0 = sampler(x_1)
    return sampler.denoiser(x_0, torch.tensor(0.0, dtype=torch.float64)).mean


def azula_mmps(sampler: Callable[..., azula.sample.Sampler], iterations: int) -> Callable[[Problem, int], Tensor]:
    """Return the method MMPSDenoiser(solver="gmres") with one of azula's samplers."""

    def run(problem: Problem, steps: int) -> Tensor:
        denoiser = MMPSDenoiser(
            AzulaDenoiser(problem.denoiser),
            y=problem.constraint.y,
            A=problem.constraint.operator,
            cov_y=azula.linalg.covariance.IsotropicCovariance(problem.noise**2),
            solver="gmres",
            iterations=iterations,
        )
        return run_azula(sampler(denoiser, steps=steps, silent=True, dtype=torch.float64), problem)

    return run


def azula_dps(problem: Problem, steps: int) -> Tensor:
    denoiser = AzulaDenoiser(problem.denoiser)
    sampler = DPSSampler(
        denoiser, problem.constraint.y, problem.constraint.operator, zeta=problem.strength, steps=steps,
        silent=True, dtype=torch.float64,
    )  # fmt: skip
    return run_azula(sampler, problem)


def azula_pgdm(problem: Problem, steps: int) -> Tensor:
    operator = problem.constraint.operator
    sampler = PGDMSampler(
        AzulaDenoiser(problem.denoiser), problem.constraint.y, operator, A_inv=pseudo_inverse(problem), eta=1.0,
        steps=steps, silent=True, dtype=torch.float64,
    )  # fmt: skip
    return run_azula(sampler, problem)


def pseudo_inverse(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Return A^+ of an operator with A A^T proportional to I: a mask, down-sampling or gray, but not a blur."""
    operator, y = problem.constraint.operator, problem.constraint.y
    scale = operator(operator.adjoint(torch.ones_like(y))).amax()
    return lambda y: operator.adjoint(y) / scale


class DeepinvDenoiser(nn.Module):
    """A denoiser for deepinv, whose pictures are in [0, 1] and whose noise levels are in units of these."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor | float, **_: object) -> Tensor:
        noise = max(float(torch.as_tensor(sigma).flatten()[0]), 1e-4)
        t = self.denoiser.schedule.t_from_log_snr(-float(np.log(2 * noise)))
        alpha_t, _sigma_t = self.denoiser.schedule(t)
        x0 = self.denoiser((alpha_t * (2 * x - 1)).to(self.denoiser.dtype), t)
        return ((x0 + 1) / 2).to(x.dtype)


def deepinv_physics(problem: Problem) -> tuple[deepinv.physics.LinearPhysics, Tensor]:
    """Return the operator as deepinv's physics and the measurement, both for pictures in [0, 1]."""
    operator, y = problem.constraint.operator, problem.constraint.y
    y_unit = ((y + operator(torch.ones(problem.shape, dtype=y.dtype))) / 2).float()
    noise = deepinv.physics.GaussianNoise(problem.noise / 2)
    if (known := mask_of(problem.constraint)) is not None:
        mask = known.expand(problem.shape)[0].float()  # 1 = known, as in deepinv
        return deepinv.physics.Inpainting(mask=mask, img_size=problem.shape[1:], noise_model=noise), y_unit
    forward = lambda x, **_: operator(x)  # noqa: E731
    adjoint = lambda y, **_: operator.adjoint(y)  # noqa: E731
    return deepinv.physics.LinearPhysics(A=forward, A_adjoint=adjoint, noise_model=noise), y_unit


def deepinv_dps(problem: Problem, steps: int) -> Tensor:
    physics, y = deepinv_physics(problem)
    model = deepinv.sampling.DPS(DeepinvDenoiser(problem.denoiser), num_steps=steps, weight=problem.strength)
    return 2 * model(y, physics, x_init=problem.shape) - 1


def deepinv_ddrm(problem: Problem, steps: int) -> Tensor:
    physics, y = deepinv_physics(problem)
    model = deepinv.sampling.DDRM(DeepinvDenoiser(problem.denoiser), sigmas=np.linspace(1, 0, steps))
    return 2 * model(y, physics) - 1


def deepinv_diffpir(problem: Problem, steps: int) -> Tensor:
    physics, y = deepinv_physics(problem)
    denoiser, fidelity = DeepinvDenoiser(problem.denoiser), deepinv.optim.data_fidelity.L2()
    lambda_ = 7 * problem.strength
    model = deepinv.sampling.DiffPIR(denoiser, fidelity, sigma=problem.noise / 2, max_iter=steps, lambda_=lambda_)
    return 2 * model(y, physics, x_init=physics.A_adjoint(y)) - 1


class EpsilonNetwork(nn.Module):
    """A denoiser as a network of diffusers, which predicts the noise."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha_t, sigma_t = self.denoiser.schedule(float(t))
        x_t = x_t.to(self.denoiser.dtype)
        return SimpleNamespace(sample=((x_t - alpha_t * self.denoiser(x_t, float(t))) / sigma_t).float())


def diffusers_repaint(problem: Problem, steps: int) -> Tensor:
    """Run RePaint with a third as many noise levels as evaluations; each jump is repeated three times."""
    known = mask_of(problem.constraint)
    assert known is not None
    pipe = RePaintPipeline(EpsilonNetwork(problem.denoiser), RePaintScheduler())
    pipe.set_progress_bar_config(disable=True)
    mask = known.expand(problem.shape).float()  # 1 = known, as in RePaintPipeline
    length, repeats = max(1, steps // 20), 3
    out = pipe(
        problem.constraint.y.float(), mask, num_inference_steps=max(2, steps // repeats), jump_length=length,
        jump_n_sample=repeats, eta=1.0, output_type="np",
    )  # fmt: skip
    return 2 * torch.from_numpy(out.images).permute(0, 3, 1, 2) - 1


@dataclass(frozen=True)
class LibraryMethod:
    """A method of another library.

    Attributes:
        run: Maps (problem, number of steps) to a sample.
        work_per_step: The evaluations of a step plus two for each backward pass.
        masks_only: Whether the method is for inpainting only.
        needs_tight_operator: Whether the method needs an operator with A A^T proportional to I, which a blur is not.
        is_tuned: Whether the method has a strength.
    """

    run: Callable[[Problem, int], Tensor]
    work_per_step: int
    masks_only: bool = False
    needs_tight_operator: bool = False
    is_tuned: bool = False

    def supports(self, constraint: Linear) -> bool:
        """Return whether the method can be used with a constraint."""
        if mask_of(constraint) is None and self.masks_only:
            return False
        return constraint.operator.is_tight or not self.needs_tight_operator


LIBRARY_METHODS = {
    "azula DPS": LibraryMethod(azula_dps, work_per_step=3, is_tuned=True),
    "azula PiGDM": LibraryMethod(azula_pgdm, work_per_step=3, needs_tight_operator=True),
    "azula MMPS (gmres, 1), DDPM": LibraryMethod(azula_mmps(azula.sample.DDPMSampler, 1), work_per_step=7),
    "azula MMPS (gmres, 3), DDPM": LibraryMethod(azula_mmps(azula.sample.DDPMSampler, 3), work_per_step=15),
    "azula MMPS (gmres, 3), Ito": LibraryMethod(azula_mmps(azula.sample.ItoSampler, 3), work_per_step=15),
    "azula MMPS (gmres, 3), Adams-Bashforth": LibraryMethod(azula_mmps(azula.sample.xEABSampler, 3), work_per_step=15),
    "deepinv DPS": LibraryMethod(deepinv_dps, work_per_step=3, is_tuned=True),
    "deepinv DDRM": LibraryMethod(deepinv_ddrm, work_per_step=1, masks_only=True),
    "deepinv DiffPIR": LibraryMethod(deepinv_diffpir, work_per_step=1, is_tuned=True),
    "diffusers RePaint": LibraryMethod(diffusers_repaint, work_per_step=1, masks_only=True),
}


def run(name: str, problem: Problem, work: int, seed: int) -> tuple[Tensor, int, int, float]:
    """Return one sample (1, C, H, W), and its evaluations, backward passes and seconds."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    denoiser = CountingDenoiser(problem.denoiser)
    begin = time.perf_counter()
    sample = LIBRARY_METHODS[name].run(
        replace(problem, denoiser=denoiser), max(2, work // LIBRARY_METHODS[name].work_per_step)
    )
    seconds = time.perf_counter() - begin
    return sample.detach().to(problem.constraint.y.dtype), denoiser.nfe, denoiser.num_backward, seconds


def best_strength_for_means(name: str, work: int, tuning: list[posterior.Problem]) -> float:
    """Return the strength with the smallest distance of the mean of four samples from the exact posterior mean."""

    def mean_squared_error(strength: float) -> float:
        errors = []
        for p in tuning:
            samples = [run(name, with_exact_denoiser(p, strength), work, seed)[0] for seed in range(4)]
            errors.append(float((torch.cat(samples).mean(0) - p.posterior.mean).square().mean()))
        return float(np.nan_to_num(np.mean(errors), nan=np.inf))

    return min(STRENGTHS, key=mean_squared_error)


def with_exact_denoiser(p: posterior.Problem, strength: float = 1.0) -> Problem:
    """Return a problem of benchmarks.posterior with the exact denoiser."""
    prior = posterior.emoji_prior()
    return Problem(prior.denoiser(DDPMSchedule.from_betas()), p.constraint, (1, *prior.shape), strength)


class Results:
    """Rows in a file; runs that are in it are not repeated. Pictures are written to a folder beside it."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.with_suffix("")
        self.rows = load(path)[0] if path.exists() else []
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, task: str, method: str) -> bool:
        return any((row.task, row.method) == (task, method) for row in self.rows)

    def add(self, rows: list[Row]) -> None:
        if rows:
            self.rows += rows
            save(self.path, self.rows, meta())
            print(table([row for row in self.rows if row.task == rows[0].task]), flush=True)


def on_exact_priors(args: argparse.Namespace, results: Results) -> None:
    """Add rows as in benchmarks.posterior, for methods of other libraries and of this project."""
    prior = posterior.emoji_prior()
    scored_problems = posterior.problems(prior, args.noise, args.images, args.samples)
    tuning_problems = posterior.problems(prior, args.noise, 2, args.samples, seed=2)
    for (task, scored), (_, tuning) in zip(scored_problems, tuning_problems, strict=True):
        if not results.has(task, "exact"):
            rows = posterior.compare({name: PRESETS[name] for name in OWN_METHODS}, prior, task, scored)
            results.add([row if row.method == "exact" else replace(row, method=f"adhere {row.method}") for row in rows])
        for name, work in product(args.methods, args.work):
            method, title = LIBRARY_METHODS[name], f"{name} @ {work}"
            if results.has(task, title) or not method.supports(scored[0].constraint):
                continue
            strength = best_strength_for_means(name, work, tuning) if method.is_tuned else 1.0
            rows = []
            for item, p in enumerate(scored):
                problem = with_exact_denoiser(p, strength)
                runs = [run(name, problem, work, seed) for seed in range(args.samples)]
                samples, nfe, backward, seconds = zip(*runs, strict=True)
                scores = p.measure(torch.cat(samples), prior)
                scores |= {"work": nfe[0] + 2 * backward[0], "strength": strength}
                rows.append(Row(task, str(item), title, 0, nfe[0], sum(seconds), scores=scores))
            results.add(rows)


@torch.no_grad()
def on_photographs(args: argparse.Namespace, results: Results) -> None:
    """Add rows as in benchmarks.photo, with seed 0."""
    denoiser, distance = quiet_pipeline("adhere-photo").make_denoiser(), FeatureDistance()

    def inpaint(name: str, work: int, task: str, original: np.ndarray, strength: float) -> tuple[Row, np.ndarray]:
        mask, x = masks.load(task), as_picture(original).tensor()
        known = torch.from_numpy(~mask)[None, None].float()
        problem = Problem(denoiser, Linear(Mask(known), known * x), tuple(x.shape), strength)
        sample, nfe, backward, seconds = run(name, problem, work, seed=0)
        result = to_uint8(torch.where(known == 1, x, sample).nan_to_num(0))[0]
        scores = {
            "psnr": psnr_uint8(result[mask], original[mask]),
            "feature_distance": float(distance(as_picture(result).tensor(), x)),
            "residual": float(problem.constraint.residual_norm(sample)),
            "work": nfe + 2 * backward,
            "strength": strength,
        }
        return Row(task, "", f"{name} @ {work}", 0, nfe, seconds, scores=scores), result

    @cache
    def best_strength(name: str, work: int) -> float:
        tuning = [center_crop(load_sample_image(file)) for file in TUNING_PHOTOGRAPHS]
        return max(STRENGTHS, key=lambda s: sum(inpaint(name, work, "strokes", x, s)[0].scores["psnr"] for x in tuning))

    for task, name, work in product(args.tasks, args.methods, args.work):
        title, rows = f"{name} @ {work}", []
        for item in PHOTOGRAPHS if not results.has(task, title) else ():
            strength = best_strength(name, work) if LIBRARY_METHODS[name].is_tuned else 1.0
            row, result = inpaint(name, work, task, photograph(item), strength)
            rows.append(replace(row, item=item))
            Image.fromarray(result).save(results.folder / f"{task} {item} {title}.png")
        results.add(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=["posterior", "photo"])
    parser.add_argument("--json", type=Path, required=True, help="results file; runs that are in it are not repeated")
    parser.add_argument("--work", nargs="+", type=int, default=[40, 100], help="evaluations plus two per backward pass")
    parser.add_argument("--methods", nargs="+", choices=list(LIBRARY_METHODS), default=list(LIBRARY_METHODS))
    parser.add_argument("--images", type=int, default=4, help="posterior: number of images per operator")
    parser.add_argument("--samples", type=int, default=16, help="posterior: number of samples per image")
    parser.add_argument("--noise", type=float, default=0.05, help="posterior: noise of the measurements")
    parser.add_argument("--tasks", nargs="+", choices=list(masks.MASKS), default=list(masks.MASKS), help="photo: masks")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    benchmark = {"posterior": on_exact_priors, "photo": on_photographs}[args.benchmark]
    benchmark(args, Results(args.json))


if __name__ == "__main__":
    main()
