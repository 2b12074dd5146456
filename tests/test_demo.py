"""`make demo` on a tiny Stable Diffusion."""

import numpy as np
from PIL import Image

import examples.demo
from benchmarks import held_out
from tests.tiny_latent_models import tiny_sd


def test_the_demo_shows_given_completed_and_original_emoji(tmp_path, monkeypatch):
    tiny_sd(tmp_path).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(examples.demo, "NUM_EMOJI", 2)
    examples.demo.complete_emoji(tmp_path, str(tmp_path / "model"))
    with Image.open(tmp_path / "emoji.png") as file:
        image = np.asarray(file)[::2, ::2]
    originals = np.concatenate(held_out.load(2)[1], axis=1)
    given, completed, original = (image[64 * i : 64 * i + 64, :128] for i in range(3))
    assert np.array_equal(original, originals)
    assert np.array_equal(completed[:, :32], originals[:, :32])  # known pixels, bit for bit
    assert not np.array_equal(completed, originals)
    assert (given[:, 32:64] == 200).all()
