"""The pictures of examples/demo.py, with a tiny model."""

import subprocess
import sys

import numpy as np
from PIL import Image

import examples.demo
from benchmarks import held_out, masks, photo


def test_the_demo_shows_given_completed_and_original_emoji(text_model, tmp_path, monkeypatch):
    monkeypatch.setattr(examples.demo, "NUM_EMOJI", 2)
    examples.demo.complete_emoji(tmp_path, str(text_model))
    image = np.asarray(Image.open(tmp_path / "emoji.png"))[::2, ::2]
    originals = np.concatenate(held_out.load(2)[1], axis=1)
    given, completed, original = (image[64 * i : 64 * i + 64, :128] for i in range(3))
    assert np.array_equal(original, originals)
    assert np.array_equal(completed[:, :32], originals[:, :32])  # known pixels are kept bit for bit
    assert not np.array_equal(completed, originals)
    assert (given[:, 32:64] == 200).all()


def test_the_demo_reads_the_pictures_of_the_benchmarks():
    captions, pictures = examples.demo.held_out_emoji(examples.demo.NUM_EMOJI)
    items, expected = held_out.load(examples.demo.NUM_EMOJI)
    assert captions == [item.caption for item in items]
    assert np.array_equal(pictures, expected)
    for name, mask in examples.demo.PHOTOGRAPHS:
        assert np.array_equal(examples.demo.photograph(name), photo.photograph(name))
        assert np.array_equal(examples.demo.read_mask(mask), masks.load(mask))


def test_the_demo_imports_neither_benchmarks_nor_training():
    code = "import sys, examples.demo; sys.exit(bool({'benchmarks', 'training'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
