"""What holds for every verb: the format of the file, its quality and mark, and one line for bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image

from adhere.apps._examples import EXAMPLES
from tests.apps.command import LATENT_VERBS, error_line, run
from tests.picture_files import image_of

SOURCE_TYPE = b"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
FORMATS = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".bmp": "BMP"}
OWN_FILE = {  # the option or the argument that names the file to read
    **dict.fromkeys(("inpaint", "outpaint", "upscale", "denoise", "deblur", "colorize"), "photo"),
    **dict.fromkeys(LATENT_VERBS, "reference"),
}


@pytest.fixture
def succeeds(verb_args, text_model):
    """Return a function that runs a verb with a model that suits it."""

    def succeeds(verb: str, *flags: str, **options: str) -> None:
        model = {"model": str(text_model)} if verb in LATENT_VERBS else {}
        result = run(verb_args(verb, *flags, **model | options))
        assert result.exit_code == 0, result

    return succeeds


@pytest.mark.parametrize("verb", EXAMPLES)
def test_format_quality_and_mark(folder, succeeds, verb):
    """The suffix decides the format; a low quality gives a small file; the mark is written on request only."""
    succeeds(verb, "--mark-edited", o="default.jpg")
    succeeds(verb, o="small.JPG", quality="10")
    assert Path("small.JPG").stat().st_size < Path("default.jpg").stat().st_size
    for name in ("marked.webp", "marked.tif"):
        succeeds(verb, "--mark-edited", o=name)
    succeeds(verb, o="plain.bmp")
    for path in (path for path in folder.iterdir() if path.stem in ("default", "small", "marked", "plain")):
        with Image.open(path) as image:
            assert image.format == FORMATS[path.suffix.lower()]
            assert image.size == Image.open("plain.bmp").size
            assert (SOURCE_TYPE in image.info.get("xmp", b"")) == (path.stem in ("default", "marked"))


# --- bad input

BAD_OPTIONS = {  # an option's name and value -> a part of the message
    ("o", "out.gif"): "cannot write the suffix .gif; use one of .png",
    ("o", "out"): "without suffix",
    ("o", "missing/out.png"): "does not exist",
    ("o", "photo.png"): "--force",
    ("o", ""): "-o '': is empty",
    ("quality", "0"): "--quality '0': give a whole number from 1 to 100",
    ("quality", "101"): "--quality '101': give a whole number from 1 to 100",
    ("quality", "high"): "--quality 'high': give a whole number from 1 to 100",
    ("quality", "90"): "--quality 90: out.png is lossless; write a .jpg or .webp file",
    ("num_images", "0"): "--num-images '0': give a whole number from 1 to 1000",
    ("uncertainty", "deviation.jpg"): "--uncertainty deviation.jpg: write .png or .tif or .tiff",
    ("contact_sheet", "sheet.gif"): "sheet.gif",
    ("preview", "out.png"): "--preview out.png: is the name of another file",
    ("json", "out.png"): "--json out.png: is one of the pictures",
    ("model", "adhere-foto"): "no such folder or file",
    ("model", "model.gguf"): "is a GGUF file",
    ("model", "https://example.org/model"): "is a URL; download the model first",
    ("model", ""): "--model '': is empty",
    ("variant", "fp16"): "no weights of the variant 'fp16'",
    ("config", "folder"): "leave config out",
    ("vae", ""): "--vae '': is empty",
    ("lora", ""): "--lora '': is empty",
    ("lora", "missing.safetensors"): "--lora 'missing.safetensors': no such file",
    ("lora", "missing.safetensors:1e9"): "--lora 'missing.safetensors:1e9': ",
    ("lora", "photo.png"): "--lora 'photo.png': must be .safetensors",
    ("guidance_scale", "-1"): "--guidance-scale '-1': give a number above 0",
    ("solver", "euler"): "'euler'",
    ("steps", "0"): "--steps '0': give a whole number from 1 to 1000",
    ("seed", "-1"): "--seed '-1': give a whole number from 0",
    ("device", "gpu"): "--device 'gpu': cannot be used here",
    ("dtype", "int8"): "--dtype 'int8': choose one of float32, float16, bfloat16",
}


@pytest.mark.parametrize("verb", EXAMPLES)
def test_bad_options_of_every_verb(folder, verb_args, verb):
    Path("model.gguf").write_bytes(b"GGUF")
    lines = {one: error_line(verb_args(verb, **{one[0]: one[1]}), folder) for one in BAD_OPTIONS}
    assert {one: line for one, line in lines.items() if BAD_OPTIONS[one] not in line} == {}


@pytest.mark.parametrize("verb", EXAMPLES)
def test_bad_flags_of_every_verb(folder, verb_args, verb):
    for flags, message in (
        (["--offload"], "--offload: is for a GPU"),
        (["--mark-edited", "-o", "out.bmp"], "BMP holds no such mark"),
        (["--mean", "--num-images", "1"], "--num-images 1: --mean needs at least 2 pictures"),
        (["--dry-run", "--json", "report.json"], "--json report.json: a dry run writes no file; write --json -"),
        (["--unknown"], "No such option: --unknown"),
        (["one-more.png"], "(one-more.png)"),
    ):
        assert message in error_line(verb_args(verb, *flags, **({"o": None} if "-o" in flags else {})), folder), flags


@pytest.mark.parametrize("verb", OWN_FILE)
def test_bad_files_of_every_verb(folder, verb_args, verb):
    Path("text.png").write_bytes(b"no picture at all")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:-200])
    Path("empty.png").write_bytes(b"")
    Path("a-folder").mkdir()
    for name, message in (
        ("empty.png", "empty.png: is empty (0 bytes); copy or export it again"),
        ("missing.png", "no such file"),
        ("text.png", "not an image"),
        ("cut.png", "damaged or cut short"),
        ("a-folder", "is a folder"),
    ):
        arguments = verb_args(verb)
        arguments[arguments.index("photo.png" if OWN_FILE[verb] == "photo" else "mask.png")] = name
        line = error_line(arguments, folder)
        assert name in line and message in line


@pytest.mark.parametrize("verb", LATENT_VERBS)
def test_a_model_of_pixels_is_refused_where_it_cannot_do_the_task(folder, verb_args, verb):
    line = error_line(verb_args(verb), folder)
    assert f"{verb} needs a latent model, not one of pixels: give --model, such as adhere-emoji" in line


@pytest.mark.parametrize(("verb", "prompt"), [*((verb, None) for verb in LATENT_VERBS), ("generate", "a heart")])
def test_the_default_model_of_drawings_is_adhere_emoji(folder, verb_args, verb, prompt):
    result = run(verb_args(verb, model=None, size="64x64", prompt=prompt, json="report.json"))
    assert result.exit_code == 0, result.stderr
    assert "adhere: note: the model is adhere-emoji, which draws emoji; --model gives another\n" in result.stderr
    assert json.loads(Path("report.json").read_text())["model"] == "adhere-emoji"


@pytest.mark.parametrize("verb", [verb for verb in EXAMPLES if OWN_FILE.get(verb) == "photo"])
def test_a_picture_of_one_pixel_is_worked_on_or_refused_in_one_line(folder, verb_args, verb):
    image_of("RGB", 1, 1).save("photo.png")
    Image.new("L", (1, 1), 255).save("mask.png")
    hints = folder.parent / "hints.png"
    image_of("RGBA", 1, 1).save(hints)
    result = run(verb_args(verb))
    if result.exit_code:
        error_line(verb_args(verb), folder)
    else:
        with Image.open("out.png") as image:
            assert min(image.size) >= 1
