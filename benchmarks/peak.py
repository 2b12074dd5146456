"""Peak memory and seconds of every method, each run in a process of its own; and gradients of the decoder, two ways.

    python -m benchmarks.peak --json out.json [--model FOLDER] [--batches 1 16] [--methods ...]

The first tasks: half an emoji given, so many at once, at budgets of evaluations; 'plain @ 20' is unconstrained
sampling. The last: super-resolution x4 by inexact Newton and moment matching, the constraint taken through the decoder
by differences of the encoder (VAE-Newton) or by autograd, with the residual of each. Seconds are the median of several
runs; `times plain` that of each over a run of plain @ 20 just before it. `peak MB` is the largest resident set in the
first run, `MB above the model` how much that is above the process with the model loaded. Reads /proc, so Linux only.
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

from adhere.conditioning import Conditioning
from adhere.core.constraints import Constraint, Unconstrained
from adhere.core.solvers import DEFAULT_METHOD, Method
from benchmarks import held_out
from benchmarks.emoji_tasks import TASKS, method_at, quiet_pipeline, run
from benchmarks.rows import Row, meta, save, table
from training.emoji.autoencoder import to_tensor

PLAIN = ("plain", 20)
SECONDS = 30  # of a row's runs, but for the first
RUNS = (
    PLAIN,
    (DEFAULT_METHOD, 24),
    *((name, 40) for name in (DEFAULT_METHOD, "moment_matching", "inexact_newton", "ddnm", "mpgd", "dps")),
    *((name, 220) for name in ("inexact_newton", "dps")),
)
THROUGH_DECODER = ("inexact_newton", "moment_matching")
T = TypeVar("T")


def in_a_fresh_process(function: Callable[..., T], *args: object) -> T:
    """function(*args), whatever memory this process and earlier runs hold."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def resident_mb(which: str) -> float:
    """'VmRSS': what this process holds now; 'VmHWM': the most it held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {which}")


def measure(
    model: str, title: str, task: str, name: str, nfe: int, batch: int, decoder_backward: bool, threads: int
) -> Row:
    """One run, here and now."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    pipe = quiet_pipeline(model)
    items, pictures = held_out.load(batch)
    asked = TASKS[task](to_tensor(pictures))
    constraint = Unconstrained() if name == "plain" else asked.constraint
    method, work = method_at(name, nfe, pipe.schedule())
    before = resident_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, that of loading

    def once(constraint: Constraint, method: Method) -> tuple[Tensor, int, float]:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        return run(pipe, constraint, method, Conditioning(batch), generators, decoder_backward)

    made, calls, _ = once(constraint, method)
    peak = resident_mb("VmHWM")
    pairs = []
    while len(pairs) < 3 or (sum(map(sum, pairs)) < SECONDS and len(pairs) < 9):
        plain = once(Unconstrained(), method_at(*PLAIN)[0])[2]
        pairs.append((plain, once(constraint, method)[2]))
    seconds = median(seconds for _, seconds in pairs)
    scores = {"working_mb": peak - before, "work": work}
    if name != "plain":
        scores["times_plain"] = median(seconds / plain for plain, seconds in pairs)
        with torch.inference_mode():
            scores["residual"] = float(asked.constraint.error(made).square().mean().sqrt())
    return Row(title, f"{len(items)} at once", name, 0, calls, seconds / batch, peak, scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--model", default="adhere-emoji", help="a diffusers folder instead of the shipped model")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    methods = list(dict.fromkeys(name for name, _ in RUNS))
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    args = parser.parse_args()
    rows = []  # its seconds are compared: all of one run, never resumed
    for batch in args.batches:
        for name, nfe in (pair for pair in RUNS if pair == PLAIN or pair[0] in args.methods):
            settings = (args.model, f"half, {batch} at once", "half", name, nfe, batch, False)
            row = in_a_fresh_process(measure, *settings, torch.get_num_threads())
            rows.append(replace(row, method=f"{name} @ {nfe}"))
        for name in THROUGH_DECODER:
            for backward, how in ((False, "encoder"), (True, "decoder autograd")):
                settings = (args.model, f"x4, {batch} at once", "x4", name, 40, batch, backward)
                row = in_a_fresh_process(measure, *settings, torch.get_num_threads())
                rows.append(replace(row, method=f"{name}, {how}"))
    save(args.json, rows, meta())
    print(table(rows, ("residual", "nfe", "work", "seconds", "times_plain", "peak_mb", "working_mb")))


if __name__ == "__main__":
    main()
