"""pipe.compile(): the same pictures from the compiled modules, and one line where torch.compile does not work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adhere
from adhere import AdhereError
from adhere.pipelines import base
from tests.picture_files import noise
from tests.tiny_latent_models import tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_models import load

LATENT_FAMILIES: dict[str, Callable[[Path], Any]] = {
    "sd": tiny_sd,
    "sdxl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "ldm": lambda _: tiny_ldm(),
}


def upscaled(pipe: Any) -> np.ndarray:
    """Return an enlarged picture; the latent families encode and decode at each noise level."""
    generator = torch.Generator().manual_seed(0)
    task = adhere.Upscale(noise(4, 4, 3), 4)
    return pipe(task, num_inference_steps=1, generator=generator, output_type="np").images


def test_a_compiled_model_gives_the_same_picture_and_is_saved_as_before(model_with, tmp_path):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    pipe = load(model_with())
    expected = upscaled(pipe)
    assert pipe.compile(backend=backend) is None
    assert len(graphs) == 1  # the check
    assert np.allclose(upscaled(pipe), expected, atol=1e-5)
    assert len(graphs) > 1
    pipe.save_pretrained(tmp_path / "saved")
    assert np.array_equal(upscaled(load(tmp_path / "saved")), expected)


@pytest.mark.parametrize("name", LATENT_FAMILIES)
def test_the_network_the_encoder_and_the_decoder_are_compiled(name, tmp_path, monkeypatch):
    monkeypatch.setattr(base, "check_compilation", lambda device, options: None)
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append((module, options)))
    pipe: Any = adhere.from_pipe(LATENT_FAMILIES[name](tmp_path))
    pipe.compile(mode="max-autotune")
    expected = [getattr(pipe, pipe.network), pipe.vae.encoder, pipe.vae.decoder]
    assert all(module is other for (module, _), other in zip(compiled, expected, strict=True))
    assert all(options == {"mode": "max-autotune"} for _, options in compiled)


def test_one_line_where_nothing_can_be_compiled(model_with):
    def backend(*_: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand a long trace")

    pipe = load(model_with())
    with pytest.raises(
        AdhereError, match=r"torch.compile does not work here \(.*\): install a C\+\+ compiler"
    ) as error:
        pipe.compile(backend=backend)
    assert "\n" not in str(error.value)
    upscaled(pipe)  # as before


@pytest.mark.slow
def test_compiled_code_gives_the_same_picture(tmp_path):
    pipe: Any = adhere.from_pipe(tiny_sd(tmp_path))
    pipe.set_progress_bar_config(disable=True)
    expected = upscaled(pipe)
    pipe.compile()
    assert np.allclose(upscaled(pipe), expected, atol=1e-3)
