"""One run of the command line, whatever the verb: check, load, sample, write, and say what it cost.

Diffusers is imported last: what is wrong with the request is said before that.
"""

import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from PIL import Image

from adhere import __version__
from adhere.core.presets import get_sampler
from adhere.errors import AdhereError
from adhere.io.atomic import check_writable, staged_writes
from adhere.io.images import check_output, check_output_size, encode
from adhere.tasks import Generate, Task

if TYPE_CHECKING:
    from adhere.pipelines.base import ConstrainedOutput, ConstrainedPipeline


DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}


@dataclass(frozen=True)
class Run:
    """Where the results go, what samples them and how; `None` is the usual. Every method raises `AdhereError`."""

    output: Path
    report: Path | None
    force: bool
    model: str | None
    prompt: str | None
    negative_prompt: str | None
    guidance_scale: float | None
    solver: str | None
    steps: int | None
    seed: int
    device: str | None
    dtype: str | None

    def check(self, *inputs: Path | None) -> None:
        """Refuse what could not be finished, before anything is read or computed."""
        pictures = {os.path.realpath(path) for path in (*inputs, self.output) if path is not None}
        if self.report is not None and os.path.realpath(self.report) in pictures:
            raise AdhereError(f"--json {self.report}: is one of the pictures; give the report a file of its own")
        self._check_outputs()
        if self.solver is not None:
            try:
                get_sampler(self.solver)
            except ValueError as error:
                raise AdhereError(str(error)) from error
        _place(self.device, self.dtype)

    def finish(self, task: Task, size: tuple[int, int] | None = None) -> None:
        """Load the model, sample, write the files, print the report line. size: (height, width), where it is known."""
        from adhere.pipelines.loading import DEFAULT_MODEL

        if size is not None:
            check_output_size(self.output, size)
        if self.solver == "plain" and not isinstance(task, Generate):
            raise AdhereError("--solver 'plain': ignores what is known, so only adhere generate has it")
        device, dtype = _place(self.device, self.dtype)
        out = self._sample(_load(self.model, device, dtype), task)
        figures = {
            "nfe": out.nfe,
            "seconds": round(out.seconds, 3),
            "residual": round(out.residual[0], 6),
            "peak_gb": _peak_gb(device),
            "model": self.model or DEFAULT_MODEL,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "guidance_scale": self.guidance_scale,
            "solver": out.solver,
            "steps": out.num_steps,
            "seed": self.seed,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "version": __version__,
        }
        self._write(out.images[0], figures)  # pyright: ignore[reportArgumentType]
        peak = "unknown" if figures["peak_gb"] is None else f"{figures['peak_gb']:.1f} GB"
        print("{nfe} NFE, {seconds:.1f} s, residual {residual:.3f}".format(**figures) + f", peak {peak}")

    def _sample(self, pipe: "ConstrainedPipeline", task: Task) -> "ConstrainedOutput":
        generator = torch.Generator().manual_seed(self.seed)
        try:
            out = pipe(
                task,
                self.prompt,
                self.negative_prompt,
                guidance_scale=self.guidance_scale,
                solver=self.solver,
                num_inference_steps=self.steps,
                generator=generator,
            )
        except (TypeError, ValueError) as error:  # a solver that cannot run the task, steps the schedule does not have
            raise AdhereError(str(error)) from error
        assert not isinstance(out, tuple)
        return out

    def _write(self, image: Image.Image, figures: dict[str, Any]) -> None:
        self._check_outputs()  # again: sampling can take hours
        contents: dict[Path, Callable[[IO[bytes]], Any]] = {}
        if self.report is not None:
            text = json.dumps(figures, indent=2) + "\n"
            contents[self.report] = lambda file: file.write(text.encode())
        contents[self.output] = partial(encode, image, self.output.suffix)
        with staged_writes(contents) as commit:
            # The rest takes an instant. Ctrl-C comes too late for it, so that "nothing was written" is always true.
            signal.signal(signal.SIGINT, lambda *_: None)
            commit()

    def _check_outputs(self) -> None:
        check_output(self.output, self.force)
        if self.report is not None:
            check_writable(self.report, self.force)


def _place(device: str | None, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """Where and in what the network computes."""
    if device is None:
        found = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    else:
        try:
            found = torch.device(device)
            torch.zeros(1, device=found).tolist()  # 'meta' is a device, but computes nothing
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise AdhereError(f"--device '{device}': cannot be used here ({reason}); cpu always can") from error
    if dtype not in (None, *DTYPES):
        raise AdhereError(f"--dtype '{dtype}': there are {', '.join(DTYPES)}")
    return found, DTYPES[dtype or ("float32" if found.type == "cpu" else "float16")]


def _load(model: str | None, device: torch.device, dtype: torch.dtype) -> "ConstrainedPipeline":
    """The model, silent but for a progress bar where standard error is a terminal."""
    from diffusers.utils.logging import disable_progress_bar

    from adhere.pipelines.loading import load

    # What matters comes as an AdhereError, in one line.
    warnings.simplefilter("ignore")
    for library in ("diffusers", "huggingface_hub", "transformers"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    disable_progress_bar()  # of loading
    with suppress(ImportError):  # only models that read text need it
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    try:
        pipe = load(model, torch_dtype=dtype)
    except ModuleNotFoundError as error:
        mend = "pip install 'adhere[text]'"
        raise AdhereError(f"model '{model}' needs the package {error.name}, which is not installed: {mend}") from error
    pipe.to(device)  # type: ignore[attr-defined]
    terminal = sys.stderr.isatty()
    pipe.set_progress_bar_config(desc="sampling", leave=False, disable=not terminal)  # type: ignore[attr-defined]
    return pipe


def _peak_gb(device: torch.device) -> float | None:
    """The most memory held: of the GPU, or by this process; None where the system does not say (Windows)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1024**3, 3)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**3 if sys.platform == "darwin" else 1024**2), 3)  # bytes there, kilobytes elsewhere
