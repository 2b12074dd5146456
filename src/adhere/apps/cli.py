"""The command line: `adhere inpaint photo.jpg --mask mask.png -o out.png`, `adhere upscale`, `adhere generate`.

Exit codes:
    0: The files are written.
    1: The files are written, but standard output cannot take the report line.
    2: An input or an option is not valid. Nothing is written.
    130: Ctrl-C. Nothing is written.

Every error is one line on standard error, and an error that can be found before sampling is reported before it. A verb
is a function of a `Job` and of the verb's own options; it checks the job, makes the task and runs it. Verbs import the
rest of the package themselves, so that `adhere --help` does not wait for torch.
"""

import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adhere import __version__
from adhere.apps._notes import printed_notes
from adhere.errors import AdhereError, OutOfMemory

if TYPE_CHECKING:
    from adhere.apps.job import Job
    from adhere.tasks import Task

_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
_UsageError: type[Exception] = typer.BadParameter.mro()[1]  # click's class; newer typers have a click of their own
_MAX_SEED = 2**63 - 1

_Parser = Callable[[str, Any], Any]  # (flag, text or default) -> value
_Verb = Callable[..., None]

_EXAMPLES = {
    "inpaint": (
        "adhere inpaint photo.jpg --mask mask.png -o out.png",
        "adhere inpaint cutout.png -o filled.png [dim](the transparent part is inpainted)[/dim]",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --solver ddnm --steps 100 --seed 7 --json report.json",
        'adhere inpaint photo.jpg --mask mask.png -o out.png --model path/to/diffusers-folder --prompt "a brick wall"',
    ),
    "upscale": (
        "adhere upscale small.png -o large.png",
        "adhere upscale small.png -o large.png --factor 2 --seed 7",
    ),
    "generate": (
        'adhere generate -o heart.png --prompt "a red heart, 3d" --model adhere-emoji',
        'adhere generate -o heart.png --prompt "a red heart" --negative-prompt "blurred, text" --guidance-scale 5 '
        "--size 768x512 --model checkpoint.safetensors",
        "adhere generate -o texture.png --size 256x128",
    ),
}


def _epilog(*examples: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *examples])


# --- Options. `_option` passes the flag to the parser, whose errors name the flag, the value and what is allowed.

_HELP = {
    "-o": "The picture to write. Its suffix decides the format: .png, .jpg, .webp, .tif or .bmp.",
    "--mask": "A picture of the same size as PHOTO. White pixels are inpainted and black pixels are kept. Without a "
    "mask, the transparent part of PHOTO is inpainted, and the result is opaque.",
    "--frame": "Which picture of PHOTO to use, if the file holds several, such as pages or the frames of an animation. "
    "The first is 0.",
    "--factor": "How many times the result is as wide and as high as PHOTO, from 2 to 16. The result has at most 50 "
    "megapixels.",
    "--size": "The size of the result in pixels. The default is the size of the model's training pictures.",
    "--model": "The diffusion model: a folder in the diffusers layout, a .safetensors file, the id of a model on the "
    "Hugging Face hub, or the name of a shipped model. An unknown name lists the shipped models. The default is "
    "adhere-photo, the shipped model for photographs.",
    "--variant": "The variant of the weights in the model's folder, such as fp16 for files that end in "
    ".fp16.safetensors.",
    "--config": "For a .safetensors file: a folder in the diffusers layout, or the id of a model on the hub, "
    "with the configurations of its components. The default is that of the base model on the hub.",
    "--prompt": "A description of what the result shows. Only for models that read text.",
    "--negative-prompt": "A description of what the result does not show. Only for models that read text.",
    "--guidance-scale": "How closely the result follows the prompt. 1 switches guidance off, and 3 to 8 are usual. The "
    "default depends on the model.",
    "--solver": "The method that imposes the constraint: moment_matching (the default, 12 network evaluations), "
    "moment_matching_fast (8), moment_matching_posterior (16, more varied results) or inexact_newton (the method of "
    "the paper, 220). An unknown name lists all methods.",
    "--steps": "The number of noise levels, from 1 to 1000. Time grows with it. The default depends on the solver.",
    "--seed": "The seed of the random numbers. The same seed gives the same result, another seed gives another result.",
    "--device": "The device that runs the network, such as cpu, cuda, cuda:1 or mps. The default is a GPU if there is "
    "one, and otherwise the CPU.",
    "--dtype": "The number format of the network: float32, float16 or bfloat16. The default is float32 on a CPU and "
    "float16 on a GPU.",
    "--compile": "Compile the network with torch.compile: faster on many pictures, a minute of waiting for the first.",
    "--json": "Also write a report to this file, as JSON: the printed figures and all settings, with the seed.",
    "--force": "Replace files that exist already.",
}


def _option(flag: str, metavar: str | None = None, parser: _Parser | None = None, *other_flags: str) -> Any:
    """An option whose flag is explicit; typer 0.27 would otherwise take the metavar for its name."""
    parse = None if parser is None else _with_flag(flag, parser)
    return typer.Option(flag, *other_flags, metavar=metavar, parser=parse, help=_HELP[flag])


def _with_flag(flag: str, parser: _Parser) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        return parser(flag, value)

    return parse


def _text(flag: str, text: str) -> str:
    if not text:
        raise AdhereError(f"{flag} '': is empty; give a name")
    return text


def _path(flag: str, text: str) -> Path:
    return Path(_text(flag, text))  # Path("") would be the current folder


def _integer(low: int, high: int) -> _Parser:
    """A parser of integers from low to high. Typer also passes the default through it, which is an int."""

    def parse(flag: str, value: str | int) -> int:
        with suppress(ValueError):
            if low <= int(value) <= high:
                return int(value)
        raise AdhereError(f"{flag} '{value}': give a whole number from {low} to {high}")

    return parse


def _guidance_scale(flag: str, text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise AdhereError(f"{flag} '{text}': give a number above 0; 1 switches guidance off, 3 to 8 are usual")


def _size(text: str) -> tuple[int, int]:
    """(height, width) from WIDTHxHEIGHT."""
    if sides := re.fullmatch(r"([1-9]\d{0,3})x([1-9]\d{0,3})", text, re.ASCII):
        return int(sides[2]), int(sides[1])
    raise AdhereError(f"--size '{text}': give WIDTHxHEIGHT in pixels, such as 256x128, at most 9999x9999")


_PHOTO_HELP = "The picture to work on, of at most 250 megapixels: a JPEG, PNG, WebP, TIFF, BMP or GIF file."
_Photo = Annotated[Path, typer.Argument(parser=_with_flag("photo", _path), metavar="PHOTO", help=_PHOTO_HELP)]
_Output = Annotated[Path, _option("-o", "FILE", _path, "--output")]
_Mask = Annotated[Path | None, _option("--mask", "FILE", _path)]
_Frame = Annotated[int | None, _option("--frame", "N", _integer(0, 99_999))]
_Factor = Annotated[int, _option("--factor", "N", _integer(2, 16))]
_Size = Annotated[str | None, _option("--size", "WIDTHxHEIGHT")]  # typer would read two arguments for a tuple
_Model = Annotated[str | None, _option("--model", "MODEL", _text)]
_Variant = Annotated[str | None, _option("--variant", "NAME", _text)]
_Config = Annotated[str | None, _option("--config", "FOLDER", _text)]
_Prompt = Annotated[str | None, _option("--prompt", "TEXT")]
_NegativePrompt = Annotated[str | None, _option("--negative-prompt", "TEXT")]
_GuidanceScale = Annotated[float | None, _option("--guidance-scale", "X", _guidance_scale)]
_Solver = Annotated[str | None, _option("--solver", "NAME")]
_Steps = Annotated[int | None, _option("--steps", "N", _integer(1, 1000))]
_Seed = Annotated[int, _option("--seed", "N", _integer(0, _MAX_SEED))]
_Device = Annotated[str | None, _option("--device", "NAME")]
_Dtype = Annotated[str | None, _option("--dtype", "NAME")]
_Compile = Annotated[bool, _option("--compile")]
_JsonFile = Annotated[Path | None, _option("--json", "FILE", _path)]
_Force = Annotated[bool, _option("--force")]


def _print_version(requested: bool) -> bool:
    if requested:
        print(f"adhere {__version__}")
        raise typer.Exit
    return requested


_Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


# --- Commands.


@_app.callback(
    help="Repair, enlarge and generate pictures with a diffusion model, without training it.\n\n"
    "A command that succeeds prints one line: the number of network evaluations (NFE), the seconds, the residual and "
    "the peak memory. The residual is the distance of the sample from what is known of the result, as the root mean "
    "square of pixel values from -1 to 1.",
    epilog=_epilog(*(examples[0] for examples in _EXAMPLES.values())),
)
def _root(version: _Version = False) -> None:
    """Read the options that come before the verb."""


def _shared_options(
    output: _Output,
    model: _Model = None,
    variant: _Variant = None,
    config: _Config = None,
    prompt: _Prompt = None,
    negative_prompt: _NegativePrompt = None,
    guidance_scale: _GuidanceScale = None,
    solver: _Solver = None,
    steps: _Steps = None,
    seed: _Seed = 0,
    device: _Device = None,
    dtype: _Dtype = None,
    compile: _Compile = False,
    json_file: _JsonFile = None,
    force: _Force = False,
) -> None:
    """Declare the options of every verb, under the names of the attributes of `Job`. Only the signature is used."""


def _command(name: str) -> Callable[[_Verb], _Verb]:
    """A decorator that makes a command of a function (job, *own options), with the shared options added."""

    def decorate(verb: _Verb) -> _Verb:
        _, *own = inspect.signature(verb).parameters.values()
        shared = inspect.signature(_shared_options).parameters

        def command(**values: Any) -> None:
            from adhere.apps.job import Job

            job = Job(**{option: values.pop(option) for option in shared}, show_progress=sys.stderr.isatty())
            verb(job, **values)

        options = sorted([*own, *shared.values()], key=lambda p: p.default is not p.empty)  # required options first
        command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
        _app.command(name, help=verb.__doc__, epilog=_epilog(*_EXAMPLES[name]))(command)
        return verb

    return decorate


@_command("inpaint")
def _inpaint(job: "Job", photo: _Photo, mask: _Mask = None, frame: _Frame = None) -> None:
    """Inpaint the white part of a mask. Every other pixel stays bit for bit the same."""
    from adhere.io.images import as_picture
    from adhere.tasks import Inpaint

    job.check(photo, mask)
    task = Inpaint(as_picture(photo, frame), mask)
    _run(job, task, task.picture.size)


@_command("upscale")
def _upscale(job: "Job", photo: _Photo, factor: _Factor = 4, frame: _Frame = None) -> None:
    """Enlarge a picture. Each pixel becomes a square with exactly the same mean color."""
    from adhere.io.images import as_picture
    from adhere.tasks import Upscale

    job.check(photo)
    task = Upscale(as_picture(photo, frame), factor)
    height, width = task.picture.size
    _run(job, task, (factor * height, factor * width))


@_command("generate")
def _generate(job: "Job", size: _Size = None) -> None:
    """Generate a new picture, with or without a prompt."""
    from adhere.tasks import Generate

    job.check()
    sides = None if size is None else _size(size)
    _run(job, Generate(sides), sides)


def _run(job: "Job", task: "Task", size: tuple[int, int] | None) -> None:
    print(job.run(task, size).line)


# --- The process: exit codes, and errors in one line.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `adhere` and `python -m adhere` start here.

    Args:
        arguments: those after the program's name, by default those of the process. If there are none, the help is
            shown.

    Raises:
        SystemExit: always, with the exit code.
    """
    devnull = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout, sys.stderr = sys.stdout or devnull, sys.stderr or devnull  # they are None if the caller closed them
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments) or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(_app)
    try:
        with suppress(typer.Exit), printed_notes(), command.make_context("adhere", [*arguments]) as context:
            command.invoke(context)
        sys.stdout.flush()
    except _UsageError as error:
        verb = f" {arguments[0]}" if arguments[0] in command.commands else ""
        message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        return _fail(2, f"{message.rstrip('.')} (see adhere{verb} --help)")
    except (OutOfMemory, MemoryError):
        return _fail(2, "out of memory; nothing was written: use a part of the picture, or a smaller one")
    except AdhereError as error:
        return _fail(2, str(error))
    except KeyboardInterrupt:
        return _fail(130, "stopped; nothing was written")
    except OSError as error:
        return _exit_code_of_stream_error(error)
    return 0


def _exit_code_of_stream_error(error: OSError) -> int:
    """Handle an error of standard output or of the current folder; raise any other."""
    if error.filename is not None:
        raise error
    if isinstance(error, FileNotFoundError):  # from os.getcwd
        return _fail(2, "the current folder does not exist any more; change to another folder")
    # Standard output is closed or full. The rest goes to the null device; otherwise the flush at exit would fail.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader has ended, as `head` does
        return 1
    return _fail(1, f"standard output is lost: {error.strerror}")


def _fail(exit_code: int, message: str) -> int:
    """Print a message as one line on standard error, and return the exit code."""
    with suppress(OSError):
        print("adhere:", " ".join(message.splitlines()), file=sys.stderr)
    return exit_code
