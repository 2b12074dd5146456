"""Options of the verbs: their flags, the parsers of their values, and their help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from adhere.apps._parsers import Parser, integer_parser, parse_box, parse_color, parse_path, with_flag

_HELP = {
    "--mask": "A picture of the same size as PHOTO. White pixels are inpainted and black pixels are kept. Without a "
    "mask, a box and a color, the transparent part of PHOTO is inpainted, and the result is opaque.",
    "--box": "A rectangle to inpaint, in pixels: left, top, width and height. May be given several times, and together "
    "with a mask.",
    "--color": "Pixels of this color are inpainted, too.",
    "--tolerance": "By how much a channel of such pixels may differ from the color, from 0 to 255.",
    "--invert": "Inpaint what would be kept, and keep the rest.",
    "--fill-holes": "Also inpaint what is enclosed by pixels to inpaint.",
    "--grow": "Enlarge what is inpainted by this many pixels on all sides.",
    "--feather": "Give what is inpainted a soft edge of this width in pixels, inwards; see --soft.",
    "--soft": "Use gray values of the mask: the darker, the closer the result is to PHOTO. Otherwise a mask is cut at "
    "half, and every pixel outside it is kept exactly.",
    "--save-mask": "Also write the mask as it is used, in gray: white is inpainted.",
    "--num-images": "How many results to write, with a number added to their name: out-1.png, out-2.png, ... "
    "The default is 1, or 8 with --mean, --contact-sheet or --uncertainty.",
    "--mean": "Write the mean of all results instead of each: less error, but less detail.",
    "--contact-sheet": "Also write all results side by side in one picture.",
    "--uncertainty": "Also write how much the results differ: the standard deviation of each pixel as a 16-bit gray "
    "PNG or TIFF file in which white is 1, and 0 where pixels are kept.",
    "--preview": "Write the part that is being sampled to this file about once a second. It stays if the command is "
    "stopped by Ctrl-C.",
    "--quality": "The quality of a JPEG or WebP file, from 1 to 100. The defaults are 95 and lossless.",
    "--mark-edited": "Say in the metadata that a model has changed the picture: the IPTC digital source type "
    "compositeWithTrainedAlgorithmicMedia.",
    "--dry-run": "Print the network evaluations, and about the seconds and the memory that the command would take, "
    "after one timed evaluation. Nothing is written; with --json -, the figures are printed as JSON.",
}


def option(flag: str, metavar: str | None = None, parser: Parser | None = None, help: str | None = None) -> Any:
    """Return an option whose flag is explicit; typer 0.27 would otherwise take the metavar for its name."""
    parse = None if parser is None else with_flag(flag, parser)
    return typer.Option(flag, metavar=metavar, parser=parse, help=help or _HELP[flag])


Mask = Annotated[Path | None, option("--mask", "FILE", parse_path)]
Boxes = Annotated[list[Any] | None, option("--box", "X,Y,W,H", parse_box)]
Color = Annotated[Any, option("--color", "#RRGGBB", parse_color)]
Tolerance = Annotated[int, option("--tolerance", "N", integer_parser(0, 255))]
Invert = Annotated[bool, option("--invert")]
FillHoles = Annotated[bool, option("--fill-holes")]
Grow = Annotated[int, option("--grow", "N", integer_parser(0, 10_000))]
Feather = Annotated[int, option("--feather", "N", integer_parser(0, 10_000))]
Soft = Annotated[bool, option("--soft")]
SaveMask = Annotated[Path | None, option("--save-mask", "FILE", parse_path)]
NumImages = Annotated[int | None, option("--num-images", "N", integer_parser(1, 1000))]
Mean = Annotated[bool, option("--mean")]
ContactSheet = Annotated[Path | None, option("--contact-sheet", "FILE", parse_path)]
Uncertainty = Annotated[Path | None, option("--uncertainty", "FILE", parse_path)]
Preview = Annotated[Path | None, option("--preview", "FILE", parse_path)]
Quality = Annotated[int | None, option("--quality", "N", integer_parser(1, 100))]
MarkEdited = Annotated[bool, option("--mark-edited")]
DryRun = Annotated[bool, option("--dry-run")]
