"""The Jacobian J = d x0 / d x_t of the denoisers: what forward-only methods take in place of J^T and J^-1.

    python -m benchmarks.jacobian --json out.json [--figures docs/images] [--models adhere-photo adhere-emoji fashion]

For the exact denoiser J = (alpha_t / sigma_t^2) Cov[x0 | x_t] (Tweedie's second-order formula): symmetric, with no
negative eigenvalue. Measured at x_t of pictures never trained on, over noise levels:

- radius: the largest |eigenvalue| of J times alpha_t, by Arnoldi's method (ARPACK), matrix-free; below 1 for a
  Gaussian prior, more between modes;
- skew: the spectral radius of (J - J^T)/2 over that of (J + J^T)/2;
- negative: the most negative eigenvalue of (J + J^T)/2 over its spectral radius;
- calibration: v^T (sigma_t^2/alpha_t) J v over (v^T (x0 - D(x_t)))^2, each summed over white v and pictures: 1 where
  J knows how uncertain the denoiser is, less where it is too sure.

On Fashion-MNIST (784 pixels, training/fashion.py) the whole Jacobian is at hand. There, with the left half known and e
the direction of the constraint: how well J e, J^T e, e itself and J^-1 e (truncated at 1 % of the largest singular
value) turn x0 along e, as the cosine of J g and e; and how fast step rules along J e meet the constraint.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from scipy.sparse.linalg import LinearOperator, eigs, eigsh
from torch import Tensor

from adhere.conditioning import Conditioning
from adhere.core.constraints import Constraint, Linear, dot
from adhere.core.denoise import Counted, Denoiser, Prediction, jacobian_product, pullback
from adhere.core.operators import Mask
from adhere.core.sample import Memory, Solver
from adhere.core.schedule import Discrete
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.images import picture_from
from benchmarks import held_out
from benchmarks.emoji_tasks import quiet_pipeline
from benchmarks.photo import PICTURES, picture
from benchmarks.rows import METRICS, Row, load, meta, plot, save, table
from training.emoji.autoencoder import to_tensor

FASHION = Path(__file__).parent / "data" / "fashion"
LEVELS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # log-SNR
COLUMNS = ("radius", "skew", "negative", "calibration")
EXACT = {"radius": 1.0, "skew": 0.0, "negative": 0.0, "calibration": 1.0}  # of an exact denoiser, of a Gaussian prior
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A denoiser, and clean states (N, C, H, W) that it was not trained on."""

    name: str
    denoiser: Denoiser
    x0: Tensor


def photo(count: int) -> Subject:
    """adhere-photo, at the middle 64x64 pixels of the benchmark's photographs."""
    middle = [picture_from(picture(name)[96:160, 96:160]).tensor() for name in PICTURES[:count]]
    return Subject("adhere-photo", quiet_pipeline("adhere-photo").denoiser(), torch.cat(middle))


def emoji(count: int) -> Subject:
    """adhere-emoji without a prompt, at latents of held-out emoji."""
    pipe = quiet_pipeline("adhere-emoji")
    z0 = pipe.lift(Linear(Mask(torch.ones(1, 1, 64, 64)), to_tensor(held_out.load(count)[1]))).y  # type: ignore[attr-defined]
    return Subject("adhere-emoji", pipe.denoiser(Conditioning(1)), z0)


def fashion(count: int) -> Subject:
    """The model of training/fashion.py in float64, at clothes of the test set."""
    network = UNet2DModel.from_pretrained(FASHION).double().eval().requires_grad_(False)
    pictures = torch.from_numpy(np.load(FASHION / "clothes.npy")[:count, None] / 127.5 - 1)
    out = lambda x_t, t: network(x_t, t).sample  # noqa: E731
    return Subject("fashion", Prediction(out, Discrete.from_betas(), "v_prediction", torch.float64), pictures)


SUBJECTS = {"adhere-photo": photo, "adhere-emoji": emoji, "fashion": fashion}


def noised(subject: Subject, log_snr: float) -> tuple[Tensor, float]:
    """x_t of all its pictures, and t."""
    t = subject.denoiser.schedule.time_at(log_snr)
    alpha_t, sigma_t = subject.denoiser.schedule(t)
    eps = torch.randn(subject.x0.shape, generator=torch.Generator().manual_seed(0), dtype=subject.x0.dtype)
    return alpha_t * subject.x0 + sigma_t * eps, t


def largest(apply: Product, like: Tensor, hermitian: bool = False, which: str = "LM") -> complex:
    """The extreme eigenvalue of v -> apply(v), v shaped like `like`, to about a percent.

    which: 'LM' for the largest in magnitude, 'SA' for the most negative, of Hermitian operators only.
    """

    def matvec(v: np.ndarray) -> np.ndarray:
        return apply(torch.from_numpy(v).to(like.dtype).view_as(like)).flatten().double().numpy()

    n = like.numel()
    operator = LinearOperator((n, n), matvec=matvec, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(n)
    solve = eigsh if hermitian else eigs
    found = solve(operator, k=1, which=which, v0=start, tol=1e-2, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
    return complex(found[0])


def spectrum(denoiser: Denoiser, x_t: Tensor, t: float) -> dict[str, float]:
    """radius, skew and negative of the module's docstring, at one x_t (1, C, H, W)."""
    alpha_t, _ = denoiser.schedule(t)
    x0, transposed = pullback(lambda x: denoiser(x, t), x_t, reuse=True)
    forward = partial(jacobian_product, denoiser, x_t, t, x0)
    symmetric: Product = lambda v: (forward(v) + transposed(v)) / 2  # noqa: E731
    # K = (J - J^T)/2 has imaginary eigenvalues; K^T K = -K^2 is symmetric, with their squares.
    skew: Product = lambda v: (forward(v) - transposed(v)) / 2  # noqa: E731
    radius = abs(largest(symmetric, x_t, hermitian=True))
    return {
        "radius": alpha_t * abs(largest(forward, x_t)),
        "skew": abs(largest(lambda v: -skew(skew(v)), x_t, hermitian=True)) ** 0.5 / radius,
        "negative": min(0.0, largest(symmetric, x_t, hermitian=True, which="SA").real) / radius,
    }


def calibration(subject: Subject, x_t: Tensor, t: float, probes: int = 8) -> float:
    """The last score of the module's docstring, over all pictures."""
    alpha_t, sigma_t = subject.denoiser.schedule(t)
    generator = torch.Generator().manual_seed(1)
    told = made = 0.0
    for clean, one in zip(subject.x0.split(1), x_t.split(1), strict=True):  # a denoiser may be bound to one prompt
        x0 = subject.denoiser(one, t)
        for _ in range(probes):
            v = torch.randn(one.shape, generator=generator, dtype=one.dtype)
            told += float((v * jacobian_product(subject.denoiser, one, t, x0, v)).sum()) * sigma_t**2 / alpha_t
            made += float((v * (clean - x0)).sum().square())
    return told / made


def spectra(subject: Subject, levels: tuple[float, ...] = LEVELS) -> Iterator[Row]:
    """A row for each level and picture; the calibration, of all pictures, in each."""
    for level in levels:
        x_t, t = noised(subject, level)
        told = calibration(subject, x_t, t)
        for i in range(len(x_t)):
            scores = spectrum(subject.denoiser, x_t[i : i + 1], t) | {"calibration": told}
            yield Row(subject.name, str(i), f"log-SNR {level:+.0f}", 0, 0, 0.0, scores=scores)


def whole_jacobian(denoiser: Denoiser, x_t: Tensor, t: float) -> Tensor:
    """(n, n), its columns by differences along the entries of x_t (1, ...), for small n."""
    n = x_t.numel()
    many = x_t.expand(n, *x_t.shape[1:])
    unit = torch.eye(n, dtype=x_t.dtype).view_as(many)
    return jacobian_product(denoiser, many, t, denoiser(x_t, t).expand_as(many), unit).flatten(1).T


def truncated_inverse(J: Tensor, cut: float = 0.01) -> Tensor:
    """J^-1 without the singular values below `cut` of the largest."""
    return torch.linalg.pinv(J, rtol=cut)


def left_half(x0: Tensor) -> Linear:
    """The left half of each picture is known."""
    mask = torch.zeros(1, 1, *x0.shape[-2:], dtype=x0.dtype)
    mask[..., : x0.shape[-1] // 2] = 1
    return Linear(Mask(mask), mask * x0)


def directions(subject: Subject, levels: tuple[float, ...] = LEVELS) -> tuple[list[Row], dict[float, list[Tensor]]]:
    """How well each direction turns x0 along e; and for one picture x_t, x0, e and the directions, by level."""
    rows: list[Row] = []
    shown: dict[float, list[Tensor]] = {}
    for level in levels:
        x_t, t = noised(subject, level)
        for i in range(len(x_t)):
            one, constraint = x_t[i : i + 1], left_half(subject.x0[i : i + 1])
            x0 = subject.denoiser(one, t)
            e = constraint.direction(x0)
            J = whole_jacobian(subject.denoiser, one, t)
            flat = e.flatten()
            found = {"J e": J @ flat, "J^T e": J.T @ flat, "e": flat, "J^-1 e": truncated_inverse(J) @ flat}
            for name, g in found.items():
                scores = {"cosine": float(torch.cosine_similarity(J @ g, flat, dim=0))}
                rows.append(Row(f"directions, log-SNR {level:+.0f}", str(i), name, 0, 0, 0.0, scores=scores))
            if i == 0:
                shown[level] = [one, x0, e, *(g.view_as(e) for g in found.values() if g is not flat)]
    return rows, shown


@dataclass(frozen=True)
class ExactLength:
    """Moves along J e, each by the length that is best to first order: one evaluation more, for J g."""

    K: int

    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: Memory
    ) -> tuple[Tensor, Tensor, Memory]:
        assert isinstance(constraint, Linear)
        x0 = denoiser(x_t, t)
        for _ in range(self.K):
            residual = constraint.residual(x0)
            g = jacobian_product(denoiser, x_t, t, x0, constraint.direction(x0))
            moved = constraint.operator(jacobian_product(denoiser, x_t, t, x0, g))
            x_t = x_t + dot(residual, moved) / dot(moved, moved) * g
            x0 = denoiser(x_t, t)
        return x_t, x0, None


STEP_RULES: dict[str, Callable[[int], Solver]] = {
    "lambda / |g|, as published": lambda K: InexactNewton(K=K, within_sigma=False),
    "at most sigma_t": lambda K: InexactNewton(K=K),
    "exact length": ExactLength,
}


def step_rules(subject: Subject, levels: tuple[float, ...] = (-1.0, 0.0, 1.0), most: int = 8) -> list[Row]:
    """The residual of x0 after 1 to `most` moves at one noise level, over the residual before."""
    rows = []
    for level in levels:
        x_t, t = noised(subject, level)
        constraint = left_half(subject.x0)
        before = constraint.error(subject.denoiser(x_t, t))
        for (name, rule), K in product(STEP_RULES.items(), range(1, most + 1)):
            denoiser = Counted(subject.denoiser)
            _, x0, _ = rule(K)(denoiser, constraint, x_t, t, None)
            for i, left in enumerate(constraint.error(x0) / before):
                score = {"residual_left": float(left)}
                method = f"{name} @ {denoiser.nfe}"
                rows.append(
                    Row(f"step rules, log-SNR {level:+.0f}", str(i), method, 0, denoiser.nfe, 0.0, scores=score)
                )
    return rows


def side_by_side(shown: dict[float, list[Tensor]], path: Path) -> None:
    """A row for each level: x_t, x0, e, then the directions, each scaled to its largest entry."""
    from matplotlib.figure import Figure

    titles = ("$x_t$", "$x_0 = D(x_t)$", "e", "J e", "$J^T$ e", "$J^{-1}$ e")
    figure = Figure(figsize=(1.5 * len(titles), 1.55 * len(shown)), layout="constrained")
    for axes, (level, images) in zip(figure.subplots(len(shown), len(titles)), shown.items(), strict=True):
        for axis, title, image in zip(axes, titles, images, strict=True):
            signed = title not in titles[:2]
            bound = float(image.abs().max()) if signed else 1.0
            axis.imshow(image[0, 0], cmap="RdBu" if signed else "gray", vmin=-bound, vmax=bound)
            axis.set(xticks=[], yticks=[], title=title if level == min(shown) else "")
        axes[0].set_ylabel(f"log-SNR {level:+.0f}")
    figure.savefig(path, dpi=110)


def spectrum_plot(rows: list[Row], path: Path) -> None:
    """Each score of `spectra` against the log-SNR, a line for each model."""
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
    parser.add_argument(
        "--json", type=Path, required=True, help="where the rows go; a model that is there is not run again"
    )
    parser.add_argument("--figures", type=Path, help="a folder for jacobian-spectrum, -directions and -steps.png")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--items", type=int, default=2, help="pictures, at most 4 for adhere-photo")
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
            spectrum_plot([row for row in rows if row.task in SUBJECTS], args.figures / "jacobian-spectrum.png")
        if "fashion" in args.models:
            turns, shown = directions(subject := fashion(args.items))
            steps = step_rules(subject)
            print(table(turns), table(steps), sep="\n")
            rows = [row for row in rows if row.task in SUBJECTS] + turns + steps
            save(args.json, rows, meta())
            if args.figures:
                side_by_side(shown, args.figures / "jacobian-directions.png")
                plot(steps, args.figures / "jacobian-steps.png", "residual_left")


if __name__ == "__main__":
    main()
