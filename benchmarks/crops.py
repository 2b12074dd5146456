"""Time and memory of splitting a mask of 48 megapixels into crops.

    python -m benchmarks.crops

Each mask is measured in a process of its own, since a process reports only its largest amount of memory so far. The
limits are 2 seconds and 300 MB, of which the mask itself takes 48.
"""

import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from adhere.io._crops import crops_around

SIZE = (6000, 8000)
CONTEXT = 96  # of the shipped models
MAX_SECONDS, MAX_MB = 2.0, 300.0
MASKS = ("solid", "holes", "scattered")


def mask_of(name: str) -> np.ndarray:
    """Return a mask of which about 95 % are True."""
    rng = np.random.default_rng(0)
    mask = np.ones(SIZE, bool)
    if name == "solid":
        mask[: SIZE[0] // 20] = False
    elif name == "holes":
        for y, x in zip(rng.integers(0, SIZE[0], 30), rng.integers(0, SIZE[1], 30), strict=True):
            mask[y : y + 300, x : x + 300] = False
    else:
        for row in mask:
            row[rng.integers(0, SIZE[1], SIZE[1] // 20)] = False
    return mask


def measure(name: str) -> tuple[float, float, int, float]:
    """Return the masked share, the seconds, the number of crops, and the largest memory of the split in MB."""
    mask = mask_of(name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    crops = crops_around(mask, CONTEXT)
    seconds = time.perf_counter() - begin
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return float(mask.mean()), seconds, len(crops), (mask.nbytes + 1024 * extra) / 1e6


def main() -> None:
    is_within = True
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for name, (share, seconds, count, megabytes) in zip(MASKS, pool.map(measure, MASKS), strict=True):
            print(f"{name}: {share:.1%} masked, {count} crops, {seconds:.2f} s, {megabytes:.0f} MB")
            is_within &= seconds < MAX_SECONDS and megabytes < MAX_MB
    sys.exit(not is_within)


if __name__ == "__main__":
    main()
