"""Benchmark results: one row for each run of one method on one item with one seed.

    python -m benchmarks.rows benchmarks/results/photo.json --plot out.png

A results file is JSON, {"meta": {...}, "rows": [...]}, each row flat: task, item, method, seed, nfe, seconds, peak_mb
and the scores that were measured, named as in METRICS. JSON has no infinity: a value that is not finite is written as
null and read as nan. Two settings of one method are two methods, 'name @ setting': a plot joins them with a line.
"""

import argparse
import datetime
import json
import math
import os
import platform
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from adhere import __version__


class Metric(NamedTuple):
    """How a column is shown and what is best: the nearest to `goal`; inf: the highest; None: no merit either way."""

    label: str
    goal: float | None
    format: str


METRICS = {
    "psnr": Metric("PSNR (dB)", math.inf, ".2f"),
    "ssim": Metric("SSIM", 1, ".3f"),
    "feature_distance": Metric("feature distance", 0, ".4f"),
    "frechet": Metric("Fréchet distance", 0, ".0f"),
    "nearest_psnr": Metric("PSNR to nearest training picture", None, ".2f"),
    "residual": Metric("residual", None, ".2e"),  # best at the measurement's noise
    "mean_error": Metric("mean error", 0, ".4f"),
    "cov_error": Metric("covariance error", 0, ".3f"),
    "sw2": Metric("sliced W2", 0, ".4f"),
    "energy": Metric("energy distance", 0, ".4f"),
    "log_p": Metric("log p", None, ".3f"),
    "spread": Metric("spread", 1, ".2f"),
    "radius": Metric("radius of J", None, ".2f"),
    "skew": Metric("skew / symmetric", None, ".3f"),
    "negative": Metric("most negative / radius", None, ".3f"),
    "calibration": Metric("told / made variance", None, ".2f"),
    "cosine": Metric("cosine of J g and e", 1, ".3f"),
    "residual_left": Metric("residual left", 0, ".3f"),
    "overhead": Metric("sampler / network", -1, ".2%"),
    "nfe": Metric("NFE", None, ".0f"),
    "work": Metric("work", None, ".0f"),
    "strength": Metric("strength", None, ".1f"),
    "seconds": Metric("seconds", 0, ".2f"),
    "times_plain": Metric("times plain", 0, ".2f"),
    "peak_mb": Metric("peak MB", 0, ".0f"),
    "working_mb": Metric("MB above the model", 0, ".1f"),
}


@dataclass(frozen=True)
class Row:
    """One run: `nfe` counts denoiser calls, `seconds` is wall time, `peak_mb` the peak memory if measured.

    Raises ValueError for a score that METRICS does not know.
    """

    task: str
    item: str
    method: str
    seed: int
    nfe: float
    seconds: float
    peak_mb: float | None = None
    scores: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.scores) - (set(METRICS) - FIELDS):
            raise ValueError(f"unknown scores {sorted(unknown)}: METRICS has {sorted(set(METRICS) - FIELDS)}")

    def value(self, column: str) -> float | None:
        """The value in one column of METRICS, None where it was not measured."""
        return getattr(self, column) if column in FIELDS else self.scores.get(column)


FIELDS = {f.name for f in fields(Row)} - {"scores"}


def meta() -> dict[str, Any]:
    """Say what was measured where and when: version, processor, cores, torch, date; never a host name."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "version": __version__,
        "machine": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def save(path: str | Path, rows: Iterable[Row], meta: dict[str, Any]) -> None:
    """Write a results file at once or not at all; folders are made."""
    flat = []
    for row in rows:
        record = asdict(row)
        record |= {name: float(score) for name, score in record.pop("scores").items()}  # numpy and torch scalars too
        measured = {k: v for k, v in record.items() if v is not None}
        flat.append({k: None if v in (math.inf, -math.inf) or v != v else v for k, v in measured.items()})
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    head, *records = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in [meta, *flat])
    body = ",\n  ".join(records)
    part.write_text(f'{{"meta": {head},\n "rows": [\n  {body}\n]}}\n', encoding="utf-8")
    part.replace(path)


def load(path: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """Read a results file: (rows, meta)."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = []
    for record in content["rows"]:
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in record.items()}
        rows.append(Row(scores={k: values.pop(k) for k in set(values) - FIELDS}, **values))
    return rows, content["meta"]


def _groups(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by task, then by method, both in the order of first appearance."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.task, {}).setdefault(row.method, []).append(row)
    return groups


def _values(rows: Iterable[Row], column: str) -> list[float]:
    return [v for row in rows if (v := row.value(column)) is not None]


def _mean(rows: Iterable[Row], column: str) -> float | None:
    values = _values(rows, column)
    return fmean(values) if values else None


# Of the 95 % interval of a mean of 2, 3, ... values, in standard errors: Student's law; the normal one from 11 on.
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean; nan of fewer than two values."""
    if (n := len(values)) < 2:
        return math.nan
    return (STUDENT[n - 2] if n - 2 < len(STUDENT) else 1.96) * stdev(values) / n**0.5


def _by_item(rows: Iterable[Row], column: str) -> list[float]:
    """The mean over seeds of each item: seeds of one picture are not independent of each other."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if (value := row.value(column)) is not None:
            groups.setdefault(row.item, []).append(value)
    return [fmean(group) for group in groups.values()]


def table(
    rows: Iterable[Row],
    columns: Sequence[str] | None = None,
    reference: Collection[str] = ("exact",),
    intervals: bool = False,
) -> str:
    """Markdown: one table a task, one line a method, means over items and seeds, the best of each column in bold.

    `columns` are names from METRICS, by default all that the task has. `reference` methods are shown, never marked. A
    method that was run on fewer items and seeds than another says so, since its means are then of something else.
    `intervals` adds half of the 95 % interval to the scores.
    """
    parts = []
    for task, methods in _groups(rows).items():
        names = columns or [c for c in METRICS if any(_mean(group, c) is not None for group in methods.values())]
        items = {method: len({row.item for row in group}) for method, group in methods.items()}  # some need no seeds
        most = max(items.values())
        lines = [["method", *(METRICS[c].label for c in names)], ["---", *("---:" for _ in names)]]
        cells = [_cells({m: _mean(group, c) for m, group in methods.items()}, METRICS[c], reference) for c in names]
        if intervals:
            cells = [_with_intervals(texts, methods, c) for c, texts in zip(names, cells, strict=True)]
        for method in methods:
            note = "" if items[method] == most else f" ({items[method]} of {most} items)"
            lines.append([method.replace("|", "\\|") + note, *(column[method] for column in cells)])
        parts.append(f"### {task}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts) + "\n"


def _cells(values: dict[str, float | None], metric: Metric, reference: Collection[str]) -> dict[str, str]:
    """One column as text by method; all that look the same as the best are bold."""
    texts = {m: "–" if v is None else format(v, metric.format) for m, v in values.items()}
    rivals = {m: v for m, v in values.items() if m not in reference and v is not None and not math.isnan(v)}
    if (goal := metric.goal) is None or len(values) < 2 or not rivals:
        return texts
    best = texts[min(rivals, key=lambda m: -rivals[m] if goal == math.inf else abs(rivals[m] - goal))]
    return {m: f"**{text}**" if m in rivals and text == best else text for m, text in texts.items()}


def _with_intervals(texts: dict[str, str], methods: dict[str, list[Row]], column: str) -> dict[str, str]:
    """A column's texts with +- half of the 95 % interval, where it is a score of several items."""
    halves = {m: half_interval(_by_item(group, column)) for m, group in methods.items() if column not in FIELDS}
    form = METRICS[column].format
    return {m: t if math.isnan(half := halves.get(m, math.nan)) else f"{t} ± {half:{form}}" for m, t in texts.items()}


def plot(rows: Iterable[Row], path: str | Path, metric: str, against: str = "nfe") -> None:
    """Draw the means of `metric` against those of another, a panel a task; a method without calls is a dashed line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = _groups(row for row in rows if row.value(metric) is not None)
    if not groups:
        raise ValueError(f"no row has '{metric}'; plot one of {list(METRICS)} that the rows have")
    figure = Figure(figsize=(4.5 * len(groups), 4.5), layout="constrained")
    colours: dict[str, str] = {}
    for axes, (task, methods) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for method, group in methods.items():
            at = _mean(group, against) if _mean(group, "nfe") else None
            point = (at or 0.0, _mean(group, metric) or 0.0)
            curves.setdefault(method.split(" @ ")[0], []).append(point)
        for name, points in curves.items():
            shown = None if name in colours else name  # once in the legend
            colour = colours.setdefault(name, f"C{len(colours) % 10}")
            if all(at > 0 for at, _ in points):
                axes.semilogx(*zip(*sorted(points), strict=True), "o-", color=colour, label=shown)
            else:
                axes.axhline(points[0][1], linestyle="--", color=colour, label=shown)
        axes.set(title=task, xlabel=METRICS[against].label, ylabel=METRICS[metric].label)
        axes.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter=StrMethodFormatter("{x:g}"),
            minor_formatter=NullFormatter(),
        )
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)


def embed(page: Path, name: str, text: str) -> None:
    """Put `text` between <!-- name --> and <!-- /name --> of a page; ValueError when the page has no such place."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{page} has no {begin} ... {end} to put the tables in")
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the tables of a results file, and plot it if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw --metric --against another")
    parser.add_argument("--embed", type=Path, metavar="PAGE", help="put the tables at <!-- NAME --> of this page")
    parser.add_argument("--intervals", action="store_true", help="with half of the 95 %% interval of each mean")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these, in this order")
    parser.add_argument("--metric", default="psnr", choices=METRICS, help="what --plot draws")
    parser.add_argument("--against", default="nfe", choices=METRICS, help="what --plot draws it against")
    args = parser.parse_args()
    rows, about = load(args.results)
    if args.tasks:
        if unknown := set(args.tasks) - {row.task for row in rows}:
            parser.error(f"no rows of {sorted(unknown)}; there are {sorted({row.task for row in rows})}")
        rows = [row for task in args.tasks for row in rows if row.task == task]
    text = table(rows, intervals=args.intervals)
    print(text, ", ".join(f"{k} {v}" for k, v in about.items()), sep="\n")
    if args.embed:
        embed(args.embed, args.results.stem, text)
    if args.plot:
        plot(rows, args.plot, args.metric, args.against)


if __name__ == "__main__":
    main()
