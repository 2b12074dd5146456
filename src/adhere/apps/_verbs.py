"""Verbs beside those in `cli`: their options, and what they do. A verb is a function of a `Job` and of its options."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adhere.apps import _options, _process
from adhere.apps._inputs import input_files, read_photo
from adhere.apps._options import option
from adhere.apps._parsers import (
    integer_parser,
    parse_aspect,
    parse_growth,
    parse_path,
    parse_size,
    parse_text,
    with_flag,
)

if TYPE_CHECKING:
    from adhere.apps.job import Job, Report
    from adhere.tasks import Task

VERB_EXAMPLES = {
    "outpaint": (
        "adhere outpaint photo.jpg -o wide.png --left 128 --right 25%",
        "adhere outpaint photo.jpg -o wide.png --aspect 16:9 --seed 7",
    ),
    "style": (
        "adhere style -o new.png --reference painting.jpg --model path/to/folder",
        'adhere style -o street.png --reference painting.jpg --prompt "a street" --model path/to/diffusers-folder',
    ),
    "layout": (
        "adhere layout -o heart.png --reference sketch.png --model adhere-emoji",
        'adhere layout -o heart.png --reference sketch.png --prompt "a red heart, 3d" --model adhere-emoji',
    ),
    "silhouette": (
        "adhere silhouette -o cat.png --reference shape.png --model adhere-emoji",
        'adhere silhouette -o cat.png --reference shape.png --prompt "a cat, 3d" --model adhere-emoji --size 64x64',
    ),
}
_GROWTH_HELP = "What is added at the {} of PHOTO, in pixels, or as a share of its {} such as 25%."


_PHOTO_HELP = (
    "The picture to work on, of at most 250 megapixels: a JPEG, PNG, WebP, TIFF, BMP or GIF file, or - for standard "
    "input."
)
Photo = Annotated[str, typer.Argument(parser=with_flag("photo", parse_text), metavar="PHOTO", help=_PHOTO_HELP)]
_FRAME_HELP = (
    "Which picture of PHOTO to use, if the file holds several, such as pages or the frames of an animation. "
    "The first is 0."
)
Frame = Annotated[int | None, option("--frame", "N", integer_parser(0, 99_999), _FRAME_HELP)]
_Left = Annotated[Any, option("--left", "N", parse_growth, _GROWTH_HELP.format("left", "width"))]
_Right = Annotated[Any, option("--right", "N", parse_growth, _GROWTH_HELP.format("right", "width"))]
_Top = Annotated[Any, option("--top", "N", parse_growth, _GROWTH_HELP.format("top", "height"))]
_Bottom = Annotated[Any, option("--bottom", "N", parse_growth, _GROWTH_HELP.format("bottom", "height"))]
_ASPECT_HELP = "Instead of the sides: PHOTO grows to this aspect, centered, the shorter way."
_Aspect = Annotated[Any, option("--aspect", "W:H", parse_aspect, _ASPECT_HELP)]
_REFERENCE_HELP = {
    "style": "The picture whose colors and textures the result has.",
    "layout": "The picture whose coarse colors the result has, such as a sketch.",
    "silhouette": "The shape of the object: white on black, or opaque where the rest is transparent.",
}
_SIZE_HELP = "The size of the result in pixels. The default is the size of the model's training pictures."
_Size = Annotated[str | None, typer.Option("--size", metavar="WIDTHxHEIGHT", help=_SIZE_HELP)]
_StyleReference = Annotated[Path, option("--reference", "FILE", parse_path, _REFERENCE_HELP["style"])]
_LayoutReference = Annotated[Path, option("--reference", "FILE", parse_path, _REFERENCE_HELP["layout"])]
_Shape = Annotated[Path, option("--reference", "FILE", parse_path, _REFERENCE_HELP["silhouette"])]


def inpaint(
    job: "Job",
    photo: Photo,
    mask: _options.Mask = None,
    box: _options.Boxes = None,
    color: _options.Color = None,
    tolerance: _options.Tolerance = 10,
    invert: _options.Invert = False,
    fill_holes: _options.FillHoles = False,
    grow: _options.Grow = 0,
    feather: _options.Feather = 0,
    soft: _options.Soft = False,
    save_mask: _options.SaveMask = None,
    frame: Frame = None,
) -> "Report":
    """Inpaint the white part of a mask, boxes and a color. Every other pixel stays bit for bit the same.

    (In a JPEG file, up to compression.)
    """
    from adhere.tasks import Inpaint

    job = replace(job, save_mask=save_mask)
    job.check(*input_files(photo), mask)
    selection = {"boxes": box or (), "color": color, "tolerance": tolerance, "invert": invert}
    edges = {"fill_holes": fill_holes, "grow": grow, "feather": feather, "soft": soft}
    with _process.silenced_stderr():
        task = Inpaint(read_photo(photo, frame), mask, **selection, **edges)
    return job.run(task, task.picture.size)  # pyright: ignore[reportReturnType]


def outpaint(
    job: "Job",
    photo: Photo,
    left: _Left = None,
    right: _Right = None,
    top: _Top = None,
    bottom: _Bottom = None,
    aspect: _Aspect = None,
    frame: Frame = None,
) -> "Report":
    """Continue a picture beyond its edges. Its own pixels stay bit for bit the same (up to compression in a JPEG).

    A side grows by at most half of the model's native size at once, 128 pixels with adhere-photo; more is done in
    several passes. Far from the picture, adhere-photo continues colors rather than objects.
    """
    from adhere.tasks import Outpaint

    job.check(*input_files(photo))
    with _process.silenced_stderr():
        picture = read_photo(photo, frame)
    height, width = picture.size
    sides = [(left, width), (right, width), (top, height), (bottom, height)]
    growth = [round(side * share) if share else pixels for side, (pixels, share) in _amounts(sides)]
    task = Outpaint(picture, *growth, aspect=aspect)
    return job.run(task, task.size)  # pyright: ignore[reportReturnType]


def _amounts(sides: list[tuple[tuple[int, float] | None, int]]) -> list[tuple[int, tuple[int, float]]]:
    return [(side, given or (0, 0.0)) for given, side in sides]


def style(job: "Job", reference: _StyleReference, size: _Size = None) -> "Report":
    """Generate a picture with the colors and textures of another. Only for latent models, such as Stable Diffusion."""
    from adhere.tasks import Style

    return _generate(job, reference, size, Style)


def layout(job: "Job", reference: _LayoutReference, size: _Size = None) -> "Report":
    """Generate a picture with the coarse colors of another. Only for latent models, such as adhere-emoji."""
    from adhere.tasks import Layout

    return _generate(job, reference, size, Layout)


def silhouette(job: "Job", reference: _Shape, size: _Size = None) -> "Report":
    """Generate an object with a given outline on white. Only for latent models, such as adhere-emoji."""
    from adhere.tasks import Silhouette

    return _generate(job, reference, size, Silhouette)


def _generate(job: "Job", reference: Path, size: str | None, make: Any) -> "Report":
    """Sample a task of a reference and a size, with a latent model."""
    job.check(reference)
    sides = None if size is None else parse_size(size)
    task: Task = make(reference, size=sides)
    return job.run(task, sides, needs_latents=True)  # pyright: ignore[reportReturnType]


def print_models() -> None:
    """Print the shipped models and those in the cache of the Hugging Face hub."""
    from adhere.pipelines._inventory import known_models

    rows = [("MODEL", "FAMILY", "SIZE", "LICENSE", "GOOD FOR"), *(model.row for model in known_models())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
