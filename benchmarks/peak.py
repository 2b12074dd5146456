"""Peak memory and time of the methods, each in a process of its own, and of two ways to get gradients of the decoder.

    python -m benchmarks.peak --json out.json [--model FOLDER] [--batches 1 16] [--methods ...]

The first tables complete right halves of emoji, one or several at once, at given numbers of evaluations; 'plain @ 20'
is unconstrained sampling. The last tables run super-resolution x4 with inexact Newton and moment matching, where the
constraint is linearized through the decoder by differences of the encoder or by autograd. Seconds are the
median of several runs. `times plain` is the median ratio to a run of plain @ 20 just before. `peak MB` is the largest
resident memory in the first run, and `MB above the model` its difference to the memory with the model loaded. The
script reads /proc, so it needs Linux.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from adhere.core.constraints import Constraint, Unconstrained
from adhere.core.sampling import Sampler
from adhere.pipelines.prompts import PromptInputs
from benchmarks import held_out
from benchmarks.emoji_tasks import TASKS, quiet_pipeline, run, sampler_for_budget
from benchmarks.grids import to_tensor
from benchmarks.tables import Row, meta, save, table

PLAIN = ("plain", 20)
MIN_SECONDS, MIN_RUNS, MAX_RUNS = 30, 3, 9  # of the timed runs of a row
RUNS = (
    PLAIN,
    ("moment_matching", 24),
    *((name, 40) for name in ("moment_matching", "moment_matching_posterior", "inexact_newton", "ddnm", "mpgd", "dps")),
    *((name, 220) for name in ("inexact_newton", "dps")),
)
THROUGH_DECODER = ("inexact_newton", "moment_matching_posterior")
T = TypeVar("T")


def in_new_process(function: Callable[..., T], *args: object) -> T:
    """Return function(*args), computed in a process without the memory of earlier runs."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def resident_mb(field: str) -> float:
    """Return a field of /proc/self/status in MB: 'VmRSS' is the current resident memory, 'VmHWM' its maximum."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(
    model: str, title: str, task: str, name: str, nfe: int, batch: int, decoder_backward: bool, threads: int
) -> Row:
    """Return the row of one method, run in this process.

    Args:
        model: A shipped model or a diffusers folder.
        title: The heading of the row's table.
        task: A name in TASKS.
        name: The name of a preset.
        nfe: The budget of evaluations.
        batch: The number of emoji.
        decoder_backward: Whether gradients of the decoder are taken by autograd.
        threads: The number of threads of torch.
    """
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    pipe = quiet_pipeline(model)
    items, pictures = held_out.load(batch)
    emoji_task = TASKS[task](to_tensor(pictures))
    constraint = Unconstrained() if name == "plain" else emoji_task.constraint
    sampler, work = sampler_for_budget(name, nfe, pipe.schedule())
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM, which still holds the peak of loading

    def run_once(constraint: Constraint, sampler: Sampler) -> tuple[Tensor, int, float]:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        return run(pipe, constraint, sampler, PromptInputs(batch), generators, decoder_backward)

    results, calls, _ = run_once(constraint, sampler)
    peak = resident_mb("VmHWM")
    pairs = []
    while len(pairs) < MIN_RUNS or (sum(map(sum, pairs)) < MIN_SECONDS and len(pairs) < MAX_RUNS):
        plain = run_once(Unconstrained(), sampler_for_budget(*PLAIN)[0])[2]
        pairs.append((plain, run_once(constraint, sampler)[2]))
    seconds = median(seconds for _, seconds in pairs)
    scores = {"working_mb": peak - before, "work": work}
    if name != "plain":
        scores["times_plain"] = median(seconds / plain for plain, seconds in pairs)
        with torch.inference_mode():
            scores["residual"] = float(emoji_task.constraint.residual_norm(results).square().mean().sqrt())
    return Row(title, f"{len(items)} at once", name, 0, calls, seconds / batch, peak, scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--model", default="adhere-emoji", help="a diffusers folder instead of the shipped model")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16], help="numbers of emoji at once")
    methods = list(dict.fromkeys(name for name, _ in RUNS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    args = parser.parse_args()
    rows = []  # all rows are measured in one run, because their seconds are compared
    for batch in args.batches:
        for name, nfe in (pair for pair in RUNS if pair == PLAIN or pair[0] in args.methods):
            settings = (args.model, f"half, {batch} at once", "half", name, nfe, batch, False)
            row = in_new_process(measure, *settings, torch.get_num_threads())
            rows.append(replace(row, method=f"{name} @ {nfe}"))
        for name in THROUGH_DECODER:
            for backward, gradients in ((False, "encoder"), (True, "decoder autograd")):
                settings = (args.model, f"x4, {batch} at once", "x4", name, 40, batch, backward)
                row = in_new_process(measure, *settings, torch.get_num_threads())
                rows.append(replace(row, method=f"{name}, {gradients}"))
    save(args.json, rows, meta())
    print(table(rows, ("residual", "nfe", "work", "seconds", "times_plain", "peak_mb", "working_mb")))


if __name__ == "__main__":
    main()
