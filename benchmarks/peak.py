"""Peak memory and time of the methods, each in a process of its own, and of two ways to get gradients of the decoder.

    python -m benchmarks.peak --json out.json [--model FOLDER] [--batches 1 16] [--methods ...] [--tasks ...]

The first tables complete right halves of emoji, one or several at once, at given numbers of evaluations; 'plain @ 20'
is unconstrained sampling. The last tables run super-resolution, x8 with moment matching at its own number of
evaluations, and x4 with inexact Newton and moment matching, where the constraint is linearized through the decoder by
differences of the encoder or by autograd. Seconds are the
median of several runs. `times plain` is the median ratio to a run of plain @ 20 just before. `peak MB` is the largest
resident memory in the first run, and `MB above the model` its difference to the memory with the model loaded. The
script reads /proc, so it needs Linux. Rows of other methods that are in the file are kept; compare `times plain`, since
their seconds may be of another day.
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
from benchmarks.emoji_tasks import TASKS, own_nfe, quiet_pipeline, run, sampler_for_budget
from benchmarks.grids import to_tensor
from benchmarks.tables import Row, load, meta, save, table

PLAIN = ("plain", 20)
MIN_SECONDS, MIN_RUNS, MAX_RUNS = 30, 3, 9  # of the timed runs of a row
PRESET_METHODS = ("moment_matching", "moment_matching_fast", "moment_matching_posterior")
RUNS = (
    PLAIN,
    *((name, own_nfe(name)) for name in PRESET_METHODS),
    *((name, 40) for name in ("inexact_newton", "ddnm", "mpgd", "dps")),
    *((name, 220) for name in ("inexact_newton", "dps")),
)
X8 = ("moment_matching", "moment_matching_fast")
THROUGH_DECODER = (("inexact_newton", 40), ("moment_matching", own_nfe("moment_matching")))
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
    parser.add_argument("--tasks", nargs="+", choices=("half", "x8", "x4"), default=["half", "x8", "x4"])
    args = parser.parse_args()
    rows = []

    def add(task: str, name: str, nfe: int, batch: int, method: str, backward: bool = False) -> None:
        if task not in args.tasks:
            return
        title = f"{task}, {batch} at once"
        settings = (args.model, title, task, name, nfe, batch, backward, torch.get_num_threads())
        rows.append(replace(in_new_process(measure, *settings), method=method))

    for batch in args.batches:
        for name, nfe in (pair for pair in RUNS if pair == PLAIN or pair[0] in args.methods):
            add("half", name, nfe, batch, f"{name} @ {nfe}")
        for name in (name for name in X8 if name in args.methods):
            add("x8", name, own_nfe(name), batch, f"{name} @ {own_nfe(name)}")
        for name, nfe in (pair for pair in THROUGH_DECODER if pair[0] in args.methods):
            for backward, gradients in ((False, "encoder"), (True, "decoder autograd")):
                add("x4", name, nfe, batch, f"{name} @ {nfe}, {gradients}", backward)
    measured = {(row.task, row.method) for row in rows}
    kept = [row for row in load(args.json)[0] if (row.task, row.method) not in measured] if args.json.exists() else []
    rows += kept
    save(args.json, rows, meta())
    print(table(rows, ("residual", "nfe", "work", "seconds", "times_plain", "peak_mb", "working_mb")))


if __name__ == "__main__":
    main()
