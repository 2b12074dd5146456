"""The page of the gallery is the one that `python -m examples.gallery` writes, and its commands are valid."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from adhere.apps._examples import EXAMPLES as VERBS
from examples import gallery
from tests.apps.command import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")


def test_every_verb_has_an_example_and_a_picture():
    assert {shlex.split(example.command)[0] for example in gallery.EXAMPLES} == set(VERBS)
    pictures = [ROOT / "docs" / "images" / "gallery" / f"{example.name}.jpg" for example in gallery.EXAMPLES]
    assert sorted(pictures) == sorted(pictures[0].parent.iterdir())
    assert sum(path.stat().st_size for path in pictures) < 1.5e6


def test_the_page_is_that_of_the_examples():
    sections = [gallery.HEADER]
    for example in gallery.EXAMPLES:
        nfe = re.search(rf"{re.escape(example.caption)} (\d+ NFE)\.\n", PAGE)
        assert nfe, example.name
        sections.append(gallery.section(example, f"images/gallery/{example.name}.jpg", f"{nfe[1]}, 1.0 s"))
    assert "\n".join(sections) == PAGE


@pytest.mark.parametrize("name", [example.name for example in gallery.EXAMPLES if example.scale == 1])
def test_an_example_of_a_photograph_runs(folder, name, shared_model):
    """Its command is run with a tiny model and one noise level."""
    example = next(one for one in gallery.EXAMPLES if one.name == name)
    before, original = example.prepare()
    words = [*shlex.split(example.command), "--model", str(shared_model), "--force", "--steps", "1"]
    if name == "deblur":
        words += ["--solver", "ddnm"]
    result = run(words)
    assert result.exit_code == 0, result
    picture = gallery.shown(example, before, Image.open(example.output).convert("RGB"), original)
    assert picture.width > before[0].width and picture.height >= before[0].height


def test_the_inputs_are_the_same_each_time(folder):
    for example in gallery.EXAMPLES:
        first, second = (example.prepare()[0] for _ in range(2))
        assert [a.tobytes() for a in first] == [b.tobytes() for b in second], example.name
