"""The command line: `adhere inpaint photo.jpg --mask mask.png -o out.png`, `adhere upscale`, `adhere generate`.

Exit codes:
    0: The files are written.
    1: The files are written, but standard output cannot take the report line.
    2: An input or an option is not valid. Nothing is written.
    129, 130, 143: SIGHUP, Ctrl-C, SIGTERM. Nothing is written, unless the message says that the files are.

Every error that this package finds is one line on standard error, and one that can be found before sampling is reported
before it. Any other error is a fault of the program and keeps its traceback. A verb is a function of a `Job` and of the
verb's own options; it checks the job, makes the task and runs it. Verbs import the rest of the package themselves, so
that `adhere --help` does not wait for torch.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adhere import __version__
from adhere.apps import _options, _process, _verbs
from adhere.apps._inputs import STREAM, input_files, read_photo
from adhere.apps._output import OutputLost, print_line, printed_warnings, stream_errors
from adhere.apps._parsers import (
    Parser,
    integer_parser,
    parse_guidance_scale,
    parse_path,
    parse_size,
    parse_text,
    with_flag,
)
from adhere.errors import AdhereError, OutOfMemory

if TYPE_CHECKING:
    from adhere.apps.job import Job, Report

_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
_UsageError: type[Exception] = typer.BadParameter.mro()[1]  # click's class; newer typers have a click of their own
_MAX_SEED = 2**63 - 1

_Verb = Callable[..., "Report"]
_Work = Callable[[], tuple["Report", bool] | None]  # -> (report, whether it is printed as JSON); None: all is printed

_EXAMPLES = {
    "inpaint": (
        "adhere inpaint photo.jpg --mask mask.png -o out.png",
        "adhere inpaint cutout.png -o filled.png [dim](the transparent part is inpainted)[/dim]",
        "adhere inpaint - --mask mask.png -o out.png --json - < photo.jpg",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --solver ddnm --steps 100 --seed 7 --json report.json",
        'adhere inpaint photo.jpg --mask mask.png -o out.png --model path/to/diffusers-folder --prompt "a brick wall"',
        "adhere inpaint photo.jpg --box 40,60,32,32 --color '#ff0000' --grow 2 --save-mask mask.png -o out.png",
        "adhere inpaint photo.jpg --mask mask.png --feather 8 -o out.png --num-images 4 --contact-sheet all.png",
        "adhere inpaint photo.jpg --mask mask.png -o mean.png --mean --uncertainty deviation.png",
        "adhere inpaint photo.jpg --mask mask.png -o out.jpg --quality 90 --mark-edited --preview now.png",
        "adhere inpaint photo.jpg --mask mask.png -o out.png --dry-run",
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
    **_verbs.VERB_EXAMPLES,
}


def _epilog(*examples: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *examples])


# --- Options. `_option` passes the flag to the parser, whose errors name the flag, the value and what is allowed.

_HELP = {
    "-o": "The picture to write. Its suffix decides the format: .png, .jpg, .webp, .tif or .bmp.",
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
    "--json": "Also write a report to this file, as JSON: the printed figures and all settings, with the seed. With -, "
    "the report goes to standard output, and the line with the figures to standard error.",
    "--force": "Replace files that exist already. Their permissions are kept, and symbolic links are followed.",
}


def _option(flag: str, metavar: str | None = None, parser: Parser | None = None, *other_flags: str) -> Any:
    """An option whose flag is explicit; typer 0.27 would otherwise take the metavar for its name."""
    parse = None if parser is None else with_flag(flag, parser)
    return typer.Option(flag, *other_flags, metavar=metavar, parser=parse, help=_HELP[flag])


_Output = Annotated[Path, _option("-o", "FILE", parse_path, "--output")]
_Factor = Annotated[int, _option("--factor", "N", integer_parser(2, 16))]
_Size = Annotated[str | None, _option("--size", "WIDTHxHEIGHT")]  # typer would read two arguments for a tuple
_Model = Annotated[str | None, _option("--model", "MODEL", parse_text)]
_Variant = Annotated[str | None, _option("--variant", "NAME", parse_text)]
_Config = Annotated[str | None, _option("--config", "FOLDER", parse_text)]
_Prompt = Annotated[str | None, _option("--prompt", "TEXT")]
_NegativePrompt = Annotated[str | None, _option("--negative-prompt", "TEXT")]
_GuidanceScale = Annotated[float | None, _option("--guidance-scale", "X", parse_guidance_scale)]
_Solver = Annotated[str | None, _option("--solver", "NAME")]
_Steps = Annotated[int | None, _option("--steps", "N", integer_parser(1, 1000))]
_Seed = Annotated[int, _option("--seed", "N", integer_parser(0, _MAX_SEED))]
_Device = Annotated[str | None, _option("--device", "NAME")]
_Dtype = Annotated[str | None, _option("--dtype", "NAME")]
_Compile = Annotated[bool, _option("--compile")]
_JsonFile = Annotated[str | None, _option("--json", "FILE", parse_text)]
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
    num_images: _options.NumImages = None,
    mean: _options.Mean = False,
    contact_sheet: _options.ContactSheet = None,
    uncertainty: _options.Uncertainty = None,
    preview: _options.Preview = None,
    quality: _options.Quality = None,
    mark_edited: _options.MarkEdited = False,
    dry_run: _options.DryRun = False,
    force: _Force = False,
) -> None:
    """Declare the options of every verb, under the names of the attributes of `Job`. Only the signature is used."""


def _command(name: str) -> Callable[[_Verb], _Verb]:
    """A decorator that makes a command of a function (job, *own options), with the shared options added."""

    def decorate(verb: _Verb) -> _Verb:
        _, *own = inspect.signature(verb).parameters.values()
        shared = inspect.signature(_shared_options).parameters

        def command(**values: Any) -> Any:  # typer evaluates annotations; it is a _Work
            from adhere.apps.job import Job

            settings = {option: values.pop(option) for option in shared}
            prints_json = settings["json_file"] == STREAM
            if settings["json_file"] is not None:
                settings["json_file"] = None if prints_json else Path(settings["json_file"])
            job = Job(**settings, show_progress=sys.stderr.isatty())
            return lambda: (verb(job, **values), prints_json)

        options = sorted([*own, *shared.values()], key=lambda p: p.default is not p.empty)  # required options first
        command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
        _app.command(name, help=verb.__doc__, epilog=_epilog(*_EXAMPLES[name]))(command)
        return verb

    return decorate


_command("inpaint")(_verbs.inpaint)


@_command("upscale")
def _upscale(job: "Job", photo: _verbs.Photo, factor: _Factor = 4, frame: _verbs.Frame = None) -> "Report":
    """Enlarge a picture. Each pixel becomes a square with exactly the same mean color."""
    from adhere.tasks import Upscale

    job.check(*input_files(photo))
    with _process.silenced_stderr():
        task = Upscale(read_photo(photo, frame), factor)
    height, width = task.picture.size
    return job.run(task, (factor * height, factor * width))  # pyright: ignore[reportReturnType]


@_command("generate")
def _generate(job: "Job", size: _Size = None) -> "Report":
    """Generate a new picture, with or without a prompt."""
    from adhere.tasks import Generate

    job.check()
    sides = None if size is None else parse_size(size)
    return job.run(Generate(sides), sides)  # pyright: ignore[reportReturnType]


for _name in _verbs.VERB_EXAMPLES:
    _command(_name)(getattr(_verbs, _name))


@_app.command("models", epilog=_epilog("adhere models"))
def _models() -> Callable[[], None]:
    """List the models that need no download: those that ship, and those in the cache of the Hugging Face hub."""
    return _verbs.print_models


# --- The process: exit codes, and errors in one line.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `adhere` and `python -m adhere` start here.

    Args:
        arguments: those after the program's name, by default those of the process. If there are none, the help is
            shown.

    Raises:
        SystemExit: always, with the exit code.
    """
    _process.set_written(False)
    devnull = open(os.devnull, "w")  # noqa: SIM115
    sys.stdout, sys.stderr = sys.stdout or devnull, sys.stderr or devnull  # they are None if the caller closed them
    sys.exit(_exit_code(list(sys.argv[1:] if arguments is None else arguments) or ["--help"]))


def _exit_code(arguments: list[str]) -> int:
    command: Any = typer.main.get_command(_app)
    try:
        with stream_errors():
            work = _parse(command, arguments)
        if work is not None:
            _finish(work)
    except _UsageError as error:
        verb = f" {arguments[0]}" if arguments[0] in command.commands else ""
        message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        return _failure(2, f"{message.rstrip('.')} (see adhere{verb} --help)")
    except (OutOfMemory, MemoryError):
        return _failure(2, "out of memory; nothing was written: use a part of the picture, or a smaller one")
    except AdhereError as error:
        return _failure(2, str(error))
    except KeyboardInterrupt:
        return _failure(130, _process.stopped())
    except OutputLost as error:
        return _failure(1, str(error))
    return 0


def _parse(command: Any, arguments: list[str]) -> _Work | None:
    """Return what the arguments ask for, or None if it was the help or the version, which are printed."""
    work = None
    with suppress(typer.Exit), command.make_context("adhere", [*arguments]) as context:
        work = command.invoke(context)
    sys.stdout.flush()
    return work


def _finish(work: _Work) -> None:
    """Do the work, and print its report."""
    if work is _verbs.print_models:
        with stream_errors():
            work()
            sys.stdout.flush()
        return
    with printed_warnings():
        done = work()
    if done is not None:
        with stream_errors():
            _print(*done)


def _print(report: "Report", prints_json: bool) -> None:
    print(report.line, file=sys.stderr if prints_json else sys.stdout)
    if prints_json:
        print(report.json, end="")
    sys.stdout.flush()


def _failure(exit_code: int, message: str) -> int:
    if message:
        print_line(message)
    return exit_code
