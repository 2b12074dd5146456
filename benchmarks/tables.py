"""The common format of benchmark results, and tables and plots of them.

    python -m benchmarks.tables benchmarks/results/photo.json --plot out.png

A results file is JSON, {"meta": {...}, "rows": [...]}. A row is one run of one method on one item with one seed. It is
flat: task, item, method, seed, nfe, seconds, peak_mb, and those scores of METRICS that were measured. JSON has no
infinity and no nan, so a value that is not finite is written as null and read as nan. Several settings of one method
are written as 'name @ setting'; a plot joins them with a line.
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
    """A column of the tables.

    Attributes:
        label: The header.
        goal: The best value is the one closest to it; infinity: the largest is best; None: no value is best.
        format: The format of the values.
    """

    label: str
    goal: float | None
    format: str


ALL = "all"  # the item of a row about all items
METRICS = {
    "psnr": Metric("PSNR (dB)", math.inf, ".2f"),
    "psnr_four": Metric("PSNR of the four (dB)", math.inf, ".2f"),
    "ssim": Metric("SSIM", 1, ".3f"),
    "feature_distance": Metric("feature distance", 0, ".4f"),
    "ciede2000": Metric("CIEDE2000", 0, ".2f"),
    "frechet": Metric("Fréchet distance", 0, ".0f"),
    "nearest_psnr": Metric("PSNR to nearest training picture", None, ".2f"),
    "residual": Metric("residual", None, ".2e"),  # best at the noise of the measurement
    "mean_error": Metric("mean error", 0, ".4f"),
    "cov_error": Metric("covariance error", 0, ".3f"),
    "sw2": Metric("sliced W2", 0, ".4f"),
    "energy": Metric("energy distance", 0, ".4f"),
    "log_p": Metric("log p", None, ".3f"),
    "spread": Metric("spread", 1, ".2f"),
    "radius": Metric("radius of J", None, ".2f"),
    "skew": Metric("skew / symmetric", None, ".3f"),
    "negative": Metric("most negative / radius", None, ".3f"),
    "calibration": Metric("predicted / actual variance", None, ".2f"),
    "cosine": Metric("cosine of J g and e", 1, ".3f"),
    "remaining_residual": Metric("remaining residual", 0, ".3f"),
    "overhead": Metric("sampler / network", -1, ".2%"),
    "nfe": Metric("NFE", None, ".0f"),
    "work": Metric("work", None, ".0f"),
    "offset": Metric("mean offset (8-bit levels)", 0, "+.1f"),
    "changed": Metric("known pixels changed", 0, ".1%"),
    "seam": Metric("seam ratio", 1, ".2f"),
    "chroma": Metric("chroma (8-bit levels)", 0, ".0f"),
    "band": Metric("error along tile borders", 1, ".3f"),
    "change": Metric("RMS change", 0, ".1e"),
    "strength": Metric("strength", None, ".1f"),
    "seconds": Metric("seconds", 0, ".2f"),
    "times_plain": Metric("times plain", 0, ".2f"),
    "times_newton": Metric("times inexact_newton", 0, ".3f"),
    "times_dps": Metric("times dps", 0, ".3f"),
    "peak_mb": Metric("peak MB", 0, ".0f"),
    "working_mb": Metric("MB above the model", 0, ".1f"),
}


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        task: The heading of the table.
        item: The picture; the means are over items and seeds.
        method: The line of the table.
        seed: The seed of the run.
        nfe: The number of network evaluations.
        seconds: The wall time.
        peak_mb: The peak memory in MB, None if it was not measured.
        scores: Any other columns of METRICS.

    Raises:
        ValueError: A score is not in METRICS.
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
        """Return the value in a column of METRICS, None if it was not measured."""
        return getattr(self, column) if column in FIELDS else self.scores.get(column)


FIELDS = {f.name for f in fields(Row)} - {"scores"}


def meta() -> dict[str, Any]:
    """Return the version, processor, cores, threads, versions of torch and Python, and date; no host name."""
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
    """Write a results file, completely or not at all; missing folders are created."""
    flat = []
    for row in rows:
        record = asdict(row)
        record |= {name: float(score) for name, score in record.pop("scores").items()}  # scalars of numpy and torch too
        measured = {k: v for k, v in record.items() if v is not None}
        flat.append({k: None if v in (math.inf, -math.inf) or v != v else v for k, v in measured.items()})
    (path := Path(path)).parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    head, *records = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in [meta, *flat])
    body = ",\n  ".join(records)
    part.write_text(f'{{"meta": {head},\n "rows": [\n  {body}\n]}}\n', encoding="utf-8")
    part.replace(path)


def load(path: str | Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and the meta of a results file."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = []
    for record in content["rows"]:
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in record.items()}
        rows.append(Row(scores={k: values.pop(k) for k in set(values) - FIELDS}, **values))
    return rows, content["meta"]


def _groups(rows: Iterable[Row]) -> dict[str, dict[str, list[Row]]]:
    """Rows by task, then by method, both in the order of their first row."""
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.task, {}).setdefault(row.method, []).append(row)
    return groups


def _mean(rows: Iterable[Row], column: str) -> float | None:
    values = [v for row in rows if (v := row.value(column)) is not None]
    return fmean(values) if values else None


# Half the width of the 95 % interval of the mean of 2, 3, ... values, in standard errors, by Student's t. The normal
# distribution is used from 11 values on.
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)


def half_interval(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the mean, nan for fewer than two values."""
    if (n := len(values)) < 2:
        return math.nan
    return (STUDENT_T[n - 2] if n - 2 < len(STUDENT_T) else 1.96) * stdev(values) / n**0.5


def _item_means(rows: Iterable[Row], column: str) -> list[float]:
    """The mean over seeds of each item; the seeds of one picture are not independent of each other."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if (value := row.value(column)) is not None:
            groups.setdefault(row.item, []).append(value)
    return [fmean(group) for group in groups.values()]


def paired_differences(rows: Iterable[Row], first: str, second: str, column: str) -> list[float]:
    """Return the values of one method minus those of another, for each item and seed of one task that both have."""
    values: dict[str, dict[tuple[str, int], float]] = {first: {}, second: {}}
    for row in rows:
        if row.method in values and (value := row.value(column)) is not None and math.isfinite(value):
            values[row.method][row.item, row.seed] = value
    return [value - values[second][key] for key, value in values[first].items() if key in values[second]]


def comparison(rows: Iterable[Row], first: str, second: str, columns: Sequence[str] | None = None) -> str:
    """Return Markdown with the mean paired differences of two methods and half of their 95 % intervals.

    The pairs are the items and seeds that both methods have. They are taken to be independent.

    Args:
        rows: The results.
        first: A method.
        second: The method whose values are subtracted.
        columns: Names in METRICS; None: all scores.
    """
    groups = {task: [row for group in methods.values() for row in group] for task, methods in _groups(rows).items()}
    names = columns or [c for c in METRICS if c not in FIELDS]
    found = {(task, c): paired_differences(group, first, second, c) for task, group in groups.items() for c in names}
    names = [c for c in names if any(found[task, c] for task in groups)]
    lines = [["task", "pairs", *(METRICS[c].label for c in names)], ["---", *("---:" for _ in range(len(names) + 1))]]
    for task in groups:
        if not (pairs := max((len(found[task, c]) for c in names), default=0)):
            continue
        cells = [
            f"{fmean(d):{METRICS[c].format}} ± {half_interval(d):{METRICS[c].format}}" if (d := found[task, c]) else "–"
            for c in names
        ]
        lines.append([task, str(pairs), *cells])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{first} minus {second}\n\n{body}\n"


def table(
    rows: Iterable[Row],
    columns: Sequence[str] | None = None,
    reference: Collection[str] = ("exact",),
    intervals: bool = False,
) -> str:
    """Return Markdown with one table per task and one line per method.

    The values are means over items and seeds; the best of each column is bold. The name of a method that was run on
    fewer items than another says so, because its means are not comparable.

    Args:
        rows: The results.
        columns: Names in METRICS; None: all that were measured in the task.
        reference: Methods that are shown and never bold.
        intervals: Whether half of the 95 % interval is added to the scores.
    """
    parts = []
    for task, methods in _groups(rows).items():
        names = columns or [c for c in METRICS if any(_mean(group, c) is not None for group in methods.values())]
        items = {method: len({row.item for row in group} - {ALL}) for method, group in methods.items()}
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
    """One column as text by method; every value that is printed like the best one is bold."""
    texts = {m: "–" if v is None else format(v, metric.format) for m, v in values.items()}
    compared = {m: v for m, v in values.items() if m not in reference and v is not None and not math.isnan(v)}
    if (goal := metric.goal) is None or len(values) < 2 or not compared:
        return texts
    best = texts[min(compared, key=lambda m: -compared[m] if goal == math.inf else abs(compared[m] - goal))]
    return {m: f"**{text}**" if m in compared and text == best else text for m, text in texts.items()}


def _with_intervals(texts: dict[str, str], methods: dict[str, list[Row]], column: str) -> dict[str, str]:
    """The texts of a column, with ± half of the 95 % interval if it is a score of several items."""
    halves = {m: half_interval(_item_means(group, column)) for m, group in methods.items() if column not in FIELDS}
    form = METRICS[column].format
    return {m: t if math.isnan(half := halves.get(m, math.nan)) else f"{t} ± {half:{form}}" for m, t in texts.items()}


def plot(rows: Iterable[Row], path: str | Path, metric: str, against: str = "nfe") -> None:
    """Draw the means of one metric over those of another, with one panel per task.

    A method without network evaluations is a dashed horizontal line.

    Raises:
        ValueError: No row has the metric.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    groups = _groups(row for row in rows if row.value(metric) is not None)
    if not groups:
        raise ValueError(f"no row has '{metric}'; plot one of {list(METRICS)} that the rows have")
    figure = Figure(figsize=(4.5 * len(groups), 4.5), layout="constrained")
    colors: dict[str, str] = {}
    for axes, (task, methods) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        curves: dict[str, list[tuple[float, float]]] = {}
        for method, group in methods.items():
            at = _mean(group, against) if _mean(group, "nfe") else None
            point = (at or 0.0, _mean(group, metric) or 0.0)
            curves.setdefault(method.split(" @ ")[0], []).append(point)
        for name, points in curves.items():
            legend = None if name in colors else name  # each name appears once in the legend
            color = colors.setdefault(name, f"C{len(colors) % 10}")
            if all(at > 0 for at, _ in points):
                axes.semilogx(*zip(*sorted(points), strict=True), "o-", color=color, label=legend)
            else:
                axes.axhline(points[0][1], linestyle="--", color=color, label=legend)
        axes.set(title=task, xlabel=METRICS[against].label, ylabel=METRICS[metric].label)
        axes.xaxis.set(
            major_locator=LogLocator(subs=(1, 2, 5)),
            major_formatter=StrMethodFormatter("{x:g}"),
            minor_formatter=NullFormatter(),
        )
    figure.legend(loc="outside lower center", ncols=3 if max(map(len, colors)) < 30 else 2, fontsize="small")
    figure.savefig(path, dpi=120)


def embed(page: Path, name: str, text: str) -> None:
    """Replace what is between <!-- name --> and <!-- /name --> in a page.

    Raises:
        ValueError: The page does not have these markers.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{page} has no {begin} ... {end} for the tables; add these two lines")
    page.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the tables of a results file; optionally plot them or embed them in a page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw --metric over --against")
    parser.add_argument(
        "--embed", type=Path, metavar="PAGE", help="replace the tables between <!-- NAME --> and <!-- /NAME --> in PAGE"
    )
    parser.add_argument("--intervals", action="store_true", help="add half of the 95 %% interval of each mean")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks, in this order")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these methods")
    parser.add_argument(
        "--compare", nargs=2, metavar="METHOD", help="print paired differences, the first method minus the second"
    )
    parser.add_argument("--metric", default="psnr", choices=METRICS, help="vertical axis of --plot")
    parser.add_argument("--against", default="nfe", choices=METRICS, help="horizontal axis of --plot")
    args = parser.parse_args()
    rows, about = load(args.results)
    if args.tasks:
        if unknown := set(args.tasks) - {row.task for row in rows}:
            parser.error(f"no rows of {sorted(unknown)}; there are {sorted({row.task for row in rows})}")
        rows = [row for task in args.tasks for row in rows if row.task == task]
    if args.compare:
        print(comparison(rows, *args.compare))
        return
    if args.methods:
        if unknown := set(args.methods) - {row.method for row in rows}:
            parser.error(f"no rows of {sorted(unknown)}; there are {sorted({row.method for row in rows})}")
        rows = [row for row in rows if row.method in args.methods]
    text = table(rows, intervals=args.intervals)
    print(text, ", ".join(f"{k} {v}" for k, v in about.items()), sep="\n")
    if args.embed:
        embed(args.embed, args.results.stem, text)
    if args.plot:
        plot(rows, args.plot, args.metric, args.against)


if __name__ == "__main__":
    main()
