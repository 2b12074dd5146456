"""Estimates of the cost of a request before it is run: network evaluations, seconds and memory.

One evaluation of each kind is timed: at each size that the network sees, with and without guidance, and of each of two
networks. For latent models, so are one encoding and one decoding. How often the solver encodes and decodes is counted
in a run with stand-ins for the network and the autoencoder, whose time is that of the solver.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from adhere.core._linalg import kept_directions
from adhere.core.constraints import Linear
from adhere.core.denoisers import CFGDenoiser, Denoiser, DenoiserWrapper, ExpertDenoiser
from adhere.core.latents import DecodedConstraint, KnownLatents
from adhere.core.multiscale import MultiscaleDenoiser
from adhere.core.noise import initial_noise, randn
from adhere.core.sampling import trajectory
from adhere.core.schedules import log_snr
from adhere.core.solvers.moment_matching import MomentMatching
from adhere.tasks import Task
from adhere.tasks.base import Crop

if TYPE_CHECKING:
    from adhere.pipelines._runs import Run
    from adhere.pipelines.base import ConstrainedPipeline

_BYTES_PER_GB = 1024**3
# The numbers of arrays of the size of the state and of the measurement that a run of the default solver was measured to
# hold beside one evaluation, on 512 x 512 to 4096 x 4096 pixels. Each direction of conjugate residuals adds two.
_STATES, _MEASUREMENTS = 11, 18
_BYTES_PER_PIXEL = 100  # of the picture in float32 and as integers, which exceeds the small states of latent models
_WARM_UP_SIDE = 16  # in entries of the state


@dataclass(frozen=True)
class Estimate:
    """The estimated cost of one request, in the order in which the JSON has it.

    Attributes:
        nfe: network evaluations.
        seconds: the time of the evaluations, encodings and decodings. Reading and writing files, loading the model,
            backward passes and the solver of a pixel-space model are not counted.
        peak_gb: the largest amount of memory in use, in units of 1024^3 bytes, or None if the system does not tell.
        weights_gb: the part of it that holds the weights.
        bytes_per_pixel: the bytes per pixel of the largest crop: those of the evaluation, as measured, and those of the
            arrays of the solver.
        size: (height, width) of the largest crop in pixels.
    """

    nfe: int
    seconds: float
    peak_gb: float | None
    weights_gb: float
    bytes_per_pixel: int
    size: tuple[int, int]

    @property
    def line(self) -> str:
        """The figures in one line, such as 'dry run: 12 NFE, about 2.1 s, peak about 0.6 GB; nothing was written'."""
        peak = "unknown" if self.peak_gb is None else f"about {self.peak_gb:.1f} GB"
        return f"dry run: {self.nfe} NFE, about {self.seconds:.1f} s, peak {peak}; nothing was written"

    @property
    def json(self) -> str:
        """The figures as a JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"


def estimate(
    pipe: "ConstrainedPipeline", task: Task, prompts: dict[str, str | None], count: int, **options: Any
) -> Estimate:
    """Return the estimated cost of `count` samples of a task.

    Args:
        pipe: the model, on its device.
        task: what to sample.
        prompts: `prompt` and `negative_prompt`.
        count: the number of samples.
        options: `guidance_scale`, `solver` and `num_inference_steps` of the pipeline.
    """
    nfe, seconds, largest, extra, solver = 0, 0.0, (0, 0), 0, 0
    following: Task | None = task
    with torch.no_grad(), pipe.vae_in_float32():
        while following is not None:
            runs, crops = _prepared(pipe, following, prompts, **options)
            for run in runs:
                before = _memory(pipe.execution_device)
                calls = run.sampler.evaluations(pipe.schedule(run.plan.size), len(run.timesteps), _entries(pipe, run))
                nfe, seconds = nfe + calls, seconds + _seconds(pipe, run, calls)
                if math.prod(run.plan.size) > math.prod(largest):
                    largest, extra = run.plan.size, max(0, _memory(pipe.execution_device) - before)
                    solver = _solver_bytes(pipe, run)
            black = [torch.zeros(3, *crop.size) for crop in crops]
            following = _next(following, pipe, black, crops)
    pixels = math.prod(largest)
    per_pixel = (extra + solver) // pixels
    peak = _memory(pipe.execution_device)
    peak_gb = None if not peak else round((peak + solver) / _BYTES_PER_GB, 3)
    weights = round(_weight_bytes(pipe) / _BYTES_PER_GB, 3)
    return Estimate(count * nfe, round(count * seconds, 3), peak_gb, weights, per_pixel, largest)


def _prepared(
    pipe: "ConstrainedPipeline",
    task: Task,
    prompts: dict[str, str | None],
    guidance_scale: float | None,
    solver: str | None,
    num_inference_steps: int | None,
) -> "tuple[list[Run], list[Crop]]":
    """Return the runs that sample a task once, ready to start, and the crops of the task."""
    from adhere.pipelines._runs import Batch, RunOptions, plan_runs

    no_embeds = (None, None, None, None)
    batch = Batch.of(task, prompts["prompt"], prompts["negative_prompt"], no_embeds, guidance_scale, 1)
    options = RunOptions(solver, num_inference_steps, torch.Generator(), None, None, (), 1)
    crops = task.crops(pipe)
    with pipe._finite_checks() as checks:
        return pipe._prepare(plan_runs([crops], pipe.to_latent_constraint, 1), batch, options, checks), crops


def _next(task: Task, pipe: "ConstrainedPipeline", samples: list[torch.Tensor], crops: list[Crop]) -> Task | None:
    if type(task).next_pass is Task.next_pass:
        return None
    image: Image.Image = task.postprocess(samples, crops)
    return task.next_pass(pipe, image)


def _entries(pipe: "ConstrainedPipeline", run: "Run") -> int:
    return math.prod(pipe.state_shape(run.plan.size))


def _solver_bytes(pipe: "ConstrainedPipeline", run: "Run") -> int:
    """Return the bytes of the arrays that the solver holds beside an evaluation; at least those of the picture."""
    state, constraint, solver = _entries(pipe, run), run.plan.constraint, run.sampler.solver
    measured = constraint.y[0].numel() if isinstance(constraint, Linear) else state
    directions = kept_directions(measured)
    if isinstance(solver, MomentMatching):
        directions = min(directions, solver.num_iterations)
    arrays = _STATES * state + (_MEASUREMENTS + 2 * directions) * measured
    return max(4 * arrays, _BYTES_PER_PIXEL * math.prod(run.plan.size))


def _seconds(pipe: "ConstrainedPipeline", run: "Run", calls: int) -> float:
    """Return the seconds of a run of `calls` evaluations, taken as equally many at each noise level."""
    like = torch.empty(0, dtype=torch.float32, device=pipe.execution_device)
    x = randn((1, *pipe.state_shape(run.plan.size)), like, torch.Generator().manual_seed(0))
    kinds = [_kind(run.checked.denoiser, x, t) for t in run.timesteps]
    last = dict(zip(kinds, run.timesteps, strict=True))  # the last noise level of each kind
    costs = {kind: _timed(lambda x_t, t=t: run.denoiser(x_t, t), x) for kind, t in last.items()}
    seconds = calls * mean(costs[kind] for kind in kinds)
    return seconds + (_autoencoder_seconds(pipe, run, x) if pipe.is_latent else 0)


def _kind(denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[int, ...]:
    """Return what decides how long an evaluation takes: the down-sampling, whether guidance is on, and the network."""
    kind, level = [], log_snr(denoiser.schedule, t)
    while isinstance(denoiser, DenoiserWrapper):
        if isinstance(denoiser, MultiscaleDenoiser):
            kind.append(denoiser.factor(x_t, t))
            level += math.log(kind[-1])
        elif isinstance(denoiser, ExpertDenoiser):
            kind.append(level >= denoiser.boundary_log_snr)
        elif isinstance(denoiser, CFGDenoiser):
            kind.append(level <= denoiser.max_log_snr)
        denoiser = denoiser.denoiser
    return tuple(kind)


def _timed(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the seconds of function(x), after a call with a small part of x, as the first call is slower."""
    function(x[..., :_WARM_UP_SIDE, :_WARM_UP_SIDE])
    begin = time.perf_counter()
    function(x).sum().item()  # waits for the device
    return time.perf_counter() - begin


def _autoencoder_seconds(pipe: "ConstrainedPipeline", run: "Run", z: Tensor) -> float:
    """Return the seconds of all encodings and decodings of a run on states like z, and of its solver."""
    decoding = _timed(pipe.decode, z)
    constraint = run.plan.constraint
    if not isinstance(constraint, KnownLatents | DecodedConstraint):
        return decoding
    encoding = _timed(constraint.autoencoder.encode, pipe.decode(z))
    begin = time.perf_counter()
    stand_in = _AutoencoderStandIn(constraint.autoencoder.dtype, z.shape[1], run.plan.size[0] // z.shape[2])
    constraint = replace(constraint, autoencoder=stand_in)
    x_T = initial_noise(run.denoiser.schedule, run.timesteps[0], z)
    solver, transition = run.sampler.solver, run.sampler.transition
    for _ in trajectory(
        _DenoiserStandIn(run.denoiser), constraint, solver, x_T, run.timesteps, transition, torch.Generator()
    ):
        pass
    encodings = stand_in.encodings + isinstance(constraint, KnownLatents)  # one has made the constraint
    return encodings * encoding + (stand_in.decodings + 1) * decoding + time.perf_counter() - begin


@dataclass(frozen=True)
class _DenoiserStandIn(DenoiserWrapper):
    """E[x0 | x_t] of white noise of unit variance."""

    denoiser: Denoiser

    def __call__(self, x_t: Tensor, t: float) -> Tensor:
        alpha_t, sigma_t = self.schedule(t)
        return alpha_t / (alpha_t**2 + sigma_t**2) * x_t


@dataclass
class _AutoencoderStandIn:
    """Counts encodings and decodings. Encoding takes means over cells, decoding repeats the first channel."""

    dtype: torch.dtype
    channels: int
    factor: int
    encodings: int = 0
    decodings: int = 0

    def encode(self, x: Tensor) -> Tensor:
        self.encodings += 1
        return avg_pool2d(x.mean(1, keepdim=True), self.factor).expand(-1, self.channels, -1, -1)

    def decode(self, z: Tensor) -> Tensor:
        self.decodings += 1
        return interpolate(z[:, :1], scale_factor=self.factor, mode="nearest").expand(-1, 3, -1, -1)


def _weight_bytes(pipe: "ConstrainedPipeline") -> int:
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def _memory(device: torch.device) -> int:
    """Return the largest number of bytes that the GPU, or else this process, has used; 0 on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_gb(device: torch.device) -> float | None:
    """Return the largest amount of memory that the GPU, or else this process, has used; None on Windows."""
    used = _memory(device)
    return round(used / _BYTES_PER_GB, 3) if used else None
