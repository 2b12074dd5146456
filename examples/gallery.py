"""Run every verb of the command line on an example, and write the page docs/gallery.md with its pictures.

    python -m examples.gallery [--to docs/images/gallery] [--page docs/gallery.md] [--only upscale style]

It takes a few minutes on one core. The photographs are part of scikit-image. Inputs and results lie in out/gallery,
where each command of the page can be repeated.
"""

import argparse
import os
import shlex
from collections.abc import Callable
from contextlib import chdir, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import convolve
from skimage import data

import adhere
from adhere.apps.cli import main as run_command

WORK = Path("out/gallery")
GAP_PIXELS = 8  # between pictures
JPEG_QUALITY = 90
NOISE = 25 / 255
HEADER = """\
# Gallery

This page shows one example of each verb, and two of `inpaint`. `python -m examples.gallery` makes the page and its
pictures in a few minutes on one core: it writes the input files to out/gallery and runs the commands shown here. All
seeds are the default, 0. [Tasks](tasks.md) describes the verbs, and [results](results.md) measures them on more
pictures.

The photographs are parts of those in scikit-image: astronaut (NASA, public domain), chelsea (Stéfan van der Walt, CC0),
coffee (Rachel Michetti, CC0) and rocket (SpaceX, CC0). The models were not trained on them. Photographs are edited by
adhere-photo; emoji are made by adhere-emoji ([CC-BY-4.0](../src/adhere/models/adhere-emoji/README.md)).
"""


@dataclass(frozen=True)
class Example:
    """One example of a verb.

    Attributes:
        name: the name of its picture: the verb, and what distinguishes it if the verb has several examples.
        title: what it shows.
        prepare: writes the input files into the current folder, and returns the pictures to show before the result, and
            the original to show after it, or None.
        command: the arguments of `adhere`.
        caption: what the pictures are, and what is wrong with the result.
        scale: how many times the result is enlarged to be shown.
    """

    name: str
    title: str
    prepare: Callable[[], tuple[list[Image.Image], Image.Image | None]]
    command: str
    caption: str
    scale: int = 1

    @property
    def output(self) -> Path:
        """The file that the command writes."""
        words = shlex.split(self.command)
        return Path(words[words.index("-o") + 1])


def photograph(name: str, box: tuple[int, int, int, int] | None = None) -> Image.Image:
    """Return a photograph of scikit-image in RGB, or its part (left, top, right, bottom)."""
    image = Image.fromarray(getattr(data, name)()[..., :3])
    return image if box is None else image.crop(box)


def enlarged(image: Image.Image, factor: int) -> Image.Image:
    """Return a picture whose pixels are shown as squares."""
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


# --- The inputs of the commands.


def print_on_a_photograph() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("chelsea")
    mask = Image.new("L", photo.size)
    draw = ImageDraw.Draw(mask)
    draw.text((26, 40), "PROOF COPY", fill=255, font=ImageFont.load_default(64))
    draw.text((150, 236), "do not print", fill=255, font=ImageFont.load_default(40))
    draw.line([(10, 150), (170, 190), (300, 150), (440, 210)], fill=255, width=5, joint="curve")
    damaged = Image.composite(Image.new("RGB", photo.size, "white"), photo, mask.point(lambda v: 255 * (v > 0)))
    mask.point(lambda v: 255 * (v > 0)).save("mask.png")
    damaged.save("printed.png")
    return [damaged], photo


def a_mast() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("rocket")
    photo.save("rocket.png")
    return [photo], None


def a_cat() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("chelsea")
    photo.save("cat.png")
    return [photo], None


def a_small_picture() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("chelsea", (70, 20, 390, 260))
    small = photo.reduce(4)
    small.save("small.png")
    return [enlarged(small, 4)], photo


def noise_on_a_photograph() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("astronaut", (110, 0, 430, 320))
    x = np.asarray(photo) / 255 + np.random.default_rng(0).normal(0, NOISE, (320, 320, 3))
    noisy = Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))
    noisy.save("noisy.png")
    return [noisy], photo


def a_shaken_photograph() -> tuple[list[Image.Image], Image.Image | None]:
    box = (150, 20, 470, 340)
    scene = np.asarray(photograph("coffee")) / 255
    kernel = adhere.Deblur(photograph("coffee"), "motion:15,30").kernel.double().numpy()
    blurred = np.stack([convolve(scene[..., c], kernel, mode="reflect") for c in range(3)], 2)
    blurred += np.random.default_rng(0).normal(0, 0.002, blurred.shape)
    shaken = Image.fromarray((blurred.clip(0, 1) * 255).round().astype(np.uint8)).crop(box)
    shaken.save("shaken.png")
    return [shaken], photograph("coffee", box)


def a_gray_photograph() -> tuple[list[Image.Image], Image.Image | None]:
    photo = photograph("coffee", (60, 10, 440, 390))
    gray = photo.convert("L")
    gray.save("gray.png")
    strokes = Image.new("RGBA", photo.size)
    draw = ImageDraw.Draw(strokes)
    for points in STROKES:
        place = Image.new("1", photo.size)
        ImageDraw.Draw(place).line(points, fill=1, width=7, joint="curve")
        color = np.asarray(photo)[np.asarray(place)].mean(0).round().astype(int)
        draw.line(points, fill=tuple(color.tolist()), width=7, joint="curve")
    strokes.save("strokes.png")
    shown = gray.convert("RGB")
    shown.paste(strokes, (0, 0), strokes)
    return [shown], photo


STROKES = (
    [(8, 12), (30, 10)],  # the dark
    [(15, 75), (60, 45), (100, 20)],  # wood
    [(330, 15), (370, 45)],
    [(10, 300), (35, 345)],
    [(40, 140), (35, 200), (55, 260)],  # the saucer
    [(110, 330), (200, 355), (300, 345)],
    [(350, 150), (365, 220), (360, 290)],
    [(200, 290), (250, 300)],
    [(130, 180), (170, 205), (240, 210)],  # the cup
    [(150, 270), (170, 235)],
    [(125, 70), (150, 35), (220, 15), (300, 40), (340, 85)],
    [(180, 60), (240, 50), (300, 90)],
    [(160, 140), (220, 120), (290, 150)],  # coffee
    [(280, 255), (300, 290), (335, 270)],  # the spoon
)


def some_wood() -> tuple[list[Image.Image], Image.Image | None]:
    wood = photograph("coffee", (0, 200, 128, 328))
    wood.save("wood.png")
    return [wood.resize((192, 192), Image.Resampling.LANCZOS)], None


def a_sketch() -> tuple[list[Image.Image], Image.Image | None]:
    sketch = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(sketch)
    draw.ellipse((6, 6, 58, 58), fill=(250, 200, 60))
    draw.rectangle((10, 22, 54, 34), fill=(30, 30, 40))
    sketch.save("sketch.png")
    return [enlarged(sketch, 3)], None


def an_outline() -> tuple[list[Image.Image], Image.Image | None]:
    shape = Image.new("L", (64, 64))
    draw = ImageDraw.Draw(shape)
    draw.ellipse((4, 17, 48, 47), fill=255)
    draw.polygon([(44, 32), (60, 17), (60, 47)], fill=255)
    shape.save("shape.png")
    return [enlarged(shape, 3)], None


def nothing() -> tuple[list[Image.Image], Image.Image | None]:
    return [], None


EXAMPLES = (
    Example(
        "inpaint",
        "inpaint: print on a photograph",
        print_on_a_photograph,
        "inpaint printed.png --mask mask.png --grow 1 -o repaired.png",
        "The input, the result, the original. Fur is replaced by similar fur, not by the original hairs.",
    ),
    Example(
        "inpaint-boxes",
        "inpaint: a mast in the sky",
        a_mast,
        "inpaint rocket.png --box 438,118,26,107 --box 438,220,40,152 -o sky.png",
        "The photograph, and the result without the mast on the right, above the clouds.",
    ),
    Example(
        "outpaint",
        "outpaint: a wider picture",
        a_cat,
        "outpaint cat.png --right 64 -o wide.png",
        "The photograph, and the result with 64 more columns at the right. adhere-photo continues colors, not objects. "
        "Even on a background out of focus, the colors drift, as at the top.",
    ),
    Example(
        "upscale",
        "upscale: four times as wide and high",
        a_small_picture,
        "upscale small.png --factor 4 -o large.png",
        "The small picture, the result, the original. Edges become sharp. Hair that the small picture does not show is "
        "not added.",
    ),
    Example(
        "denoise",
        "denoise: 25 levels of noise",
        noise_on_a_photograph,
        "denoise noisy.png -o clean.png",
        "The noisy picture, the result, the original. The strength of the noise is estimated. The result is a mean, so "
        "fine textures are smoother than in the original.",
    ),
    Example(
        "deblur",
        "deblur: a shaken camera",
        a_shaken_photograph,
        "deblur shaken.png --psf motion:15,30 -o sharp.png",
        "The blurred picture, the result, the original. The motion is known exactly here, and there is hardly any "
        "noise.",
    ),
    Example(
        "colorize",
        "colorize: fourteen strokes of color",
        a_gray_photograph,
        "colorize gray.png --hints strokes.png -o colored.png",
        "The gray picture with the strokes, the result, the original. Each stroke has one color, the mean of the "
        "original under it.",
    ),
    Example(
        "style",
        "style: the colors and textures of wood",
        some_wood,
        'style --reference wood.png --prompt "a red heart, 3d" --model adhere-emoji -o wooden.png',
        "The reference, and the result. The result is poor: adhere-emoji knows only emoji on white and cannot paint a "
        "texture that fills the picture.",
        scale=3,
    ),
    Example(
        "layout",
        "layout: coarse colors",
        a_sketch,
        'layout --reference sketch.png --prompt "smiling face with sunglasses, cartoon" --model adhere-emoji '
        "-o face.png",
        "The sketch, and the result.",
        scale=3,
    ),
    Example(
        "silhouette",
        "silhouette: an outline",
        an_outline,
        'silhouette --reference shape.png --prompt "tropical fish, cartoon" --model adhere-emoji -o fish.png',
        "The outline, and the result. The result follows the outline, but its inside is plain, and some seeds leave a "
        "white spot. The results of silhouette and style depend on rounding errors, so yours may look different.",
        scale=3,
    ),
    Example(
        "generate",
        "generate: a prompt alone",
        nothing,
        'generate --prompt "a red heart, 3d" --guidance-scale 3 --model adhere-emoji -o heart.png',
        "The result, at three times its 64x64 pixels.",
        scale=3,
    ),
)


def result_of(example: Example) -> tuple[Image.Image, str]:
    """Run the command of an example in the current folder; return its result and its report line."""
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        run_command([*shlex.split(example.command), "--force"])
    if not printed.getvalue():
        raise SystemExit(f"failed: adhere {example.command}")
    with Image.open(example.output) as image:
        return image.convert("RGB"), printed.getvalue().strip()


def joined(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures side by side on white, centered vertically."""
    height = max(picture.height for picture in pictures)
    width = sum(picture.width + GAP_PIXELS for picture in pictures) - GAP_PIXELS
    row, left = Image.new("RGB", (width, height), "white"), 0
    for picture in pictures:
        row.paste(picture, (left, (height - picture.height) // 2))
        left += picture.width + GAP_PIXELS
    return row


def shown(
    example: Example, before: list[Image.Image], result: Image.Image, original: Image.Image | None
) -> Image.Image:
    """Return the picture of an example for the page."""
    after = result.resize((result.width * example.scale, result.height * example.scale), Image.Resampling.LANCZOS)
    return joined([*before, after, *([] if original is None else [original])])


def section(example: Example, picture: str, report: str) -> str:
    """Return the section of an example on the page."""
    figures = report.partition(",")[0]
    return (
        f"## {example.title}\n\n![{example.caption}]({picture})\n\n```\nadhere {example.command}\n```\n\n"
        f"{example.caption} {figures}.\n"
    )


def main() -> None:
    """Run the examples, and write the pictures and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("docs/images/gallery"), help="the folder of the pictures")
    parser.add_argument("--page", type=Path, default=Path("docs/gallery.md"), help="the page to write")
    parser.add_argument("--only", nargs="+", help="names of examples; then the page is not written")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    sections = [HEADER]
    for example in EXAMPLES:
        if args.only and example.name not in args.only:
            continue
        print(f"$ adhere {example.command}", flush=True)
        with chdir(WORK):
            before, original = example.prepare()
            result, report = result_of(example)
        print(report, flush=True)
        file = args.to / f"{example.name}.jpg"
        shown(example, before, result, original).save(file, quality=JPEG_QUALITY, optimize=True)
        sections.append(section(example, Path(os.path.relpath(file, args.page.parent)).as_posix(), report))
    if not args.only:
        args.page.write_text("\n".join(sections), encoding="utf-8")


if __name__ == "__main__":
    main()
