"""Picture files through the command: pages, bits, metadata, and the notes about what is left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.apps.command import error_line, run
from tests.picture_files import hole, image_of


def scan(path: str, mode: str = "RGB") -> list[np.ndarray]:
    """Write a TIFF file of three pages of 24 x 31 pixels, and return them."""
    pages = [Image.fromarray(np.roll(np.asarray(image_of(mode)), i, axis=0)) for i in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="group4" if mode == "1" else None)
    return [np.asarray(page) for page in pages]


def test_a_file_of_several_pages_is_not_replaced_by_one_page(folder, inpaint_args):
    scan("scan.tif")
    message = "scan.tif: holds 3 pictures, and all but one would be lost; choose another name"
    assert message in error_line(inpaint_args("scan.tif", "--force", o="scan.tif"), folder)
    assert message in error_line(inpaint_args("scan.tif", "--force", o="scan.tif", frame="1"), folder)


@pytest.mark.parametrize("verb", ["inpaint", "upscale", "denoise"])
def test_a_page_must_be_chosen(folder, verb_args, verb):
    pages = scan("photo.png")  # Pillow reads it by its contents
    assert "photo.png: holds 3 pictures; choose one of PHOTO with --frame N" in error_line(verb_args(verb), folder)
    assert "photo.png: has no frame 3; give 0 to 2" in error_line(verb_args(verb, frame="3"), folder)
    assert "--frame '-1'" in error_line(verb_args(verb, frame="-1"), folder)
    result = run(verb_args(verb, frame="1"))
    assert (result.exit_code, result.stderr) == (0, "")
    out = np.asarray(Image.open("out.png"))
    if verb == "inpaint":
        assert np.array_equal(out[~hole()], pages[1][~hole()])
    elif verb == "denoise":
        assert out.shape == pages[1].shape
    else:
        assert np.array_equal(out.reshape(24, 2, 31, 2, 3).mean((1, 3)), pages[1])


def test_a_page_of_one_bit_stays_one_bit_and_compressed(folder, inpaint_args):
    image_of("1").save("page.tif", compression="group4", dpi=(300, 300))
    result = run(inpaint_args("page.tif", o="out.tif"))
    assert (result.exit_code, result.stderr) == (0, "")
    with Image.open("page.tif") as page, Image.open("out.tif") as out:
        assert (out.mode, out.info["compression"], out.info["dpi"]) == ("1", "group4", (300, 300))
        assert np.array_equal(np.asarray(out)[~hole()], np.asarray(page)[~hole()])


def test_sixteen_bits_stay_sixteen_bits(folder, verb_args):
    image_of("I;16").save("photo.png")
    for verb in ("inpaint", "upscale", "denoise"):
        assert run(verb_args(verb, "--force")).exit_code == 0
        assert np.asarray(Image.open("out.png")).dtype == np.uint16


def test_what_cannot_be_kept_is_named_in_one_line(folder, inpaint_args):
    image_of("RGB").save("photo.jpg", comment="a comment", dpi=(300, 300))
    result = run(inpaint_args("photo.jpg", o="out.webp"))
    assert result.exit_code == 0
    assert result.stderr == "adhere: note: not copied to the WEBP file: resolution (dpi), comment\n"
    result = run(inpaint_args("photo.jpg", o="out.png"))
    assert (result.exit_code, result.stderr) == (0, "")
    with Image.open("out.png") as out:
        assert out.info["Comment"] == "a comment"
        assert [round(value) for value in out.info["dpi"]] == [300, 300]


def test_the_hint_for_a_mask_with_soft_edges(folder, inpaint_args):
    mask = hole().astype(np.uint8) * 255
    mask[2, 2] = 120
    Image.fromarray(mask).save("mask.png")
    result = run(inpaint_args())
    assert result.exit_code == 0
    assert result.stderr.startswith("adhere: note: the mask has soft edges")
    assert result.stderr.count("\n") == 1


def test_a_raw_photograph_is_refused(folder, inpaint_args):
    image_of("RGB").save("shot.tif")
    Path("shot.tif").rename("shot.nef")
    assert "shot.nef: is a raw file" in error_line(inpaint_args("shot.nef"), folder)
