"""The verbs: functions of a `Job` and of their own options that check the job, make the task and run it.

They import the rest of the package themselves, so that `adhere --help` does not wait for torch.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adhere.apps import _options, _process
from adhere.apps._inputs import input_file, read_photo
from adhere.apps._output import print_line
from adhere.apps._parsers import parse_size
from adhere.errors import AdhereError, AdhereWarning

if TYPE_CHECKING:
    from adhere.apps.job import Job, Result
    from adhere.tasks import Task

_LATENT_MODEL = "adhere-emoji"  # the latent model that ships


def inpaint(
    job: "Job",
    photo: _options.Photo,
    mask: _options.Mask = None,
    box: _options.Boxes = None,
    color: _options.Color = None,
    tolerance: _options.Tolerance = 10,
    invert: _options.Invert = False,
    fill_holes: _options.FillHoles = False,
    grow: _options.Grow = 0,
    feather: _options.Feather = 0,
    soft: _options.Soft = False,
    context: _options.Context = None,
    save_mask: _options.SaveMask = None,
    frame: _options.Frame = None,
) -> "Result":
    """Inpaint the white part of a mask, boxes and a color. Every other pixel stays bit for bit the same.

    In a JPEG file, the compression changes all pixels.
    """
    from adhere.tasks import Inpaint

    job = replace(job, save_mask=save_mask)
    job.check(input_file(photo), mask)
    selection = {"boxes": box or (), "color": color, "tolerance": tolerance, "invert": invert}
    edges = {"fill_holes": fill_holes, "grow": grow, "feather": feather, "soft": soft}
    with _process.silenced_stderr():
        picture = read_photo(photo, frame)
        if mask is None and not box and color is None and picture.alpha is None:
            raise AdhereError("what to inpaint is missing: give --mask, --box or --color; PHOTO has no transparency")
        task = Inpaint(picture, mask, context, **selection, **edges)
    return job.run(task, task.picture.size)


def outpaint(
    job: "Job",
    photo: _options.Photo,
    left: _options.Left = None,
    right: _options.Right = None,
    top: _options.Top = None,
    bottom: _options.Bottom = None,
    aspect: _options.Aspect = None,
    context: _options.Context = None,
    frame: _options.Frame = None,
) -> "Result":
    """Continue a picture beyond its edges. Its own pixels stay bit for bit the same (up to compression in a JPEG).

    In one pass, a side grows by at most half of the model's native size (128 pixels with adhere-photo); larger growth
    takes several passes. Far from the picture, adhere-photo continues colors rather than objects.
    """
    from adhere.tasks import Outpaint

    job.check(input_file(photo))
    with _process.silenced_stderr():
        picture = read_photo(photo, frame)
    height, width = picture.size
    growth = [_pixels(left, width), _pixels(right, width), _pixels(top, height), _pixels(bottom, height)]
    if aspect is None and not any(growth):
        raise AdhereError("PHOTO would not grow: give --left, --right, --top or --bottom, or --aspect")
    task = Outpaint(picture, *growth, aspect=aspect, context=context)
    return job.run(task, task.size)


def _pixels(given: tuple[int, float] | None, side: int) -> int:
    """Return the growth of a side in pixels, from an option's value (pixels, 0) or (0, share of the side)."""
    pixels, share = given or (0, 0.0)
    return pixels + round(share * side)


def upscale(
    job: "Job",
    photo: _options.Photo,
    factor: _options.Factor = None,
    size: _options.LargeSize = None,
    kernel: _options.Kernel = "area",
    noise: _options.Noise = 0.0,
    frame: _options.Frame = None,
) -> "Result":
    """Enlarge a picture so that the result, reduced to the size of PHOTO, is PHOTO: exactly for an integer factor."""
    from adhere.tasks import Upscale

    if size is not None and factor is not None:
        raise AdhereError(f"--size '{size}' and --factor '{factor:g}' are given: give one of them")
    sides = None if size is None else parse_size(size)
    job.check(input_file(photo))
    with _process.silenced_stderr():
        picture = read_photo(photo, frame)
        task = Upscale(picture, factor, 2 * noise, kernel, sides)  # type: ignore[arg-type]  # [-1, 1] units
    return job.run(task, task.size)


def colorize(
    job: "Job",
    photo: _options.Photo,
    hints: _options.Hints = None,
    hint_noise: _options.HintNoise = 0.05,
    frame: _options.Frame = None,
) -> "Result":
    """Color a gray picture from hints. The brightness of each pixel stays the same."""
    from adhere.tasks import Colorize

    job.check(input_file(photo), hints)
    with _process.silenced_stderr():
        picture = read_photo(photo, frame)
        task = Colorize(picture, hints, 2 * hint_noise)  # [-1, 1] units
    report = job.run(task, picture.size)
    if not picture.is_gray(picture.visible()):
        print_line("note: PHOTO has colors, which were replaced by its luma")
    return report


def deblur(
    job: "Job", photo: _options.Photo, psf: _options.Psf, noise: _options.Noise = 0.002, frame: _options.Frame = None
) -> "Result":
    """Sharpen a picture, including its border, that was blurred by a known point spread function."""
    from adhere.tasks import Deblur

    job.check(input_file(photo), Path(psf))  # Path(psf) is no file if psf names a shape
    with _process.silenced_stderr():
        task = Deblur(read_photo(photo, frame), psf, 2 * noise)  # [-1, 1] units
    return job.run(task, task.picture.size)


def denoise(job: "Job", photo: _options.Photo, sigma: _options.Sigma = None, frame: _options.Frame = None) -> "Result":
    """Remove noise from a picture. The result is the mean of all pictures that agree with PHOTO, by one evaluation.

    With --solver, or with an option that needs several results (--num-images, --mean, --contact-sheet, --uncertainty),
    samples are drawn instead. They have texture, and take 12 evaluations each by default.
    """
    from adhere.tasks import Denoise

    job.check(input_file(photo))
    is_sample = job.num_samples > 1
    if job.steps not in (None, 1) and job.solver is None and not is_sample:
        raise AdhereError(
            f"--steps {job.steps}: the mean takes one evaluation; leave it out, or give --solver to sample"
        )
    with _process.silenced_stderr():
        noise = None if sigma is None else 2 * sigma  # [-1, 1] units
        task = Denoise(read_photo(photo, frame), noise, sample=is_sample)
    report = job.run(task, task.picture.size)
    if sigma is None:
        print_line(f"note: the noise was estimated as --sigma {(task.noise or 0) / 2:.4f}")
    return report


def generate(job: "Job", size: _options.Size = None) -> "Result":
    """Generate a new picture, with or without a prompt. With a prompt, the default model is adhere-emoji."""
    from adhere.tasks import Generate

    if job.prompt is not None or job.negative_prompt is not None:
        job = _with_latent_model(job)
    job.check()
    sides = None if size is None else parse_size(size)
    return job.run(Generate(sides), sides)


def style(job: "Job", reference: _options.StyleReference, size: _options.Size = None) -> "Result":
    """Generate a picture with the colors and textures of another. Needs a latent model; the default is adhere-emoji."""
    from adhere.tasks import Style

    return _sample(job, reference, size, Style)


def layout(job: "Job", reference: _options.LayoutReference, size: _options.Size = None) -> "Result":
    """Generate a picture with the coarse colors of another. Needs a latent model; the default is adhere-emoji."""
    from adhere.tasks import Layout

    return _sample(job, reference, size, Layout)


def silhouette(job: "Job", reference: _options.Shape, size: _options.Size = None) -> "Result":
    """Generate an object with a given outline on white. Needs a latent model; the default is adhere-emoji."""
    from adhere.tasks import Silhouette

    return _sample(job, reference, size, Silhouette)


def _sample(job: "Job", reference: Path, size: str | None, make: Any) -> "Result":
    """Check the job, make a task from a reference and a size, and sample it with a latent model."""
    job = _with_latent_model(job)
    job.check(None, reference)
    sides = None if size is None else parse_size(size)
    task: Task = make(reference, size=sides)
    return job.run(task, sides, needs_latents=True)


def _with_latent_model(job: "Job") -> "Job":
    """Return the job with the shipped latent model, and a warning that says so, if no model is given."""
    if job.model is not None:
        return job
    message = f"the model is {_LATENT_MODEL}, which draws emoji; --model gives another"
    warnings.warn(message, AdhereWarning, stacklevel=2)
    return replace(job, model=_LATENT_MODEL)


def print_models() -> None:
    """Print the shipped models and those in the cache of the Hugging Face hub."""
    from adhere.pipelines._inventory import known_models

    rows = [("MODEL", "FAMILY", "SIZE", "LICENSE", "GOOD FOR"), *(model.row for model in known_models())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
