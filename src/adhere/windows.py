"""The parts of a large photograph that are worked on: each hole with its surroundings, holes close together as one.

A window is (rows, columns), two slices. No window holds a pixel to repaint that is not its own, so windows are sampled
apart and pasted in any order.
"""

from functools import reduce
from itertools import product

import numpy as np
from jaxtyping import Bool

Box = tuple[slice, slice]


def windows_around(repaint: Bool[np.ndarray, "h w"], context: int) -> list[Box]:
    """Every hole within `context` known pixels, cut at the picture's edges; from the top left to the bottom right."""
    holes: list[Box] = []
    for hole in _clusters(repaint, context):
        while near := [other for other in holes if _touch(_grown(hole, context), other)]:
            hole = reduce(_union, near, hole)
            holes = [other for other in holes if other not in near]
        holes.append(hole)
    height, width = repaint.shape
    cut = lambda span, size: slice(max(0, span.start), min(size, span.stop))  # noqa: E731
    windows = [(cut(rows, height), cut(columns, width)) for rows, columns in (_grown(hole, context) for hole in holes)]
    return sorted(windows, key=lambda window: (window[0].start, window[1].start))


def _clusters(repaint: np.ndarray, cell: int) -> list[Box]:
    """Bounding boxes of the pixels to repaint, joined over cells of `cell` pixels that touch, corners included."""
    ys, xs = np.nonzero(repaint)
    cells, owner = np.unique(np.stack([ys // cell, xs // cell], 1), axis=0, return_inverse=True)
    index = {(int(y), int(x)): i for i, (y, x) in enumerate(cells)}
    label = [-1] * len(cells)
    for first in range(len(cells)):
        stack = [first] if label[first] < 0 else []
        while stack:
            here = stack.pop()
            label[here] = first
            y, x = map(int, cells[here])
            near = (index.get((y + dy, x + dx), -1) for dy, dx in product((-1, 0, 1), repeat=2))
            stack += [other for other in near if other >= 0 and label[other] < 0]
    labels = np.array(label)[owner.ravel()]
    return [_bounds(ys[labels == one], xs[labels == one]) for one in np.unique(labels)]


def _bounds(ys: np.ndarray, xs: np.ndarray) -> Box:
    return slice(int(ys.min()), int(ys.max()) + 1), slice(int(xs.min()), int(xs.max()) + 1)


def _grown(box: Box, by: int) -> Box:
    rows, columns = box
    return slice(rows.start - by, rows.stop + by), slice(columns.start - by, columns.stop + by)


def _touch(a: Box, b: Box) -> bool:
    return all(one.start < other.stop and other.start < one.stop for one, other in zip(a, b, strict=True))


def _union(a: Box, b: Box) -> Box:
    rows, columns = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return rows, columns
