# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false
# (deepinv and azula are installed in .venv-peers only)
"""The peer libraries themselves, through their own APIs, on our networks, pictures and measurements.

    make bench-peers          # in .venv-peers: deepinv brings torchvision, which wants a torch of its own
    python -m benchmarks.peers truth --json out.json [--images 4] [--samples 16] [--work 40 100]
    python -m benchmarks.peers photo --json out.json [--tasks strokes hole] [--work 40 100]

truth: the exact prior of benchmarks.truth, drawn, measured and scored as there. photo: the shipped model, the pictures
and masks of benchmarks.photo. Each peer is given our denoiser as its own library wants it (a noise-level denoiser for
deepinv, a Denoiser for azula, an epsilon network for diffusers), its documented defaults, and as many steps as `work`
allows, a backward pass counted as two evaluations. What has a strength gets the best of STRENGTHS, multiples of the
documented one: on truth by mean error, for each operator, on two images that are not scored; on photographs by PSNR
under the strokes, on scikit-learn's two. Samples are drawn one by one: azula's DPS scales its step by the norm over the
whole batch.
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

from adhere.core.constraints import Linear
from adhere.core.denoise import Counted, Denoiser
from adhere.core.operators import Blur, Mask
from adhere.core.schedule import Discrete
from adhere.core.solvers import METHODS
from adhere.images import picture_from
from benchmarks import masks, truth
from benchmarks.emoji_tasks import quiet_pipeline
from benchmarks.features import FeatureDistance
from benchmarks.photo import PICTURES, centre, picture, psnr
from benchmarks.rows import Row, load, meta, save, table

STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
SPARE = ("china.jpg", "flower.jpg")  # photographs that are not scored
FIRST, LAST = -2.7, 3.5  # log-SNR, as LogSNR of adhere.core.solvers
OURS = ("moment_matching", "moment_matching_calm", "inexact_newton", "mmps")  # for comparison, on truth
FLOOR = 0.01  # the least noise that a peer is told of: some divide by it


@dataclass(frozen=True)
class Problem:
    """A denoiser, and what was measured of one picture (1, C, H, W) in [-1, 1]."""

    denoiser: Denoiser
    constraint: Linear
    shape: tuple[int, ...]
    strength: float = 1.0

    @property
    def noise(self) -> float:
        return max(self.constraint.noise, FLOOR)


class AzulaSchedule(azula.noise.Schedule):
    """Ours, even in log-SNR: t = 1 at FIRST, 0 at LAST, each the nearest time of the table."""

    def __init__(self, schedule: Discrete) -> None:
        self.schedule = schedule

    def time(self, t: Tensor) -> float:
        return self.schedule.time_at(LAST + (FIRST - LAST) * float(t))

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [self.schedule(self.time(one)) for one in t.flatten()]
        alpha_t, sigma_t = torch.tensor(pairs).to(t).T
        return alpha_t.view_as(t), sigma_t.view_as(t)


class AzulaDenoiser(azula.denoise.Denoiser):
    """Ours."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.ours, self.schedule = denoiser, AzulaSchedule(denoiser.schedule)  # type: ignore[arg-type]

    def forward(self, x_t: Tensor, t: Tensor, **_: object) -> azula.denoise.DiracPosterior:
        return azula.denoise.DiracPosterior(mean=self.ours(x_t, self.schedule.time(t)))


def run_azula(sampler: azula.sample.Sampler, problem: Problem) -> Tensor:
    """From noise to a picture; the last step ends at LAST, so one more call denoises it, as its tutorials do."""
    x_1 = sampler.init(problem.shape).to(problem.constraint.y.dtype)
    x_0 = sampler(x_1)
    return sampler.denoiser(x_0, torch.tensor(0.0, dtype=torch.float64)).mean


def azula_mmps(sampler: Callable[..., azula.sample.Sampler], iterations: int) -> Callable[[Problem, int], Tensor]:
    """MMPSDenoiser(gmres) under one of azula's samplers."""

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
    """A^+ where A A^T is a multiple of I: a mask, means over blocks, gray; not a blur."""
    operator, y = problem.constraint.operator, problem.constraint.y
    scale = operator(operator.adjoint(torch.ones_like(y))).amax()
    return lambda y: operator.adjoint(y) / scale


class UnitDenoiser(nn.Module):
    """Ours as deepinv's: pictures in [0, 1], noise levels in their unit."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.ours = denoiser

    def forward(self, x: Tensor, sigma: Tensor | float, **options: object) -> Tensor:
        level = max(float(torch.as_tensor(sigma).flatten()[0]), 1e-4)
        t = self.ours.schedule.time_at(-float(np.log(2 * level)))
        alpha_t, _sigma_t = self.ours.schedule(t)
        x0 = self.ours((alpha_t * (2 * x - 1)).to(self.ours.dtype), t)
        return ((x0 + 1) / 2).to(x.dtype)


def physics_of(problem: Problem) -> tuple[deepinv.physics.LinearPhysics, Tensor]:
    """The operator as deepinv's, and the measurement, both for pictures in [0, 1]."""
    operator, y = problem.constraint.operator, problem.constraint.y
    unit = ((y + operator(torch.ones(problem.shape, dtype=y.dtype))) / 2).float()
    noise = deepinv.physics.GaussianNoise(problem.noise / 2)
    if isinstance(operator, Mask):
        known = operator.known.expand(problem.shape)[0].float()
        return deepinv.physics.Inpainting(mask=known, img_size=problem.shape[1:], noise_model=noise), unit
    forward = lambda x, **_: operator(x)  # noqa: E731
    adjoint = lambda y, **_: operator.adjoint(y)  # noqa: E731
    return deepinv.physics.LinearPhysics(A=forward, A_adjoint=adjoint, noise_model=noise), unit


def deepinv_dps(problem: Problem, steps: int) -> Tensor:
    physics, y = physics_of(problem)
    model = deepinv.sampling.DPS(UnitDenoiser(problem.denoiser), num_steps=steps, weight=problem.strength)
    return 2 * model(y, physics, x_init=problem.shape) - 1


def deepinv_ddrm(problem: Problem, steps: int) -> Tensor:
    physics, y = physics_of(problem)
    return 2 * deepinv.sampling.DDRM(UnitDenoiser(problem.denoiser), sigmas=np.linspace(1, 0, steps))(y, physics) - 1


def deepinv_diffpir(problem: Problem, steps: int) -> Tensor:
    physics, y = physics_of(problem)
    fidelity = deepinv.optim.data_fidelity.L2()
    model = deepinv.sampling.DiffPIR(
        UnitDenoiser(problem.denoiser), fidelity, sigma=problem.noise / 2, max_iter=steps, lambda_=7 * problem.strength
    )
    return 2 * model(y, physics, x_init=physics.A_adjoint(y)) - 1


class Epsilon(nn.Module):
    """Ours as diffusers' network: it predicts the noise."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.ours = denoiser

    def forward(self, x_t: Tensor, t: Tensor) -> SimpleNamespace:
        alpha_t, sigma_t = self.ours.schedule(float(t))
        x_t = x_t.to(self.ours.dtype)
        return SimpleNamespace(sample=((x_t - alpha_t * self.ours(x_t, float(t))) / sigma_t).float())


def diffusers_repaint(problem: Problem, steps: int) -> Tensor:
    """A third as many noise levels as evaluations, in jumps that are each taken three times."""
    operator = problem.constraint.operator
    assert isinstance(operator, Mask)
    pipe = RePaintPipeline(Epsilon(problem.denoiser), RePaintScheduler())  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    known = operator.known.expand(problem.shape).float()
    length, repeats = max(1, steps // 20), 3
    out = pipe(
        problem.constraint.y.float(), known, num_inference_steps=max(2, steps // repeats), jump_length=length,
        jump_n_sample=repeats, eta=1.0, output_type="np",
    )  # fmt: skip
    return 2 * torch.from_numpy(out.images).permute(0, 3, 1, 2) - 1


@dataclass(frozen=True)
class Peer:
    """run(problem, steps); `each`: the work of a step; masks_only: for nothing but inpainting; blurs: for those too."""

    run: Callable[[Problem, int], Tensor]
    each: int
    masks_only: bool = False
    blurs: bool = True
    tuned: bool = False


PEERS = {
    "azula DPS": Peer(azula_dps, each=3, tuned=True),
    "azula PiGDM": Peer(azula_pgdm, each=3, blurs=False),
    "azula MMPS (gmres, 1), DDPM": Peer(azula_mmps(azula.sample.DDPMSampler, 1), each=7),
    "azula MMPS (gmres, 3), DDPM": Peer(azula_mmps(azula.sample.DDPMSampler, 3), each=15),
    "azula MMPS (gmres, 3), Ito": Peer(azula_mmps(azula.sample.ItoSampler, 3), each=15),
    "azula MMPS (gmres, 3), Adams-Bashforth": Peer(azula_mmps(azula.sample.xEABSampler, 3), each=15),
    "deepinv DPS": Peer(deepinv_dps, each=3, tuned=True),
    "deepinv DDRM": Peer(deepinv_ddrm, each=1, masks_only=True),
    "deepinv DiffPIR": Peer(deepinv_diffpir, each=1, tuned=True),
    "diffusers RePaint": Peer(diffusers_repaint, each=1, masks_only=True),
}


def run(name: str, problem: Problem, work: int, seed: int) -> tuple[Tensor, int, int, float]:
    """One sample (1, C, H, W), the evaluations, backward passes and seconds that it took."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    counted = Counted(problem.denoiser)
    begin = time.perf_counter()
    drawn = PEERS[name].run(replace(problem, denoiser=counted), max(2, work // PEERS[name].each))
    seconds = time.perf_counter() - begin
    return drawn.detach().to(problem.constraint.y.dtype), counted.nfe, counted.backward, seconds


def best_on_truth(name: str, work: int, tuning: list[truth.Problem]) -> float:
    """The one of STRENGTHS with the least RMS distance of four samples' mean from the exact posterior's mean."""

    def far(strength: float) -> float:
        errors = []
        for p in tuning:
            drawn = [run(name, exactly(p, strength), work, seed)[0] for seed in range(4)]
            errors.append(float((torch.cat(drawn).mean(0) - p.posterior.mean).square().mean()))
        return float(np.nan_to_num(np.mean(errors), nan=np.inf))

    return min(STRENGTHS, key=far)


def exactly(p: truth.Problem, strength: float = 1.0) -> Problem:
    """A problem of benchmarks.truth, with the exact denoiser."""
    prior = truth.emoji_prior()
    return Problem(prior.denoiser(Discrete.from_betas()), p.constraint, (1, *prior.shape), strength)


def on_truth(args: argparse.Namespace, results: "Results") -> None:
    """Rows as of benchmarks.truth, ours among them, on as many images as asked for."""
    prior = truth.emoji_prior()
    asked = truth.problems(prior, args.noise, args.images, args.samples)
    spare = truth.problems(prior, args.noise, 2, args.samples, seed=2)
    for (task, scored), (_, tuning) in zip(asked, spare, strict=True):
        if not results.has(task, "exact"):
            rows = truth.compare({name: METHODS[name] for name in OURS}, prior, task, scored)
            results.add([row if row.method == "exact" else replace(row, method=f"adhere {row.method}") for row in rows])
        for name, work in product(args.peers, args.work):
            peer, method = PEERS[name], f"{name} @ {work}"
            masked = isinstance(scored[0].constraint.operator, Mask)
            if results.has(task, method) or (peer.masks_only and not masked):
                continue
            if not peer.blurs and isinstance(scored[0].constraint.operator, Blur):
                continue
            strength = best_on_truth(name, work, tuning) if peer.tuned else 1.0
            rows = []
            for item, p in enumerate(scored):
                drawn, nfe, backward, seconds = zip(
                    *(run(name, exactly(p, strength), work, seed) for seed in range(args.samples)), strict=True
                )
                scores = p.measure(torch.cat(drawn), prior)
                scores |= {"work": nfe[0] + 2 * backward[0], "strength": strength}
                rows.append(Row(task, str(item), method, 0, nfe[0], sum(seconds), scores=scores))
            results.add(rows)


@torch.no_grad()
def on_photographs(args: argparse.Namespace, results: "Results") -> None:
    """Rows as of benchmarks.photo, with seed 0."""
    denoiser, distance = quiet_pipeline("adhere-photo").denoiser(), FeatureDistance()

    def repair(name: str, work: int, task: str, original: np.ndarray, strength: float) -> tuple[Row, np.ndarray]:
        repaint, x = masks.load(task), picture_from(original).tensor()
        known = torch.from_numpy(~repaint)[None, None].float()
        problem = Problem(denoiser, Linear(Mask(known), known * x), tuple(x.shape), strength)
        drawn, nfe, backward, seconds = run(name, problem, work, seed=0)
        shown = torch.where(known == 1, x, drawn).nan_to_num(0)
        made = ((shown[0].permute(1, 2, 0).numpy() + 1) * 127.5).clip(0, 255).round().astype(np.uint8)
        scores = {
            "psnr": psnr(made[repaint], original[repaint]),
            "feature_distance": float(distance(picture_from(made).tensor(), x)),
            "residual": float(problem.constraint.error(drawn)),
            "work": nfe + 2 * backward,
            "strength": strength,
        }
        return Row(task, "", f"{name} @ {work}", 0, nfe, seconds, scores=scores), made

    @cache
    def best_strength(name: str, work: int) -> float:
        spare = [centre(load_sample_image(file)) for file in SPARE]
        return max(STRENGTHS, key=lambda s: sum(repair(name, work, "strokes", x, s)[0].scores["psnr"] for x in spare))

    for task, name, work in product(args.tasks, args.peers, args.work):
        method, rows = f"{name} @ {work}", []
        for item in PICTURES if not results.has(task, method) else ():
            strength = best_strength(name, work) if PEERS[name].tuned else 1.0
            row, made = repair(name, work, task, picture(item), strength)
            rows.append(replace(row, item=item))
            Image.fromarray(made).save(results.folder / f"{task} {item} {method}.png")
        results.add(rows)


class Results:
    """Rows in a file; what is there is not run again."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", choices=["truth", "photo"])
    parser.add_argument("--json", type=Path, required=True, help="where the rows go; what is there is not run again")
    parser.add_argument("--work", nargs="+", type=int, default=[40, 100])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--images", type=int, default=4, help="of truth")
    parser.add_argument("--samples", type=int, default=16, help="of truth, for each image")
    parser.add_argument("--noise", type=float, default=0.05, help="of truth")
    parser.add_argument("--tasks", nargs="+", choices=list(masks.MASKS), default=list(masks.MASKS), help="of photo")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    scene = {"truth": on_truth, "photo": on_photographs}[args.scene]
    scene(args, Results(args.json))


if __name__ == "__main__":
    main()
