"""What the sampler itself costs, beside the network, in one run of each method at 256x256.

    python -m benchmarks.overhead --json out.json [--model FOLDER]

Counted are the network's forward calls and the time inside them; the rest of the sampling loop is the sampler's own.
"""

import argparse
import time
from pathlib import Path

import torch

from adhere import ConstrainedPipeline, Inpaint
from adhere.core.solvers import METHODS
from benchmarks import masks
from benchmarks.photo import picture
from benchmarks.rows import Row, meta, save, table

# Backward passes are no forward calls; psld and newton_exact are not for this model.
LEFT_OUT = ("dps", "freedom", "mmps", "psld", "newton_exact")


def measure(pipe: ConstrainedPipeline, name: str) -> Row:
    """One run of a method under the strokes mask; the score is the sampler's time over the network's."""
    calls: list[float] = []
    network = pipe.unet  # type: ignore[attr-defined]
    before = network.register_forward_pre_hook(lambda *_: calls.append(-time.perf_counter()))
    after = network.register_forward_hook(lambda *_: calls.append(calls.pop() + time.perf_counter()))
    try:
        out = pipe(Inpaint(picture("chelsea"), masks.load("strokes")), solver=name)
    finally:
        before.remove()
        after.remove()
    assert not isinstance(out, tuple)
    if len(calls) != out.nfe:
        raise RuntimeError(f"{name}: {len(calls)} forward calls, but {out.nfe} NFE reported")
    return Row("overhead", "chelsea", name, 0, out.nfe, out.seconds, scores={"overhead": out.seconds / sum(calls) - 1})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the rows go")
    parser.add_argument("--model", type=Path, help="a diffusers folder instead of the shipped model")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    pipe = ConstrainedPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    pipe(Inpaint(picture("chelsea"), masks.load("strokes")), solver="ddnm", num_inference_steps=2)  # warm up
    rows = [measure(pipe, name) for name in METHODS if name not in LEFT_OUT]
    print(table(rows, ("nfe", "seconds", "overhead")))
    save(args.json, rows, meta())


if __name__ == "__main__":
    main()
