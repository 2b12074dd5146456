"""One request: check it, load the model, sample, write the files, and return a report.

A job raises `AdhereError` for bad input and prints nothing; `adhere.apps.cli` prints. Diffusers takes seconds to
import, so it is imported only after the request has been checked.
"""

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from PIL import Image

from adhere import __version__
from adhere.apps import _process
from adhere.apps._estimate import Estimate, estimate, peak_gb
from adhere.apps._files import Files
from adhere.apps._model import Lora, check_parts, device_and_dtype, load_model
from adhere.apps._progress import step_callback
from adhere.core.presets import get_sampler
from adhere.errors import AdhereError, AdhereWarning
from adhere.io._atomic import staged_writes
from adhere.tasks import Deblur, Generate, Inpaint, Outpaint, Task

if TYPE_CHECKING:
    from adhere.pipelines.base import ConstrainedOutput, ConstrainedPipeline

_SHIPPED_MODELS = Path(__file__).parents[1] / "models"
_USUAL_MASK_SHARE = 0.9
_LARGE_RESIDUAL = 0.04  # a large residual of deblurring without noise, in [-1, 1] units: five 8-bit levels


@dataclass(frozen=True)
class Report:
    """The figures and the settings of one job, in the order in which the JSON file has them.

    Attributes:
        nfe: the number of network evaluations.
        seconds: the wall time of sampling, decoding and encoding the picture.
        residual: as in `ConstrainedOutput`; for several pictures, the largest residual.
        peak_gb: the largest amount of memory in use, in units of 1024^3 bytes: of the GPU if the network is on one,
            otherwise of the process; None if the system does not tell.
        repainted: the share of the pixels that were inpainted, or None.
        task: the class of the task, and its settings that are numbers, texts or names of files, in the units of Python.
        model: the name, folder, file or hub id of the model.
        variant: the variant of the weights, or None.
        config: the folder or hub id with the configurations of a single file's components, or None.
        vae: the folder, hub id or file of the autoencoder, or None if it is the model's own.
        loras: (file, weight) of each LoRA.
        offload: whether components were on the device only while they computed.
        prompt: the prompt, or None.
        negative_prompt: the negative prompt, or None.
        guidance_scale: the scale that was given, or None.
        solver: the name of the preset, or of the solver's class where the task has its own.
        steps: the number of noise levels of the run.
        seed: the seed of the first picture; each further picture has the next integer as its seed.
        num_images: the number of samples.
        device: the device of the network.
        dtype: the dtype of the network.
        compile: whether the network was compiled.
        version: the version of adhere.
    """

    nfe: int
    seconds: float
    residual: float
    peak_gb: float | None
    repainted: float | None
    task: dict[str, object]
    model: str
    variant: str | None
    config: str | None
    vae: str | None
    loras: list[list[str | float]]
    offload: bool
    prompt: str | None
    negative_prompt: str | None
    guidance_scale: float | None
    solver: str
    steps: int
    seed: int
    num_images: int
    device: str
    dtype: str
    compile: bool
    version: str

    @property
    def line(self) -> str:
        """The figures in one line, such as '12 NFE, 2.1 s, residual 0.000, peak 0.6 GB'.

        If the mask covers more than 90 % of the picture, a hint to invert it is added.
        """
        peak = "unknown" if self.peak_gb is None else f"{self.peak_gb:.1f} GB"
        figures = f"{self.nfe} NFE, {self.seconds:.1f} s, residual {self.residual:.3f}, peak {peak}"
        if self.repainted is None or self.repainted <= _USUAL_MASK_SHARE:
            return figures
        return f"{figures}; {100 * self.repainted:.3g} % is repainted: invert the mask if that part was to stay"

    @property
    def json(self) -> str:
        """The figures and the settings as a JSON object."""
        return json.dumps(asdict(self), indent=2) + "\n"


Result = Report | Estimate


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request: the files to write, and the settings of sampling.

    Call `check` first, then make the task, then call `run`.

    Args:
        output: the file of the picture to write.
        json_file: the file to which the report is written, or None.
        force: whether existing files may be replaced.
        model: as for `adhere.load`; None is the shipped photograph model.
        variant: the variant of the weights in the model's folder, such as 'fp16'; None is that without a name.
        config: the folder or hub id with the configurations of a single file's components; None is the hub.
        vae: the folder, the hub id or the .safetensors file of an autoencoder; None is the model's own.
        loras: (.safetensors file, weight) of each LoRA to add.
        offload: whether components are on the GPU only while they compute.
        prompt: the prompt, for models that read text.
        negative_prompt: the negative prompt, for models that read text.
        guidance_scale: above 0; None is the model's own.
        solver: the name of a preset; None is the default for the task.
        steps: the number of noise levels; None is the solver's own.
        seed: the seed of the random numbers.
        device: a name that `torch.device` understands; None is a GPU if there is one, otherwise the CPU.
        dtype: 'float32', 'float16' or 'bfloat16'; None is float32 on a CPU and float16 on a GPU.
        compile: whether the network is compiled with torch.compile.
        show_progress: whether a progress bar on standard error shows the steps.
        num_images, mean, contact_sheet, uncertainty, save_mask, preview, quality, mark_edited: see `Files`. Sample i
            has the seed `seed` + i.
        dry_run: whether `run` returns an estimate of the cost, and writes nothing.
    """

    output: Path
    json_file: Path | None = None
    force: bool = False
    model: str | None = None
    variant: str | None = None
    config: str | None = None
    vae: str | None = None
    loras: tuple[Lora, ...] = ()
    offload: bool = False
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    steps: int | None = None
    seed: int = 0
    device: str | None = None
    dtype: str | None = None
    compile: bool = False
    show_progress: bool = False
    num_images: int | None = None
    mean: bool = False
    contact_sheet: Path | None = None
    uncertainty: Path | None = None
    save_mask: Path | None = None
    preview: Path | None = None
    quality: int | None = None
    mark_edited: bool = False
    dry_run: bool = False

    @property
    def num_samples(self) -> int:
        """How many pictures are sampled."""
        return self._files.count

    @property
    def _files(self) -> Files:
        return Files(**{one.name: getattr(self, one.name) for one in fields(Files)})

    def check(self, photo: Path | None = None, *others: Path | None) -> None:
        """Check everything that can be checked before a picture is read.

        Args:
            photo: the picture that the task works on, which the result may replace.
            others: the other files that the task is going to read; None is left out.

        Raises:
            AdhereError: if a file cannot be written, the report would replace a picture, or the solver, the device or
                the dtype does not exist.
        """
        if _process.is_program():  # adhere.io has a limit of its own
            Image.MAX_IMAGE_PIXELS = None
        if self.dry_run and self.json_file is not None:
            raise AdhereError(f"--json {self.json_file}: a dry run writes no file; write --json -")
        parts = [_SHIPPED_MODELS, self.model, self.config, self.vae, *(file for file, _ in self.loras)]
        read = [*filter(None, others), *(Path(part) for part in parts if part is not None)]
        self._files.check(photo, read)
        if self.solver is not None:
            get_sampler(self.solver)
        check_parts(self.loras, self.offload, device_and_dtype(self.device, self.dtype)[0])

    def run(self, task: Task, size: tuple[int, int] | None = None, needs_latents: bool = False) -> Result:
        """Sample the pictures, write the files and return the report; in a dry run, return an estimate.

        While the files are renamed to their final names, the process ignores signals.

        Args:
            task: the task to sample.
            size: (height, width) of the result in pixels, or None if it is not known.
            needs_latents: whether pixel-space models are refused.

        Raises:
            AdhereError: if the model cannot be loaded or cannot do the task, or a file cannot be written. No file is
                written or changed then.
            OutOfMemory: if the picture or the model is too large.
        """
        files = self._files
        if size is not None:
            files.check_size(size)
        if self.solver == "plain" and not isinstance(task, Generate):
            raise AdhereError("--solver 'plain': ignores all constraints, so only adhere generate accepts it")
        device, dtype = device_and_dtype(self.device, self.dtype)
        parts = {name: value for name in ("variant", "config", "vae") if (value := getattr(self, name)) is not None}
        pipe = load_model(self.model, device, dtype, self.loras, self.offload, **parts)
        if needs_latents and not pipe.is_latent:
            name = type(task).__name__.lower()
            raise AdhereError(f"{name} needs a latent model, not one of pixels: give --model, such as adhere-emoji")
        if self.compile:
            pipe.compile()
        options = {
            "guidance_scale": self.guidance_scale,
            "solver": self.solver,
            "num_inference_steps": self.steps,
        }
        if self.dry_run:
            return estimate(
                pipe, task, {"prompt": self.prompt, "negative_prompt": self.negative_prompt}, files.count, **options
            )
        _process.set_preview(None)
        outs = [self._sample(pipe, task, i, files.count, options) for i in range(files.count)]
        _check_fit(task, max(out.residual[0] for out in outs))
        is_inpaint = isinstance(task, Inpaint)
        share = float(task.mask_array.mean()) if is_inpaint else None
        contents = files.contents([out.images[0] for out in outs], task.weights if is_inpaint else None)
        return self._write(contents, self._report(task, outs, share, device, dtype))  # pyright: ignore[reportArgumentType]

    def _sample(
        self, pipe: "ConstrainedPipeline", task: Task, index: int, count: int, options: dict[str, Any]
    ) -> "ConstrainedOutput":
        """Return one sample; samples are drawn one by one, so that memory does not grow with their number."""
        desc = "sampling" if count == 1 else f"sampling {index + 1} of {count}"
        shows_residual = self.show_progress and (not pipe.is_latent or isinstance(task, Inpaint | Outpaint))
        pipe.set_progress_bar_config(desc=desc, leave=False, disable=not self.show_progress)  # type: ignore[attr-defined]
        return pipe(
            task,
            self.prompt,
            self.negative_prompt,
            generator=torch.Generator().manual_seed((self.seed + index) % 2**63),
            callback_on_step_end=step_callback(pipe, self.preview, shows_residual),
            callback_on_step_end_tensor_inputs=("x0", "residual") if shows_residual else ("x0",),
            **options,
        )

    def _report(
        self,
        task: Task,
        outs: "list[ConstrainedOutput]",
        repainted: float | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Report:
        from adhere.pipelines.loading import _DEFAULT_MODEL

        return Report(
            nfe=sum(out.nfe for out in outs),
            seconds=round(sum(out.seconds for out in outs), 3),
            residual=round(max(out.residual[0] for out in outs), 6),
            peak_gb=peak_gb(device),
            repainted=None if repainted is None else round(repainted, 6),
            task=_settings(task),
            model=self.model or _DEFAULT_MODEL,
            variant=self.variant,
            config=self.config,
            vae=self.vae,
            loras=[list(one) for one in self.loras],
            offload=self.offload,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.guidance_scale,
            solver=outs[0].solver,
            steps=outs[0].num_steps,
            seed=self.seed,
            num_images=len(outs),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            compile=self.compile,
            version=__version__,
        )

    def _write(self, contents: dict[Path, Callable[[IO[bytes]], object]], report: Report) -> Report:
        """Write all files or none; return the report with the time that the pictures took."""
        names = replace(self._files, preview=None)  # it may exist by now
        names.check()  # again, for what has appeared meanwhile: with --force, nothing else would refuse it
        begin = time.perf_counter()

        def timed(write: Callable[[IO[bytes]], object], file: IO[bytes]) -> None:
            nonlocal report, begin
            write(file)
            now = time.perf_counter()
            report, begin = replace(report, seconds=round(report.seconds + now - begin, 3)), now

        contents = {path: partial(timed, write) for path, write in contents.items()}
        if self.json_file is not None:
            contents[self.json_file] = lambda file: file.write(report.json.encode())
        with staged_writes(contents, self.force) as commit, _process.ignored_signals():
            commit()
            _process.set_written(True)
        return report


def _check_fit(task: Task, residual: float) -> None:
    """Warn if no picture that is blurred by the stated point spread function is near the picture to deblur."""
    if isinstance(task, Deblur) and residual > max(_LARGE_RESIDUAL, 5 * task.noise):
        given = f"the picture is not blurred by --psf (residual {residual:.3f}, noise {task.noise:.3f})"
        warnings.warn(f"{given}: check it, or give more --noise", AdhereWarning, stacklevel=2)


def _settings(task: Task) -> dict[str, object]:
    """Return the class of a task and its plain settings, as JSON can hold them."""
    values = {one.name: getattr(task, one.name) for one in fields(task)} if is_dataclass(task) else {}
    plain = {name: _as_json(value) for name, value in values.items()}
    return {"name": type(task).__name__} | {name: value for name, value in plain.items() if value is not ...}


def _as_json(value: object) -> object:
    """Return a value with lists for tuples and text for paths, or ... if it is not a plain setting."""
    if isinstance(value, (tuple, list)):
        parts = [_as_json(one) for one in value]
        return ... if ... in parts else parts
    if isinstance(value, Path):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else ...
