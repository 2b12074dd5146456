"""The Jacobian J = d x0 / d x_t of the denoisers, whose products replace those with J^T and J^-1.

    python -m benchmarks.jacobian --json out.json [--figures docs/images] [--models adhere-photo adhere-emoji fashion]

The exact denoiser has J = (alpha_t / sigma_t^2) Cov[x0 | x_t] (Tweedie's second-order formula), which is symmetric and
has no negative eigenvalue. The scores are measured at x_t of held-out pictures, at several noise levels:

- radius: the largest |eigenvalue| of J times alpha_t, by Arnoldi's method (ARPACK) without forming J; at most 1 for a
  Gaussian prior, and above 1 between modes;
- skew: the spectral radius of (J - J^T)/2 over that of (J + J^T)/2;
- negative: the most negative eigenvalue of (J + J^T)/2 over its spectral radius;
- calibration: v^T (sigma_t^2/alpha_t) J v over (v^T (x0 - D(x_t)))^2, each summed over white v and pictures: the
  variance that J predicts over the actual one. It is 1 for an exact denoiser, and below 1 if J predicts too little.

On Fashion-MNIST (784 pixels, training/fashion.py), the whole Jacobian is computed. The left half is known, and e is the
negative gradient of the constraint. The cosine of J g and e shows how well the moves g = J e, J^T e, e and J^-1 e
(without the singular values below 1 % of the largest) change x0 along e. The remaining residual shows how fast moves
along J e with several step sizes satisfy the constraint.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from scipy.sparse import linalg
from torch import Tensor

from adhere.core._linalg import dot
from adhere.core.constraints import Constraint, Linear
from adhere.core.denoisers import CountingDenoiser, Denoiser, NetworkDenoiser
from adhere.core.derivatives import jvp, vjp
from adhere.core.operators import Mask
from adhere.core.schedules import DDPMSchedule
from adhere.core.solvers.base import Solver
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.io.images import as_picture
from benchmarks import held_out
from benchmarks.emoji_tasks import quiet_pipeline
from benchmarks.grids import to_tensor
from benchmarks.photo import PHOTOGRAPHS, photograph
from benchmarks.tables import METRICS, Row, load, meta, plot, save, table

FASHION = Path(__file__).parent / "data" / "fashion"
LOG_SNRS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
COLUMNS = ("radius", "skew", "negative", "calibration")
EXACT = {"radius": 1.0, "skew": 0.0, "negative": 0.0, "calibration": 1.0}  # of the exact denoiser of a Gaussian prior
LinearMap = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A denoiser, and clean states (N, C, H, W) that it was not trained on."""

    name: str
    denoiser: Denoiser
    x0: Tensor


def photo(count: int) -> Subject:
    """Return adhere-photo with the middle 64x64 pixels of the photographs."""
    pictures = [as_picture(photograph(name)[96:160, 96:160]).tensor() for name in PHOTOGRAPHS[:count]]
    return Subject("adhere-photo", quiet_pipeline("adhere-photo").make_denoiser(), torch.cat(pictures))


def emoji(count: int) -> Subject:
    """Return adhere-emoji without a prompt, with latents of held-out emoji."""
    pipe = quiet_pipeline("adhere-emoji")
    with torch.no_grad():
        z0 = pipe.autoencoder.encode(to_tensor(held_out.load(count)[1]))  # type: ignore[attr-defined]
    return Subject("adhere-emoji", pipe.make_denoiser(), z0)


def fashion(count: int) -> Subject:
    """Return the model of training/fashion.py in float64, with clothes of the test set."""
    unet = UNet2DModel.from_pretrained(FASHION).double().eval().requires_grad_(False)
    pictures = torch.from_numpy(np.load(FASHION / "clothes.npy")[:count, None] / 127.5 - 1)
    denoiser = NetworkDenoiser(
        lambda x_t, t: unet(x_t, t).sample, DDPMSchedule.from_betas(), "v_prediction", torch.float64, torch.long
    )
    return Subject("fashion", denoiser, pictures)


SUBJECTS = {"adhere-photo": photo, "adhere-emoji": emoji, "fashion": fashion}


def add_noise(subject: Subject, log_snr: float) -> tuple[Tensor, float]:
    """Return x_t of all pictures of a subject, and t."""
    t = subject.denoiser.schedule.t_from_log_snr(log_snr)
    alpha_t, sigma_t = subject.denoiser.schedule(t)
    eps = torch.randn(subject.x0.shape, generator=torch.Generator().manual_seed(0), dtype=subject.x0.dtype)
    return alpha_t * subject.x0 + sigma_t * eps, t


def extreme_eigenvalue(apply: LinearMap, like: Tensor, hermitian: bool = False, which: str = "LM") -> complex:
    """Return an eigenvalue of a linear map to about one percent.

    Args:
        apply: The map v -> apply(v), v shaped like `like`.
        like: Any tensor of the shape and dtype of v.
        hermitian: Whether the map is symmetric.
        which: 'LM' for the largest in magnitude, 'SA' for the most negative (symmetric maps only).
    """

    def matvec(v: np.ndarray) -> np.ndarray:
        return apply(torch.from_numpy(v).to(like.dtype).view_as(like)).flatten().double().numpy()

    n = like.numel()
    operator = linalg.LinearOperator((n, n), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(n)
    solve = linalg.eigsh if hermitian else linalg.eigs
    found = solve(operator, k=1, which=which, v0=start, tol=1e-2, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return complex(found[0])


def spectrum(denoiser: Denoiser, x_t: Tensor, t: float) -> dict[str, float]:
    """Return radius, skew and negative of the module's docstring, at one x_t (1, C, H, W)."""
    alpha_t, _ = denoiser.schedule(t)
    x0, transposed = vjp(lambda x: denoiser(x, t), x_t, retain_graph=True)
    forward = partial(jvp, denoiser, x_t, t, x0)
    symmetric: LinearMap = lambda v: (forward(v) + transposed(v)) / 2  # noqa: E731
    # K = (J - J^T)/2 has imaginary eigenvalues. K^T K = -K^2 is symmetric and has their squares.
    skew: LinearMap = lambda v: (forward(v) - transposed(v)) / 2  # noqa: E731
    radius = abs(extreme_eigenvalue(symmetric, x_t, hermitian=True))
    return {
        "radius": alpha_t * abs(extreme_eigenvalue(forward, x_t)),
        "skew": abs(extreme_eigenvalue(lambda v: -skew(skew(v)), x_t, hermitian=True)) ** 0.5 / radius,
        "negative": min(0.0, extreme_eigenvalue(symmetric, x_t, hermitian=True, which="SA").real) / radius,
    }


def calibration(subject: Subject, x_t: Tensor, t: float, num_probes: int = 8) -> float:
    """Return the calibration of the module's docstring, over all pictures x_t (N, C, H, W)."""
    alpha_t, sigma_t = subject.denoiser.schedule(t)
    generator = torch.Generator().manual_seed(1)
    predicted = actual = 0.0
    # One picture at a time, because the prompt of a denoiser may be that of one sample.
    for clean, one in zip(subject.x0.split(1), x_t.split(1), strict=True):
        x0 = subject.denoiser(one, t)
        for _ in range(num_probes):
            v = torch.randn(one.shape, generator=generator, dtype=one.dtype)
            predicted += float((v * jvp(subject.denoiser, one, t, x0, v)).sum()) * sigma_t**2 / alpha_t
            actual += float((v * (clean - x0)).sum().square())
    return predicted / actual


def spectra(subject: Subject, log_snrs: Sequence[float] = LOG_SNRS) -> Iterator[Row]:
    """Yield a row per noise level and picture; each has the calibration of all pictures."""
    for log_snr in log_snrs:
        x_t, t = add_noise(subject, log_snr)
        ratio = calibration(subject, x_t, t)
        for i in range(len(x_t)):
            scores = spectrum(subject.denoiser, x_t[i : i + 1], t) | {"calibration": ratio}
            yield Row(subject.name, str(i), f"log-SNR {log_snr:+.0f}", 0, 0, 0.0, scores=scores)


def whole_jacobian(denoiser: Denoiser, x_t: Tensor, t: float) -> Tensor:
    """Return J (n, n) at one x_t (1, ...) of a few hundred entries, with one evaluation per column."""
    n = x_t.numel()
    many = x_t.expand(n, *x_t.shape[1:])
    unit = torch.eye(n, dtype=x_t.dtype).view_as(many)
    return jvp(denoiser, many, t, denoiser(x_t, t).expand_as(many), unit).flatten(1).T


def truncated_inverse(J: Tensor, min_ratio: float = 0.01) -> Tensor:
    """Return J^-1 without the singular values below `min_ratio` times the largest."""
    return torch.linalg.pinv(J, rtol=min_ratio)


def left_half(x0: Tensor) -> Linear:
    """Return the constraint that the left half of each picture is known."""
    known = torch.zeros(1, 1, *x0.shape[-2:], dtype=x0.dtype)
    known[..., : x0.shape[-1] // 2] = 1
    return Linear(Mask(known), known * x0)


def directions(subject: Subject, log_snrs: Sequence[float] = LOG_SNRS) -> tuple[list[Row], dict[float, list[Tensor]]]:
    """Compare the directions of moves.

    Returns:
        Rows with the cosine of each direction; and for the first picture x_t, x0, e and the directions, by log-SNR.
    """
    rows: list[Row] = []
    images: dict[float, list[Tensor]] = {}
    for log_snr in log_snrs:
        x_t, t = add_noise(subject, log_snr)
        for i in range(len(x_t)):
            one, constraint = x_t[i : i + 1], left_half(subject.x0[i : i + 1])
            x0 = subject.denoiser(one, t)
            e = constraint.neg_grad(x0)
            J = whole_jacobian(subject.denoiser, one, t)
            flat = e.flatten()
            moves = {"J e": J @ flat, "J^T e": J.T @ flat, "e": flat, "J^-1 e": truncated_inverse(J) @ flat}
            for name, g in moves.items():
                scores = {"cosine": float(torch.cosine_similarity(J @ g, flat, dim=0))}
                rows.append(Row(f"directions, log-SNR {log_snr:+.0f}", str(i), name, 0, 0, 0.0, scores=scores))
            if i == 0:
                images[log_snr] = [one, x0, e, *(g.view_as(e) for g in moves.values() if g is not flat)]
    return rows, images


@dataclass(frozen=True)
class ExactStepSize(Solver[None]):
    """Moves along J e with the step size that is best to first order.

    Each move takes one evaluation more than a move with a fixed step size, for J g.

    Attributes:
        num_iterations: The moves per noise level.
    """

    num_iterations: int

    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        return len(log_snrs) * (1 + 3 * self.num_iterations)

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: None
    ) -> tuple[Tensor, Tensor, None]:
        assert isinstance(constraint, Linear)
        x0 = denoiser(x_t, t)
        for _ in range(self.num_iterations):
            residual = constraint.residual(x0)
            g = jvp(denoiser, x_t, t, x0, constraint.neg_grad(x0))
            change = constraint.operator(jvp(denoiser, x_t, t, x0, g))
            x_t = x_t + dot(residual, change) / dot(change, change) * g
            x0 = denoiser(x_t, t)
        return x_t, x0, None


STEP_RULES: dict[str, Callable[[int], Solver]] = {
    "published step size": lambda num_iterations: InexactNewton(num_iterations, clip_to_sigma=False),
    "published step size, clipped to sigma_t": InexactNewton,
    "exact step size": ExactStepSize,
}


def step_rules(subject: Subject, log_snrs: Sequence[float] = (-1.0, 0.0, 1.0), max_iterations: int = 8) -> list[Row]:
    """Return rows with the residual after 1 to `max_iterations` moves at one noise level, over that before."""
    rows = []
    for log_snr in log_snrs:
        x_t, t = add_noise(subject, log_snr)
        constraint = left_half(subject.x0)
        before = constraint.residual_norm(subject.denoiser(x_t, t))
        for (name, rule), num_iterations in product(STEP_RULES.items(), range(1, max_iterations + 1)):
            denoiser = CountingDenoiser(subject.denoiser)
            _, x0, _ = rule(num_iterations)(denoiser, constraint, x_t, t, None)
            for i, ratio in enumerate(constraint.residual_norm(x0) / before):
                task, method = f"step rules, log-SNR {log_snr:+.0f}", f"{name} @ {denoiser.nfe}"
                scores = {"remaining_residual": float(ratio)}
                rows.append(Row(task, str(i), method, 0, denoiser.nfe, 0.0, scores=scores))
    return rows


def directions_figure(images: dict[float, list[Tensor]], path: Path) -> None:
    """Draw one row per noise level: x_t, x0, e and the directions, each scaled to its largest entry."""
    from matplotlib.figure import Figure

    titles = ("$x_t$", "$x_0 = D(x_t)$", "e", "J e", "$J^T$ e", "$J^{-1}$ e")
    figure = Figure(figsize=(1.5 * len(titles), 1.55 * len(images)), layout="constrained")
    for axes, (log_snr, row) in zip(figure.subplots(len(images), len(titles)), images.items(), strict=True):
        for axis, title, image in zip(axes, titles, row, strict=True):
            signed = title not in titles[:2]
            bound = float(image.abs().max()) if signed else 1.0
            axis.imshow(image[0, 0], cmap="RdBu" if signed else "gray", vmin=-bound, vmax=bound)
            axis.set(xticks=[], yticks=[], title=title if log_snr == min(images) else "")
        axes[0].set_ylabel(f"log-SNR {log_snr:+.0f}")
    figure.savefig(path, dpi=110)


def spectrum_figure(rows: list[Row], path: Path) -> None:
    """Draw each score of `spectra` over the log-SNR, one line per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(COLUMNS), 3.4), layout="constrained")
    for axes, column in zip(figure.subplots(1, len(COLUMNS)), COLUMNS, strict=True):
        for name in dict.fromkeys(row.task for row in rows):
            points: dict[float, list[float]] = {}
            for row in rows:
                if row.task == name:
                    points.setdefault(float(row.method.split()[-1]), []).append(row.scores[column])
            axes.plot(list(points), [fmean(values) for values in points.values()], "o-", label=name)
        axes.set(xlabel="log-SNR", ylabel=METRICS[column].label)
        axes.axhline(EXACT[column], color="gray", linestyle=":")
    axes.legend(fontsize="small")  # pyright: ignore[reportPossiblyUnboundVariable]
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file; models that are in it are not repeated")
    parser.add_argument("--figures", type=Path, help="folder for jacobian-spectrum, -directions and -steps.png")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--items", type=int, default=2, help="number of pictures, at most 4 for adhere-photo")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = load(args.json)[0] if args.json.exists() else []
    with torch.no_grad():
        for name in args.models:
            if any(row.task == name for row in rows):
                continue
            rows += spectra(SUBJECTS[name](args.items))
            print(table([row for row in rows if row.task == name], COLUMNS), flush=True)
            save(args.json, rows, meta())
        if args.figures:
            spectrum_figure([row for row in rows if row.task in SUBJECTS], args.figures / "jacobian-spectrum.png")
        if "fashion" in args.models:
            cosines, images = directions(subject := fashion(args.items))
            residuals = step_rules(subject)
            print(table(cosines), table(residuals), sep="\n")
            rows = [row for row in rows if row.task in SUBJECTS] + cosines + residuals
            save(args.json, rows, meta())
            if args.figures:
                directions_figure(images, args.figures / "jacobian-directions.png")
                plot(residuals, args.figures / "jacobian-steps.png", "remaining_residual")


if __name__ == "__main__":
    main()
