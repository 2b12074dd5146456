"""The command line: `adhere inpaint photo.jpg --mask mask.png -o out.png`, `adhere upscale`, `adhere generate`.

Exit codes: 0 done; 2 bad input and 130 Ctrl-C, nothing was written; 1 standard output is lost, but the files are whole.
Whatever goes wrong is one line on standard error, before anything is computed where that can be known. A verb is a
function of a `Run` and of its own options that has the run checked, makes its task and hands it over. It imports the
rest of the package itself, so that `adhere --help` answers at once.
"""

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from adhere import __version__
from adhere.errors import AdhereError, OutOfMemory

if TYPE_CHECKING:
    from adhere.apps.job import Run

app = typer.Typer(add_completion=False, rich_markup_mode="rich")
UsageError: type[Exception] = typer.BadParameter.mro()[1]  # click's; newer typers bring a click of their own

T = TypeVar("T", str, Path)

EXAMPLES = {
    "inpaint": (
        "adhere inpaint photo.jpg --mask mask.png -o out.png",
        "adhere inpaint cutout.png -o filled.png [dim](the transparent part is repainted)[/dim]",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --solver ddnm --steps 100 --seed 7 --json report.json",
        'adhere inpaint photo.jpg --mask mask.png -o out.png --model path/to/diffusers-folder --prompt "a brick wall"',
    ),
    "upscale": (
        "adhere upscale small.png -o large.png",
        "adhere upscale small.png -o large.png --factor 2 --seed 7",
    ),
    "generate": (
        'adhere generate -o heart.png --prompt "a red heart" --model organisation/name',
        'adhere generate -o heart.png --prompt "a red heart" --negative-prompt "blurred, text" --guidance-scale 5 '
        "--size 768x512 --model checkpoint.safetensors",
        "adhere generate -o texture.png --size 256x128",
    ),
}


def _epilog(*examples: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *examples])


def _name(option: str, kind: type[T]) -> Callable[[str], T]:
    """Read a name that is not empty: Path('') would be the folder '.'."""

    def parse(text: str) -> T:
        if not text:
            raise AdhereError(f"{option} '': is empty; give a name")
        return kind(text)

    return parse


def _whole(option: str, low: int, high: int) -> Callable[[str | int], int]:
    """Read a whole number, or take a default that is one."""

    def parse(text: str | int) -> int:
        with suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise AdhereError(f"{option} '{text}': give a whole number from {low} to {high}")

    return parse


def _scale(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise AdhereError(f"--guidance-scale '{text}': give a number above 0; 1 is none, 3 to 8 are usual")


def _size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT -> (height, width)."""
    if sides := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII):
        return int(sides[2]), int(sides[1])
    raise AdhereError(f"--size '{text}': give WIDTHxHEIGHT in pixels, such as 256x128, at most 9999x9999")


Photo = Annotated[
    Path,
    typer.Argument(
        parser=_name("photo", Path),
        metavar="PHOTO",
        help="The picture: JPEG, PNG, WebP, TIFF, BMP, ...",
        show_default=False,
    ),
]
Output = Annotated[
    Path,
    typer.Option(
        "-o", "--output", parser=_name("-o", Path), metavar="FILE", help="Where the result goes.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        parser=_name("--model", str),
        metavar="MODEL",
        help="A diffusers folder, a .safetensors file, a hub id, or a name that ships; an unknown name lists those. "
        "Without it, adhere-photo.",
    ),
]
Prompt = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What is to be seen, for models that read text.", show_default=False)
]
NegativePrompt = Annotated[str | None, typer.Option(metavar="TEXT", help="What is not to be seen.", show_default=False)]
Guidance = Annotated[
    float | None,
    typer.Option(
        "--guidance-scale",
        parser=_scale,
        metavar="X",
        help="How closely to follow the prompt; 1 is none, the model's own by default.",
    ),
]
Solver = Annotated[
    str | None, typer.Option(metavar="NAME", help="Another method than the usual; an unknown name lists them all.")
]
Steps = Annotated[
    int | None,
    typer.Option(
        parser=_whole("--steps", 1, 1000), metavar="N", help="Noise levels, 1 to 1000; the solver's own by default."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps, ...; a GPU if there is one, by default."
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The network's numbers: float32 (the default on a CPU), float16 (on a GPU) or bfloat16.",
    ),
]
Seed = Annotated[
    int, typer.Option(parser=_whole("--seed", 0, 2**63 - 1), metavar="N", help="Another seed, another result.")
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--json", parser=_name("--json", Path), metavar="FILE", help="Write the report line's figures here as JSON."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite existing files.")]


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"adhere {__version__}")
        raise typer.Exit
    return wanted


@app.callback(epilog=_epilog(*(examples[0] for examples in EXAMPLES.values())))
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and stop.")
    ] = False,
) -> None:
    """Repair, enlarge and make pictures by sampling a diffusion model under the constraint of what is known."""


def _run(
    output: Output,
    model: Model = None,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: Guidance = None,
    solver: Solver = None,
    steps: Steps = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    report: Report = None,
    force: Force = False,
) -> "Run":
    """What every verb can be told."""
    from adhere.apps.job import Run

    return Run(
        output, report, force, model, prompt, negative_prompt, guidance_scale, solver, steps, seed, device, dtype
    )


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function of a `Run` and options of its own; the options of `_run` are added to those."""
    name, (_, *own) = function.__name__, inspect.signature(function).parameters.values()
    shared = inspect.signature(_run).parameters

    def command(**told: Any) -> None:
        run = _run(**{option: told.pop(option) for option in shared})
        function(run, **told)

    options = sorted([*own, *shared.values()], key=lambda one: one.default is not one.empty)  # the required ones first
    command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
    app.command(name, help=function.__doc__, epilog=_epilog(*EXAMPLES[name]))(command)
    return function


@_verb
def inpaint(
    run: "Run",
    photo: Photo,
    mask: Annotated[
        Path | None,
        typer.Option(
            parser=_name("--mask", Path),
            metavar="FILE",
            help="White = repaint, black = keep, same size. Without it, what is transparent, and all comes out opaque.",
        ),
    ] = None,
) -> None:
    """Repaint the white part of a mask; every other pixel stays bit for bit what it was."""
    from adhere.tasks import Inpaint

    run.check(photo, mask)
    task = Inpaint(photo, mask)
    run.finish(task, task.picture.size)


@_verb
def upscale(
    run: "Run",
    photo: Photo,
    factor: Annotated[
        int, typer.Option(parser=_whole("--factor", 2, 16), metavar="N", help="How many times as wide and as high.")
    ] = 4,
) -> None:
    """Enlarge a picture; every square of the result has the mean colour of the pixel it was (latent models: about)."""
    from adhere.tasks import Upscale

    run.check(photo)
    task = Upscale(photo, factor)
    height, width = task.picture.size
    run.finish(task, (factor * height, factor * width))


@_verb
def generate(
    run: "Run",
    size: Annotated[
        str | None,  # typer would make two arguments of a tuple
        typer.Option(metavar="WIDTHxHEIGHT", help="In pixels; the model's own by default.", show_default=False),
    ] = None,
) -> None:
    """Make a picture from nothing, or from a prompt."""
    from adhere.tasks import Generate

    run.check()
    sides = None if size is None else _size(size)
    run.finish(Generate(sides), sides)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `adhere` and `python -m adhere`; without arguments, `--help`."""
    nowhere = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere  # None where the caller has closed them
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments) or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(app)
    try:
        with suppress(typer.Exit), command.make_context("adhere", [*arguments]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except UsageError as error:
        usage: Any = error
        verb = f" {arguments[0]}" if arguments[0] in command.commands else ""
        return _complain(2, f"{usage.format_message().rstrip('.')} (see adhere{verb} --help)")
    except (OutOfMemory, MemoryError):
        return _complain(2, "out of memory; nothing was written: work on a part of the picture, or on a smaller one")
    except AdhereError as error:
        return _complain(2, str(error))
    except KeyboardInterrupt:
        return _complain(130, "stopped; nothing was written")
    except OSError as error:
        if error.filename is not None:
            raise
        if isinstance(error, FileNotFoundError):  # of os.getcwd
            return _complain(2, "the folder this was started in does not exist any more; change to another")
        # Standard output: a reader that left (say nothing), a full disk. What is still buffered must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else _complain(1, f"standard output is lost: {error.strerror}")
    return 0


def _complain(code: int, message: str) -> int:
    """One line on standard error, whatever is in it."""
    with suppress(OSError):
        print("adhere:", " ".join(message.splitlines()), file=sys.stderr)
    return code
