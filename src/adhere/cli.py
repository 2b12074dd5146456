"""The command line: `adhere inpaint photo.jpg --mask mask.png -o out.png`.

Heavy imports stay inside the commands, so that `adhere --help` answers at once. Bad input is one line on standard error
and exit code 2, before anything is computed where that can be known; files are written whole or not at all.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adhere import __version__
from adhere.errors import AdhereError

if TYPE_CHECKING:
    from torch import Tensor

    from adhere.pipeline import ConstrainedOutput, ConstrainedPipeline
    from adhere.tasks import Inpaint

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)

EXAMPLES = """
[bold]Examples[/bold]

adhere inpaint photo.jpg --mask mask.png -o out.png

adhere inpaint cutout.png -o filled.png [dim](the transparent part is repainted)[/dim]

adhere inpaint photo.jpg --mask mask.png -o out.png --solver ddnm --steps 100 --seed 7 --json report.json

adhere inpaint photo.jpg --mask mask.png -o out.png --model path/to/diffusers-folder
"""


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"adhere {__version__}")
        raise typer.Exit
    return wanted


@app.callback(epilog=EXAMPLES)
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and stop.")
    ] = False,
) -> None:
    """Repair pictures by sampling a diffusion model under the constraint of what is known: forward passes only."""


@app.command(epilog=EXAMPLES)
def inpaint(
    photo: Annotated[Path, typer.Argument(help="The picture: JPEG, PNG, WebP, TIFF, BMP, ...", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the repaired picture goes.", show_default=False)
    ],
    mask: Annotated[
        Path | None,
        typer.Option(help="White = repaint, black = keep, same size. Without it, the picture's transparency says."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="A diffusers folder; without it, the model that ships inside.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="moment_matching_calm (default), moment_matching, inexact_newton or ddnm.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Noise levels, at least 1; the solver's own number by default.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another repair.")] = 0,
    report: Annotated[Path | None, typer.Option("--json", help="Write the report line's figures here as JSON.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Repaint the white part of a mask; every other pixel stays bit for bit what it was."""
    with _errors_in_one_line():
        from adhere.images import check_output, save_picture

        if steps is not None and steps < 1:
            raise AdhereError(f"--steps {steps}: at least 1 is needed")
        if not 0 <= seed < 2**63:
            raise AdhereError(f"--seed {seed}: from 0 to {2**63 - 1} are possible")
        check_output(output, force)
        if report is not None:
            _check_report(report, photo, mask, output, force)

        from adhere.core.solvers import DEFAULT_METHOD, method_named
        from adhere.tasks import Inpaint

        name = solver or DEFAULT_METHOD
        try:
            method = method_named(name)
        except ValueError as error:
            raise AdhereError(str(error)) from error
        task = Inpaint(photo, mask)
        import logging

        from diffusers.utils.logging import disable_progress_bar, set_verbosity

        from adhere.pipeline import ConstrainedPipeline

        set_verbosity(logging.CRITICAL)  # what matters comes as an AdhereError, in one line
        disable_progress_bar()
        pipe = ConstrainedPipeline.from_pretrained(model)
        out = _run(pipe, task, name, method.steps if steps is None else steps, seed)
        figures = _figures(out) | {
            "model": "adhere-photo" if model is None else str(model),
            "solver": name,
            "steps": out.steps,
            "seed": seed,
            "version": __version__,
        }
        save_picture(out.images[0], output, force=force, picture=task.picture)  # pyright: ignore[reportArgumentType]
        if report is not None:
            _write_report(report, figures)
        peak = "unknown" if figures["peak_gb"] is None else f"{figures['peak_gb']:.1f} GB"
        print("{nfe} NFE, {seconds:.1f} s, residual {residual:.3f}".format(**figures) + f", peak {peak}")


def _run(pipe: "ConstrainedPipeline", task: "Inpaint", solver: str, steps: int, seed: int) -> "ConstrainedOutput":
    """Sample under a progress bar on standard error."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    pipe.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("repairing", total=steps)

        def advance(_pipe: object, step: int, _t: float, _state: "dict[str, Tensor]") -> None:
            progress.update(bar, completed=step + 1)

        generator = torch.Generator().manual_seed(seed)
        try:
            out = pipe(
                task, solver=solver, num_inference_steps=steps, generator=generator, callback_on_step_end=advance
            )
        except ValueError as error:  # steps that the model's schedule does not have
            raise AdhereError(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error) and "out of memory" not in str(error):
                raise
            height, width = task.picture.size
            mend = "repaint one part at a time, or a smaller copy of the picture"
            raise AdhereError(f"out of memory on a picture of {width} x {height}: {mend}") from error
    assert not isinstance(out, tuple)
    return out


def _figures(out: "ConstrainedOutput") -> dict[str, Any]:
    return {
        "nfe": out.nfe,
        "seconds": round(out.seconds, 3),
        "residual": round(out.error[0], 6),
        "peak_gb": _peak_gb(),
    }


def _peak_gb() -> float | None:
    """The most memory this process has held; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**3 if sys.platform == "darwin" else 1024**2), 3)  # bytes there, kilobytes elsewhere


def _check_report(report: Path, photo: Path, mask: Path | None, output: Path, force: bool) -> None:
    if report.resolve() in {path.resolve() for path in (photo, mask, output) if path is not None}:
        raise AdhereError(f"--json {report}: that is one of the pictures; give the report a file of its own")
    if report.is_dir():
        raise AdhereError(f"--json {report}: that is a folder; give a file name")
    if report.exists() and not force:
        raise AdhereError(f"--json {report}: exists; choose another name or add --force")
    if not report.parent.is_dir() or not os.access(report.parent, os.W_OK):
        raise AdhereError(f"--json {report}: the folder {report.parent} is missing or cannot be written to")


def _write_report(report: Path, figures: dict[str, Any]) -> None:
    part = report.with_name(f".{report.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        os.replace(part, report)
    except OSError as error:
        raise AdhereError(f"--json {report}: not written ({error}); the picture was") from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    try:
        yield
    except AdhereError as error:
        print(f"adhere: {' '.join(str(error).splitlines())}", file=sys.stderr)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        print("adhere: stopped; nothing was written", file=sys.stderr)
        raise typer.Exit(130) from error


def main() -> None:
    """The entry point of `adhere` and `python -m adhere`."""
    app()
