"""Crops of a large picture: the parts that are sampled when only a small share of it is masked.

A box is (rows, columns), a pair of slices. A crop is the bounding box of one region of the mask, extended by a margin
of context. Regions that are close together share a crop, and no crop contains masked pixels of another crop. Crops can
therefore be sampled separately and pasted back in any order. The mask is first reduced to cells, because even a large
picture has few of them (`benchmarks.crops`).
"""

from collections import deque
from functools import reduce

import numpy as np
from jaxtyping import Bool

Box = tuple[slice, slice]
Run = tuple[int, int, int]  # cells of one row: (row, first column, column after the last)


def crops_around(mask: Bool[np.ndarray, "H W"], context: int) -> list[Box]:
    """Return the boxes to sample so that every masked pixel is in exactly one of them.

    Args:
        mask: Bool array (H, W), True = inpaint.
        context: Margin around each region of the mask, in pixels, at least 1. Crops are cut at the picture's edges.

    Returns:
        The crops, sorted by their first row, then by their first column.
    """
    regions: list[Box] = []
    for region in _region_boxes(mask, context):
        while near := [other for other in regions if _overlap(_expand(region, context), other)]:
            region = reduce(_union, near, region)
            regions = [other for other in regions if other not in near]
        regions.append(region)
    crops = [_clip(_expand(region, context), mask.shape) for region in regions]
    return sorted(crops, key=lambda crop: (crop[0].start, crop[1].start))


def _region_boxes(mask: np.ndarray, cell_size: int) -> list[Box]:
    """Return the bounding box of the masked pixels in each group of connected cells of `cell_size` pixels per side."""
    starts = [range(0, side, cell_size) for side in mask.shape]
    cells = np.logical_or.reduceat(np.logical_or.reduceat(mask, starts[0], axis=0), starts[1], axis=1)
    return [_bounds(mask, runs, cell_size) for runs in _components(cells)]


def _components(cells: Bool[np.ndarray, "h w"], by_corners: bool = True) -> list[list[Run]]:
    """Return the runs of each connected component of the cells.

    Args:
        cells: (h, w), True = part of a component.
        by_corners: Whether cells that touch only at a corner are connected; those that touch at a side always are.
    """
    reach = 0 if by_corners else 1
    edges = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(edges == 1)
    stops = np.nonzero(edges == -1)[1]
    components: dict[int, list[Run]] = {}
    label_of: dict[Run, int] = {}
    above: deque[Run] = deque()
    current: deque[Run] = deque()
    for label, run in enumerate(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)):
        row, start, stop = run
        if current and row > current[-1][0]:
            above, current = current, deque()
        while above and (above[0][0] < row - 1 or above[0][2] < start + reach):
            above.popleft()  # it touches neither this run nor the next ones
        components[label], label_of[run] = [run], label
        for other in above:
            if other[1] > stop - reach:
                break
            if label_of[other] != label_of[run]:
                small, large = sorted((label_of[other], label_of[run]), key=lambda one: len(components[one]))
                label_of.update(dict.fromkeys(components[small], large))
                components[large] += components.pop(small)
        current.append(run)
    return list(components.values())


def _bounds(mask: np.ndarray, runs: list[Run], cell_size: int) -> Box:
    """Return the bounding box of the masked pixels in the cells of the runs; only the outermost cells are read."""
    top, bottom = min(run[0] for run in runs), max(run[0] for run in runs)
    left, right = min(run[1] for run in runs), max(run[2] for run in runs)

    def extent(axis: int, boxes: list[Run]) -> list[int]:
        """Return the first and the last row (axis 0) or column (axis 1) with masked pixels in some cells."""
        found = []
        for row, start, stop in boxes:
            y, x = row * cell_size, start * cell_size
            lines = np.flatnonzero(mask[y : y + cell_size, x : stop * cell_size].any(1 - axis)) + (y, x)[axis]
            found += [int(lines[0]), int(lines[-1])]
        return found

    return (
        slice(
            min(extent(0, [run for run in runs if run[0] == top])),
            max(extent(0, [run for run in runs if run[0] == bottom])) + 1,
        ),
        slice(
            min(extent(1, [(run[0], left, left + 1) for run in runs if run[1] == left])),
            max(extent(1, [(run[0], right - 1, right) for run in runs if run[2] == right])) + 1,
        ),
    )


def _expand(box: Box, margin: int) -> Box:
    rows, columns = box
    return slice(rows.start - margin, rows.stop + margin), slice(columns.start - margin, columns.stop + margin)


def _clip(box: Box, size: tuple[int, ...]) -> Box:
    rows, columns = (slice(max(0, span.start), min(side, span.stop)) for span, side in zip(box, size, strict=True))
    return rows, columns


def _overlap(a: Box, b: Box) -> bool:
    return all(p.start < q.stop and q.start < p.stop for p, q in zip(a, b, strict=True))


def _union(a: Box, b: Box) -> Box:
    rows, columns = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return rows, columns
