"""Crops of a large picture: the parts that are sampled when only a small share of it is masked.

A box is (rows, columns), a pair of slices. A crop is the bounding box of one region of the mask, extended by a margin
of context. Regions that are close together share a crop, and no crop contains masked pixels of another crop. Crops can
therefore be sampled separately and pasted back in any order.
"""

from functools import reduce
from itertools import product

import numpy as np
from jaxtyping import Bool

Box = tuple[slice, slice]


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
    """Bounding boxes of the masked pixels, grouped by connected cells of `cell_size` x `cell_size` pixels."""
    ys, xs = np.nonzero(mask)
    cells, cell_of_pixel = np.unique(np.stack([ys // cell_size, xs // cell_size], 1), axis=0, return_inverse=True)
    labels = np.array(_component_labels(cells))[cell_of_pixel.ravel()]
    return [_bounds(ys[labels == label], xs[labels == label]) for label in np.unique(labels)]


def _component_labels(cells: np.ndarray) -> list[int]:
    """A label for each cell (row, column); cells that touch at a side or a corner have the same label."""
    index = {(int(y), int(x)): i for i, (y, x) in enumerate(cells)}
    labels = [-1] * len(cells)
    for label in range(len(cells)):
        stack = [label] if labels[label] < 0 else []
        while stack:
            i = stack.pop()
            labels[i] = label
            y, x = map(int, cells[i])
            neighbors = (index.get((y + dy, x + dx), -1) for dy, dx in product((-1, 0, 1), repeat=2))
            stack += [j for j in neighbors if j >= 0 and labels[j] < 0]
    return labels


def _bounds(ys: np.ndarray, xs: np.ndarray) -> Box:
    return slice(int(ys.min()), int(ys.max()) + 1), slice(int(xs.min()), int(xs.max()) + 1)


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
