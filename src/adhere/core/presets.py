"""Presets: samplers by name, with the settings that were measured to suit them, and `sample`, which runs one.

The command line, the pipelines, the benchmarks and the tests against exact priors read `PRESETS`.
"""

import difflib
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core._checks import check_constraint, excess_of_range
from adhere.core.baselines.ding import DING, Decoupled
from adhere.core.baselines.dps import DPS
from adhere.core.baselines.freedom import FreeDoM
from adhere.core.baselines.mmps import MMPS
from adhere.core.baselines.mpgd import MPGD
from adhere.core.baselines.newton_exact import NewtonExact
from adhere.core.baselines.psld import PSLD
from adhere.core.baselines.repaint import RePaint
from adhere.core.constraints import Constraint, Unconstrained
from adhere.core.denoisers import Denoiser
from adhere.core.noise import Generators, check_generator, randn
from adhere.core.sampling import Sampler
from adhere.core.schedules import log_snr_spacing, uniform_spacing
from adhere.core.solvers.base import Solver
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.plain import Plain
from adhere.core.transitions import DDIM, DPMSolver2M
from adhere.errors import AdhereError, AdhereWarning, InvalidInput

_MOMENT_MATCHING = Sampler(
    MomentMatching(),
    DPMSolver2M(temperature=None),
    partial(log_snr_spacing, log_snr_min=-3.5, log_snr_max=3.75),
    num_steps=12,
    multiscale_max_log_snr=1.0,
)

PRESETS: dict[str, Sampler] = {
    # The default of pipelines, at the temperature of the model. 12 evaluations.
    "moment_matching": _MOMENT_MATCHING,
    # With fewer noise levels, an accurate mean at each of them matters more. 8 evaluations.
    "moment_matching_fast": replace(_MOMENT_MATCHING, solver=MomentMatching(num_iterations=10), num_steps=8),
    # The default for losses of decoded pictures: the network's own covariance at high noise keeps them natural.
    # 12 evaluations.
    "moment_matching_loss": replace(
        _MOMENT_MATCHING,
        solver=MomentMatching(jacobian_products=1, product_center=-math.inf, nonlinear_steps=6),
        num_steps=8,
    ),
    # Closest to the exact posterior: the full variance of the prior. 16 evaluations.
    "moment_matching_posterior": Sampler(
        MomentMatching(fusion_snr=0.6, jacobian_products=2, num_iterations=10),
        DPMSolver2M(),
        partial(log_snr_spacing, log_snr_min=-3.2, log_snr_max=3.5),
        num_steps=8,
        multiscale_max_log_snr=1.0,
    ),
    # The paper's method: 220 evaluations.
    "inexact_newton": Sampler(InexactNewton(num_iterations=5), DDIM(), uniform_spacing),
    # 220 evaluations like inexact_newton, and 200 backward passes.
    "dps": Sampler(DPS(num_iterations=10), DDIM(), uniform_spacing),
    "mpgd": Sampler(MPGD(num_iterations=10), DDIM(), uniform_spacing),
    "psld": Sampler(PSLD(num_iterations=10), DDIM(), uniform_spacing),
    # About as many evaluations, divided among noise levels, moves and time travel.
    "freedom": Sampler(FreeDoM(repeats=2), DDIM(), uniform_spacing, num_steps=50),
    "repaint": Sampler(RePaint(repeats=10), DDIM(), uniform_spacing),
    # The mean of moment_matching, by backward passes.
    "mmps": Sampler(MMPS(num_iterations=3), DPMSolver2M(), log_snr_spacing),
    "ding": Sampler(DING(), Decoupled(), uniform_spacing, num_steps=25),
    # One evaluation per entry of the state: for priors of a few hundred dimensions.
    "newton_exact": Sampler(NewtonExact(), DDIM(), uniform_spacing),
    "ddnm": Sampler(DDNM(), DDIM(eta=0.85), log_snr_spacing, num_steps=50),
    "plain": Sampler(Plain(), DDIM(eta=0.0), uniform_spacing),
}
_DEFAULT_PRESET = "moment_matching"
_RENAMED_PRESETS = {"moment_matching_calm": "moment_matching"}  # retired


def default_preset(constraint: Constraint) -> str:
    """Return the name of the preset that is used for a constraint when no solver is given."""
    if isinstance(constraint, Unconstrained):
        return "plain"
    if constraint.is_linearizable and constraint.is_nonlinear and constraint.needs_decoding:
        return "moment_matching_loss"
    return _DEFAULT_PRESET if PRESETS[_DEFAULT_PRESET].solver.supports(constraint) else "inexact_newton"


def get_sampler(solver: str | Solver | Sampler) -> Sampler:
    """Return the sampler for the name of a preset or for a solver object; a sampler is returned unchanged.

    A solver object gets the transition, the timesteps and the number of steps of the preset with an equal solver. If
    there is none, they are those of the first preset with a solver of its class, or else the defaults of `Sampler`.

    Raises:
        ValueError: for an unknown name; the message lists the presets that are no baselines.
        TypeError: for anything but a name, a solver or a sampler.
    """
    if isinstance(solver, Sampler):
        return solver
    if isinstance(solver, Solver):
        samplers = sorted(PRESETS.values(), key=lambda sampler: sampler.solver != solver)  # equal ones first
        similar = [sampler for sampler in samplers if type(sampler.solver) is type(solver)]
        return replace(similar[0], solver=solver) if similar else Sampler(solver)
    if isinstance(solver, type):
        raise InvalidInput(f"solver = {solver.__name__} is a class: give an object, {solver.__name__}(...)")
    if not isinstance(solver, str):
        raise InvalidInput(f"solver = {solver!r}: give a name in adhere.PRESETS, or a solver such as adhere.DDNM()")
    if solver not in PRESETS:
        if solver in _RENAMED_PRESETS:
            raise InvalidInput(f"solver '{solver}' is now called '{_RENAMED_PRESETS[solver]}'")
        usual = [name for name, sampler in PRESETS.items() if not _is_baseline(sampler)]
        near = difflib.get_close_matches(solver, PRESETS, cutoff=0.7)
        near += difflib.get_close_matches(solver, usual, cutoff=0.5)  # baselines only for names that are nearly right
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InvalidInput(f"unknown solver '{solver}': {hint}choose one of {', '.join(usual)}")
    return PRESETS[solver]


def _is_baseline(sampler: Sampler) -> bool:
    """Return whether the solver is a method of `core.baselines`, which tables compare with."""
    return type(sampler.solver).__module__.startswith("adhere.core.baselines.")


@torch.no_grad()
@keyword_hints(
    seed="write generator=torch.Generator().manual_seed(seed)",
    num_steps="call it num_inference_steps",
    steps="call it num_inference_steps",
    size="call it shape, (B, ...)",
)
def sample(
    denoiser: Denoiser,
    constraint: Constraint,
    shape: Sequence[int],
    *,
    solver: str | Solver | Sampler | None = None,
    num_inference_steps: int | None = None,
    generator: Generators | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return samples of a denoiser under a constraint, (B, ...).

    Args:
        denoiser: D, such as a `NetworkDenoiser`.
        constraint: the constraint on samples x0 (B, ...).
        shape: the shape of the samples, (B, ...).
        solver: a preset's name, a solver or a sampler. By default 'moment_matching_posterior', 'inexact_newton' for a
            constraint that cannot be linearized, and 'plain' without one. The default of pipelines is 'moment_matching'
            at the temperature of the model.
        num_inference_steps: the number of noise levels, the sampler's own by default.
        generator: one, or one per sample. By default the seed is drawn from torch's global generator.
        dtype: the dtype of the state.
        device: the device of the state; by default, that of the generator.

    Raises:
        ValueError: for an unknown solver's name, an impossible number of steps, or a measurement that does not fit its
            operator or the shape.
        TypeError: for a generator or a solver of a wrong type, or if the solver does not support the constraint.
        AdhereError: if the samples are not finite.

    Warns:
        AdhereWarning: if the shape is that of pictures, and y far larger than A can give for pictures in [-1, 1].
    """
    if not isinstance(denoiser, Denoiser) or not isinstance(constraint, Constraint):
        given = f"{type(denoiser).__name__} and {type(constraint).__name__}"
        raise InvalidInput(f"sample got {given}: give a denoiser, such as a NetworkDenoiser, and a constraint")
    if num_inference_steps is not None and type(num_inference_steps) is not int:
        raise InvalidInput(f"num_inference_steps = {num_inference_steps!r}: give an integer, such as 20")
    preset = default_preset(constraint)
    sampler = get_sampler(solver or ("moment_matching_posterior" if preset == _DEFAULT_PRESET else preset))
    generator = check_generator(generator, shape[0])
    first = generator if isinstance(generator, torch.Generator) else generator[0]
    like = torch.empty(0, dtype=dtype, device=device or first.device)
    check_constraint(constraint, shape, like.dtype, like.device)
    is_picture = len(shape) == 4 and shape[1] in (1, 3)  # of any range
    if is_picture and (reason := excess_of_range(constraint, shape, like.dtype, like.device, factor=10.0)):
        warnings.warn(f"if the denoiser is of images in [-1, 1]: {reason}", AdhereWarning, stacklevel=2)
    noise = randn(shape, like, generator)
    x0 = noise
    for state in sampler.trajectory(denoiser, constraint, noise, generator, num_inference_steps):
        x0 = state.x0
    if not bool(x0.isfinite().all()):
        raise AdhereError("the samples are NaN or infinite: check the network's output and the constraint's gradient")
    return x0
