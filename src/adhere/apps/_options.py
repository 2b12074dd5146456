"""Options and arguments of the verbs: their flags, the parsers of their values, and their help."""

from pathlib import Path
from typing import Annotated, Any

import typer

from adhere.apps._parsers import (
    Parser,
    integer_parser,
    parse_aspect,
    parse_box,
    parse_color,
    parse_factor,
    parse_growth,
    parse_guidance_scale,
    parse_kernel,
    parse_lora,
    parse_noise,
    parse_path,
    parse_psf,
    parse_sigma,
    parse_text,
    with_flag,
)

_MAX_SEED = 2**63 - 1

_GROWTH_HELP = "The size of the part to add at the {} of PHOTO, in pixels or as a share of its {}, such as 25%."
_HELP = {
    "-o": "The picture to write. Its suffix decides the format: .png, .jpg, .webp, .tif or .bmp.",
    "--frame": "Which picture of PHOTO to use, if the file holds several, such as pages or the frames of an animation. "
    "The first is 0.",
    "--factor": "How many times the result is as wide and as high as PHOTO, from 1.5 to 8. The default is 4. The "
    "result has at most 50 megapixels.",
    "--kernel": "The kernel by which PHOTO was reduced from a larger picture: area (each pixel is the mean over its "
    "area; the default) or bicubic (with antialiasing).",
    "--hints": "A picture of the same size as PHOTO with strokes of color on a transparent layer. Its opaque pixels "
    "are hints. adhere-photo needs hints, since it does not know the colors of objects.",
    "--hint-noise": "The standard deviation of the colors from the hints, from 0 to 1.",
    "--psf": "The point spread function of the blur, in pixels: gaussian:SIGMA for a soft blur, disk:RADIUS for a lens "
    "out of focus, motion:LENGTH,ANGLE for a moved camera (the angle in degrees, counter-clockwise from the right), or "
    "a gray picture of a blurred point on black.",
    "--noise": "The standard deviation of the noise in PHOTO, from 0 to 1, where 1 is the difference of black and "
    "white. With 0, the result of upscale meets the values of PHOTO exactly.",
    "--sigma": "The standard deviation of the noise in PHOTO, from 0 to 1, where 1 is the difference of black and "
    "white. The default, auto, estimates it.",
    "--size": "The size of the result in pixels. The default is the size of the model's training pictures.",
    "--model": "The diffusion model: a folder in the diffusers layout, a .safetensors file, the id of a model on the "
    "Hugging Face hub, or the name of a shipped model. An unknown name lists the shipped models. The default is "
    "adhere-photo, the shipped model for photographs; style, layout, silhouette, and generate with a "
    "prompt, use adhere-emoji.",
    "--variant": "The variant of the weights in the model's folder, such as fp16 for files that end in "
    ".fp16.safetensors.",
    "--config": "For a .safetensors file: a folder in the diffusers layout, or the id of a model on the hub, with the "
    "configurations of its components. The default is that of the base model on the hub.",
    "--vae": "An autoencoder that replaces the model's own and has as many latent channels: a folder in the diffusers "
    "layout, the id of a model on the hub, or a .safetensors file.",
    "--lora": "A LoRA for the model (a .safetensors file) with its weight, such as lora.safetensors:0.8; the default "
    "weight is 1. May be given several times. Needs the package peft.",
    "--offload": "Keep each part of the model on the GPU only while it computes, which takes less GPU memory. Needs "
    "the package accelerate.",
    "--context": "The number of pixels around the inpainted region that are sampled with it. The default is three "
    "eighths of the side of the model's training pictures, and at least 96.",
    "--prompt": "A description of what the result shows. Only for models that read text.",
    "--negative-prompt": "A description of what the result does not show. Only for models that read text.",
    "--guidance-scale": "How closely the result follows the prompt. 1 switches guidance off; 3 to 8 are usual. The "
    "default depends on the model.",
    "--solver": "The method that imposes the constraint: moment_matching (12 network evaluations), "
    "moment_matching_fast (8), moment_matching_posterior (16, more varied results) or inexact_newton (the method of "
    "the paper, 220). An unknown name lists others. The default is moment_matching. Exceptions: denoise takes one "
    "evaluation, which gives a mean; colorize with a pixel-space model takes 8; generate uses plain (20); style and "
    "silhouette use moment_matching_loss (12).",
    "--steps": "The number of noise levels, from 1 to 1000. Time grows with it. The default depends on the solver.",
    "--seed": "The seed of the random numbers. The same seed gives the same result, another seed gives another result.",
    "--device": "The device that runs the network, such as cpu, cuda, cuda:1 or mps. The default is a GPU if there is "
    "one, and otherwise the CPU.",
    "--dtype": "The number format of the network: float32, float16 or bfloat16. The default is float32 on a CPU and "
    "float16 on a GPU.",
    "--compile": "Compile the network with torch.compile. This is faster for many pictures, but the first one takes a "
    "minute longer.",
    "--json": "Also write a report to this file, as JSON: the printed figures and all settings, with the seed. With -, "
    "the report goes to standard output, and the line with the figures to standard error.",
    "--force": "Replace files that exist already. Their permissions are kept, and symbolic links are followed.",
    "--mask": "A picture of the same size as PHOTO. White pixels are inpainted and black pixels are kept. Without a "
    "mask, a box and a color, the transparent part of PHOTO is inpainted, and the result is opaque.",
    "--box": "A rectangle to inpaint, in pixels: left, top, width and height. May be given several times, and together "
    "with a mask.",
    "--color": "Also inpaint pixels of this color.",
    "--tolerance": "The largest difference of a channel from the color of --color, from 0 to 255.",
    "--invert": "Exchange the inpainted and the kept pixels.",
    "--fill-holes": "Also inpaint pixels that are enclosed by inpainted ones.",
    "--grow": "Enlarge the inpainted region by this many pixels on all sides.",
    "--feather": "Give the inpainted region a soft edge, which extends inwards by this many pixels; see --soft.",
    "--soft": "Use the gray values of the mask: the darker a pixel is, the closer the result is to PHOTO. Without "
    "--soft, the mask is thresholded at one half, and every pixel outside it is kept exactly.",
    "--save-mask": "Also write the final mask, in gray: white is inpainted.",
    "--num-images": "The number of results to write. A number is added to their names: out-1.png, out-2.png, ... The "
    "default is 1, or 8 with --mean, --contact-sheet or --uncertainty.",
    "--mean": "Write the mean of all results instead of each result. The mean has a smaller error, but less detail.",
    "--contact-sheet": "Also write all results side by side in one picture.",
    "--uncertainty": "Also write the standard deviation of each pixel over all results, as a 16-bit gray PNG or TIFF "
    "file in which white is 1. It is 0 where pixels are kept.",
    "--preview": "Write the part that is being sampled to this file about once a second. It stays if the command is "
    "stopped by Ctrl-C.",
    "--quality": "The quality of a JPEG or WebP file, from 1 to 100. The defaults are 95 and lossless.",
    "--mark-edited": "Say in the metadata that a model has changed the picture: the IPTC digital source type "
    "compositeWithTrainedAlgorithmicMedia.",
    "--dry-run": "Print the number of network evaluations, and estimates of the seconds and the memory from one timed "
    "evaluation. Nothing is written. With --json -, the figures are printed as JSON.",
    "--left": _GROWTH_HELP.format("left", "width"),
    "--right": _GROWTH_HELP.format("right", "width"),
    "--top": _GROWTH_HELP.format("top", "height"),
    "--bottom": _GROWTH_HELP.format("bottom", "height"),
    "--aspect": "The aspect ratio of the result, instead of the sides. PHOTO is centered and grows in one direction.",
}
_LARGE_SIZE_HELP = "The size of the result in pixels, instead of --factor. It must have the aspect ratio of PHOTO."
_PHOTO_HELP = (
    "The picture to work on, of at most 250 megapixels: a JPEG, PNG, WebP, TIFF, BMP or GIF file, or - for standard "
    "input. At most 50 megapixels are sampled at once: for inpaint and outpaint, a masked part with its surroundings; "
    "for the other verbs, the whole result."
)


def option(
    flag: str, metavar: str | None = None, parser: Parser | None = None, *other_flags: str, help: str | None = None
) -> Any:
    """Return an option with an explicit flag; typer 0.27 would otherwise use the metavar as its name."""
    parse = None if parser is None else with_flag(flag, parser)
    return typer.Option(flag, *other_flags, metavar=metavar, parser=parse, help=help or _HELP[flag])


# Of all verbs, or of several.
Photo = Annotated[str, typer.Argument(parser=with_flag("photo", parse_text), metavar="PHOTO", help=_PHOTO_HELP)]
Output = Annotated[Path, option("-o", "FILE", parse_path, "--output")]
Frame = Annotated[int | None, option("--frame", "N", integer_parser(0, 99_999))]
Factor = Annotated[float | None, option("--factor", "X", parse_factor)]
Kernel = Annotated[str, option("--kernel", "NAME", parse_kernel)]
Hints = Annotated[Path | None, option("--hints", "FILE", parse_path)]
HintNoise = Annotated[float, option("--hint-noise", "X", parse_noise)]
Psf = Annotated[str, option("--psf", "PSF", parse_psf)]
Noise = Annotated[float, option("--noise", "X", parse_noise)]
Sigma = Annotated[float | None, option("--sigma", "X", parse_sigma)]
Size = Annotated[str | None, option("--size", "WIDTHxHEIGHT")]  # typer would read two arguments for a tuple
LargeSize = Annotated[str | None, option("--size", "WIDTHxHEIGHT", help=_LARGE_SIZE_HELP)]
Model = Annotated[str | None, option("--model", "MODEL", parse_text)]
Variant = Annotated[str | None, option("--variant", "NAME", parse_text)]
Config = Annotated[str | None, option("--config", "FOLDER", parse_text)]
Vae = Annotated[str | None, option("--vae", "FOLDER", parse_text)]
Loras = Annotated[list[Any] | None, option("--lora", "FILE[:WEIGHT]", parse_lora)]
Offload = Annotated[bool, option("--offload")]
Context = Annotated[int | None, option("--context", "N", integer_parser(1, 10_000))]
Prompt = Annotated[str | None, option("--prompt", "TEXT")]
NegativePrompt = Annotated[str | None, option("--negative-prompt", "TEXT")]
GuidanceScale = Annotated[float | None, option("--guidance-scale", "X", parse_guidance_scale)]
Solver = Annotated[str | None, option("--solver", "NAME")]
Steps = Annotated[int | None, option("--steps", "N", integer_parser(1, 1000))]
Seed = Annotated[int, option("--seed", "N", integer_parser(0, _MAX_SEED))]
Device = Annotated[str | None, option("--device", "NAME")]
Dtype = Annotated[str | None, option("--dtype", "NAME")]
Compile = Annotated[bool, option("--compile")]
JsonFile = Annotated[str | None, option("--json", "FILE", parse_text)]
Force = Annotated[bool, option("--force")]
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

# Of outpaint, style, layout and silhouette.
Left = Annotated[Any, option("--left", "N", parse_growth)]
Right = Annotated[Any, option("--right", "N", parse_growth)]
Top = Annotated[Any, option("--top", "N", parse_growth)]
Bottom = Annotated[Any, option("--bottom", "N", parse_growth)]
Aspect = Annotated[Any, option("--aspect", "W:H", parse_aspect)]
StyleReference = Annotated[
    Path, option("--reference", "FILE", parse_path, help="The picture whose colors and textures the result gets.")
]
LayoutReference = Annotated[
    Path, option("--reference", "FILE", parse_path, help="A picture, such as a sketch, with the coarse colors to use.")
]
_SHAPE_HELP = "The shape of the object: white on black, or opaque where the rest is transparent."
Shape = Annotated[Path, option("--reference", "FILE", parse_path, help=_SHAPE_HELP)]
