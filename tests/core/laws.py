"""What each solver costs, by the law its module states: evaluations and backward passes of the network in a run."""

from adhere.core.sample import Solver
from adhere.core.schedule import Discrete, Schedule, log_snr
from adhere.core.solvers import METHODS, Method, Plain
from adhere.core.solvers.ddnm import DDNM
from adhere.core.solvers.descent import Descent
from adhere.core.solvers.ding import DING
from adhere.core.solvers.dps import DPS
from adhere.core.solvers.freedom import FreeDoM
from adhere.core.solvers.inexact_newton import InexactNewton
from adhere.core.solvers.mmps import MMPS
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.core.solvers.newton_exact import NewtonExact
from adhere.core.solvers.repaint import RePaint

SCHEDULE = Discrete.from_betas()

# What a pixel model's masks of any size can be given to: psld needs a decoder, newton_exact a small state.
FOR_PICTURES = [name for name in METHODS if name not in ("psld", "newton_exact")]


def evaluations(method: Method, steps: int, entries: int = 0, schedule: Schedule = SCHEDULE) -> int:
    """NFE of a run in so many steps, of states of so many entries; KeyError for a solver not known here."""
    levels = steps
    match solver := method.solver:
        case InexactNewton(K=K):
            return levels * (1 + 2 * K)
        case Descent(K=K):
            return levels * (1 + K)
        case MomentMatching():
            return sum(1 + solver.directions(log_snr(schedule, t)) for t in method.levels(schedule, steps))
        case NewtonExact(K=K):
            return levels * (1 + K * (1 + entries))
        case RePaint():
            return moves(solver.repeats, levels)
        case FreeDoM():
            return 2 * moves(solver.repeats, levels)
        case DING():
            return 2 * levels - 1
        case DDNM() | Plain() | MMPS():
            return levels
    raise KeyError(type(solver).__name__)


def backward_passes(solver: Solver, levels: int) -> int:
    """Backward passes through the network of such a run."""
    match solver:
        case DPS(K=K):
            return levels * K
        case MMPS(m=m):
            return levels * m
        case FreeDoM():
            return moves(solver.repeats, levels)
    return 0


def moves(repeats: int, levels: int) -> int:
    """The first level has none before it to go back to."""
    return repeats * (levels - 1) + 1
