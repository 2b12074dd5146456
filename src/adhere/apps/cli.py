"""The command line: `adhere inpaint photo.jpg --mask mask.png -o out.png`, `adhere upscale`, ...

Exit codes:
    0: The files are written.
    1: The files are written, but standard output cannot take the report line.
    2: An input or an option is not valid. Nothing is written.
    129, 130, 143: SIGHUP, Ctrl-C, SIGTERM. Nothing is written, unless the message says that the files are.

An error in the input is reported as one line on standard error, if possible before sampling. Any other error is a bug
and keeps its traceback. The verbs are in `_verbs`, and their options in `_options`.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adhere import __version__
from adhere.apps import _options, _process, _verbs
from adhere.apps._examples import EXAMPLES
from adhere.apps._inputs import STREAM
from adhere.apps._output import OutputLost, print_line, printed_warnings, stream_errors
from adhere.errors import AdhereError, OutOfMemory

if TYPE_CHECKING:
    from adhere.apps.job import Result

_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
_UsageError: type[Exception] = typer.BadParameter.mro()[1]  # click's class; newer typers have a click of their own

_RENAMED = {  # (verb, option that another verb has) -> the option of this verb
    ("denoise", "--noise"): "--sigma",
    ("deblur", "--sigma"): "--noise",
    ("upscale", "--sigma"): "--noise",
}
_PYTHON_NAMES = {  # arguments of the library, as options -> options of the command line
    "--num-inference-steps": "--steps",
    "--num-images-per-prompt": "--num-images",
    "--generator": "--seed",
    "--torch-dtype": "--dtype",
}
_Verb = Callable[..., "Result"]
_Work = Callable[[], tuple["Result", bool] | None]  # -> (report, whether it is printed as JSON); None: all is printed


def _epilog(*examples: str) -> str:
    return "\n\n".join(["[bold]Examples[/bold]", *examples])


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
    "the peak memory. The residual is the RMS distance of the sample from the measured values, such as known pixels, "
    "in units where pixel values are from -1 to 1.",
    epilog=_epilog(*(examples[0] for examples in EXAMPLES.values())),
)
def _root(version: _Version = False) -> None:
    """Read the options that come before the verb."""


def _shared_options(
    output: _options.Output,
    model: _options.Model = None,
    variant: _options.Variant = None,
    config: _options.Config = None,
    vae: _options.Vae = None,
    loras: _options.Loras = None,
    offload: _options.Offload = False,
    prompt: _options.Prompt = None,
    negative_prompt: _options.NegativePrompt = None,
    guidance_scale: _options.GuidanceScale = None,
    solver: _options.Solver = None,
    steps: _options.Steps = None,
    seed: _options.Seed = 0,
    device: _options.Device = None,
    dtype: _options.Dtype = None,
    compile: _options.Compile = False,
    json_file: _options.JsonFile = None,
    num_images: _options.NumImages = None,
    mean: _options.Mean = False,
    contact_sheet: _options.ContactSheet = None,
    uncertainty: _options.Uncertainty = None,
    preview: _options.Preview = None,
    quality: _options.Quality = None,
    mark_edited: _options.MarkEdited = False,
    dry_run: _options.DryRun = False,
    force: _options.Force = False,
) -> None:
    """Declare the options of all verbs, named like the attributes of `Job`. Only the signature is used."""


def _command(name: str) -> Callable[[_Verb], _Verb]:
    """Return a decorator that turns a function of (job, *own options) into a command with the shared options."""

    def decorate(verb: _Verb) -> _Verb:
        _, *own = inspect.signature(verb).parameters.values()
        shared = inspect.signature(_shared_options).parameters

        def command(**values: Any) -> Any:  # typer evaluates annotations; it is a _Work
            from adhere.apps.job import Job

            settings = {option: values.pop(option) for option in shared}
            prints_json = settings["json_file"] == STREAM
            if settings["json_file"] is not None:
                settings["json_file"] = None if prints_json else Path(settings["json_file"])
            settings["loras"] = tuple(settings["loras"] or ())
            job = Job(**settings, show_progress=sys.stderr.isatty())
            return lambda: (verb(job, **values), prints_json)

        options = sorted([*own, *shared.values()], key=lambda p: p.default is not p.empty)  # required options first
        command.__signature__ = inspect.Signature(options)  # pyright: ignore[reportFunctionMemberAccess]
        _app.command(name, help=verb.__doc__, epilog=_epilog(*EXAMPLES[name]))(command)
        return verb

    return decorate


for _name in EXAMPLES:
    _command(_name)(getattr(_verbs, _name))


@_app.command("models", epilog=_epilog("adhere models"))
def _models() -> Callable[[], None]:
    """List the models that need no download: the shipped ones, and those in the cache of the Hugging Face hub."""
    return _verbs.print_models


# --- The process: exit codes, and errors in one line.


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `adhere` and `python -m adhere` start here.

    Args:
        arguments: the arguments after the program's name; by default, those of the process. Without arguments, the help
            is shown.

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
        return _failure(2, f"{_explained(error, arguments[0])} (see adhere{verb} --help)")
    except (OutOfMemory, MemoryError):
        return _failure(2, "out of memory; nothing was written: use a part of the picture, or a smaller one")
    except AdhereError as error:
        return _failure(2, str(error))
    except KeyboardInterrupt:
        return _failure(130, _process.stopped())
    except OutputLost as error:
        return _failure(1, str(error))
    return 0


def _explained(error: Any, verb: str) -> str:
    """Return the message of a usage error of a verb, and how to correct it if that is known."""
    message: str = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    if option is not None and (name := _RENAMED.get((verb, option)) or _PYTHON_NAMES.get(option)):
        return f"No such option: {option}. Call it {name}"
    if message.startswith("Missing") and verb in EXAMPLES:
        return f"{message}: write, for example, {EXAMPLES[verb][0]}"
    if extra := re.fullmatch(r"Got unexpected extra argument\S* \((.*)\)", message):
        hint = f"give a mask as --mask {extra[1]}" if verb == "inpaint" else "name each option, such as -o out.png"
        return f"{message}: {hint}"
    return message


def _parse(command: Any, arguments: list[str]) -> _Work | None:
    """Return the work that the arguments request, or None after printing the help or the version."""
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


def _print(report: "Result", prints_json: bool) -> None:
    print(report.line, file=sys.stderr if prints_json else sys.stdout)
    if prints_json:
        print(report.json, end="")
    sys.stdout.flush()


def _failure(exit_code: int, message: str) -> int:
    if message:
        print_line(message)
    return exit_code
