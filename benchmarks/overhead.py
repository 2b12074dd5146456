"""The time that the sampler takes beside the network, in one run of each method at 256x256 pixels.

    python -m benchmarks.overhead --json out.json [--model FOLDER]

The processor time in the networks' forward calls is measured; the rest of the run is the time of the sampler.
"""

import argparse
import time
from contextlib import ExitStack
from pathlib import Path

import torch

import adhere
from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from adhere.core.presets import PRESETS
from adhere.pipelines.base import ConstrainedPipeline
from benchmarks import masks
from benchmarks.photo import photograph
from benchmarks.tables import Row, meta, save, table

NOT_RUN = {"newton_exact": "it takes one evaluation per entry of the picture"}


def measure(pipe: ConstrainedPipeline, name: str) -> Row:
    """Run a method under the mask of strokes; the score is the sampler's time over the network's."""
    calls: list[float] = []
    networks = [pipe.components[part] for part in ("unet", "unet_2") if pipe.components.get(part) is not None]
    with ExitStack() as stack:
        for network in networks:
            before = network.register_forward_pre_hook(lambda *_: calls.append(-time.process_time()))
            after = network.register_forward_hook(lambda *_: calls.append(calls.pop() + time.process_time()))
            stack.callback(before.remove)
            stack.callback(after.remove)
        begin = time.process_time()
        out = pipe(adhere.Inpaint(photograph("chelsea"), masks.load("strokes")), solver=name)
        seconds = time.process_time() - begin
    if len(calls) != out.nfe:
        raise RuntimeError(f"{name}: {len(calls)} forward calls, but {out.nfe} NFE reported")
    return Row("overhead", "chelsea", name, 0, out.nfe, seconds, scores={"overhead": seconds / sum(calls) - 1})


def is_run(pipe: ConstrainedPipeline, name: str) -> bool:
    """Return whether a method supports masks on pixels and has no backward passes, whose time is not measured."""
    known = torch.from_numpy(~masks.load("strokes"))[None, None].float()
    constraint = pipe.to_latent_constraint(Linear(Mask(known), torch.zeros(1, 3, masks.SIZE_PIXELS, masks.SIZE_PIXELS)))
    sampler = PRESETS[name]
    is_forward_only = sampler.backward_passes(pipe.schedule()) == 0
    return name not in NOT_RUN and is_forward_only and sampler.solver.supports(constraint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--model", type=Path, help="a diffusers folder instead of the shipped model")
    args = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    pipe = adhere.load(args.model)
    pipe.set_progress_bar_config(disable=True)
    task = adhere.Inpaint(photograph("chelsea"), masks.load("strokes"))
    pipe(task, solver="ddnm", num_inference_steps=2)  # the first run is slower
    rows = [measure(pipe, name) for name in PRESETS if is_run(pipe, name)]
    print(table(rows, ("nfe", "seconds", "overhead")))
    save(args.json, rows, meta())


if __name__ == "__main__":
    main()
