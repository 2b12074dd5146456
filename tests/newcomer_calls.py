"""What newcomers write by mistake, run without the type checks of the test run, which would answer first.

    python -m tests.newcomer_calls MODEL_FOLDER

prints, as JSON, for each call the name and the message of its exception, or 'works' and what it returned.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import adhere
from tests.picture_files import hole, noise

URL = "https://example.org/photo.jpg"


def calls(model: str) -> dict[str, Callable[[], object]]:
    """Return the calls by name; the current folder and the home folder become that of the model."""
    folder = Path(model).parent
    os.chdir(folder)
    os.environ["HOME"] = str(folder)
    pipe: Any = adhere.load(model)
    pipe.set_progress_bar_config(disable=True)
    picture, mask = noise(16, 16, 3), hole(16, 16)
    Image.fromarray(picture).save(folder / "photo.png")
    Image.fromarray(mask).save(folder / "mask.png")
    task = adhere.Inpaint(picture, mask)
    any_adhere: Any = adhere
    schedule = pipe.schedule()

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x

    def sample(**options: Any) -> torch.Tensor:
        D = adhere.NetworkDenoiser(network, schedule)
        y = torch.zeros(2, 3, 8, 8)
        return any_adhere.sample(D, adhere.Linear(adhere.Mask(torch.ones(1, 1, 8, 8)), y), shape=y.shape, **options)

    return {
        "pipe(path, path)": lambda: pipe("photo.png", "mask.png"),
        "pipe(image, mask)": lambda: pipe(Image.fromarray(picture), Image.fromarray(mask)),
        "pipe(array, mask)": lambda: pipe(picture, mask),
        "pipe([])": lambda: pipe([]),
        "pipe()": lambda: pipe(),
        "pipe(constraint)": lambda: pipe(adhere.Loss(lambda x: x.square().mean((1, 2, 3)))),
        "pipe(class)": lambda: pipe(adhere.Generate),
        "sample(network)": lambda: any_adhere.sample(network, adhere.Linear(adhere.Identity(), torch.zeros(1)), (1,)),
        "schedule=scheduler": lambda: any_adhere.NetworkDenoiser(network, pipe.scheduler),
        "pipe(task, mask)": lambda: pipe(task, mask),
        "pipe(image=)": lambda: pipe(image=picture, mask_image=mask),
        "pipe(mask_image=)": lambda: pipe(task, mask_image=mask),
        "pipe(mask=)": lambda: pipe(task, mask=mask),
        "pipe(strength=)": lambda: pipe(task, strength=0.8),
        "pipe(seed=)": lambda: pipe(task, seed=3),
        "pipe(batch_size=)": lambda: pipe(task, batch_size=3),
        "pipe(steps=)": lambda: pipe(task, steps=3),
        "pipe(size=)": lambda: pipe(task, size=64),
        "pipe(num_inference_step=)": lambda: pipe(task, num_inference_step=3),
        "generator=3": lambda: pipe(task, generator=3),
        "generator=[3]": lambda: pipe(task, generator=[3]),
        "num_inference_steps=2.0": lambda: pipe(task, num_inference_steps=2.0),
        "num_images_per_prompt=2.0": lambda: pipe(task, num_images_per_prompt=2.0),
        "solver=class": lambda: pipe(task, solver=adhere.DDNM),
        "solver=Sampler class": lambda: pipe(task, solver=adhere.Sampler),
        "latents=array": lambda: pipe(adhere.Generate((8, 8)), latents=np.zeros((1, 3, 8, 8), np.float32)),
        "guidance_scale=0": lambda: pipe(task, guidance_scale=0),
        "Upscale factor": lambda: any_adhere.Upscale(picture, "2"),
        "Upscale scale=": lambda: any_adhere.Upscale(picture, scale=2),
        "Generate(int)": lambda: any_adhere.Generate(512).size,
        "Generate(str)": lambda: any_adhere.Generate("512"),
        "Generate(float)": lambda: any_adhere.Generate((512.0, 512)),
        "Generate(512, 512)": lambda: any_adhere.Generate(512, 512),
        "Generate(height=)": lambda: any_adhere.Generate(height=512, width=512),
        "Generate(prompt=)": lambda: any_adhere.Generate(prompt="a cat"),
        "Generate run": lambda: pipe(any_adhere.Generate(16), num_inference_steps=1).images[0].size,
        "Inpaint mask_image=": lambda: any_adhere.Inpaint(picture, mask_image=mask),
        "Inpaint prompt=": lambda: any_adhere.Inpaint(picture, mask, prompt="a cat"),
        "Inpaint strength=": lambda: any_adhere.Inpaint(picture, mask, strength=0.5),
        "Custom(function)": lambda: any_adhere.Custom(lambda x: x.mean()),
        "Custom size": lambda: any_adhere.Custom(adhere.Loss(lambda x: x.mean((1, 2, 3))), size=64).size,
        "Restore(y, function)": lambda: any_adhere.Restore(torch.zeros(1, 3, 8, 8), lambda x: x),
        "Restore image=": lambda: any_adhere.Restore(image=picture, operator=adhere.Identity()),
        "NetworkDenoiser(prediction=)": lambda: any_adhere.NetworkDenoiser(network, schedule, prediction="eps"),
        "NetworkDenoiser(prediction_type='eps')": lambda: any_adhere.NetworkDenoiser(network, schedule, "eps"),
        "from_alphas_cumprod(prediction=)": lambda: any_adhere.NetworkDenoiser.from_alphas_cumprod(
            network, pipe.scheduler.alphas_cumprod, prediction="eps"
        ),
        "from_alphas_cumprod(prediction_type='eps')": lambda: any_adhere.NetworkDenoiser.from_alphas_cumprod(
            network, pipe.scheduler.alphas_cumprod, prediction_type="eps"
        ),
        "sample(generator=3)": lambda: sample(generator=3),
        "sample(solver=class)": lambda: sample(solver=adhere.DDNM),
        "load(torch_dtype='float16')": lambda: str(any_adhere.load(model, torch_dtype="float16").dtype),
        "load(dtype='bfloat16')": lambda: str(any_adhere.load(model, dtype="bfloat16").dtype),
        "load(torch_dtype='float17')": lambda: any_adhere.load(model, torch_dtype="float17"),
        "load(pipeline)": lambda: any_adhere.load(pipe),
        "load('~/model')": lambda: type(any_adhere.load(f"~/{Path(model).name}")).__name__,
        "from_pipe(path)": lambda: any_adhere.from_pipe(model),
        "picture=URL": lambda: adhere.Inpaint(URL, mask),
        "mask=URL": lambda: adhere.Inpaint(picture, URL),
        "Upscale(URL)": lambda: adhere.Upscale(URL),
        "picture=~/x.png": lambda: adhere.Inpaint("~/photo.png", "~/mask.png").picture.size,
        "picture=Path(~/x.png)": lambda: adhere.Upscale(Path("~/photo.png")).picture.size,
        "attribute of adhere": lambda: any_adhere.inpaint,
    }


def outcome(call: Callable[[], object]) -> tuple[str, str]:
    """Return (exception, message), or ('works', result); an `InvalidInput` is an AdhereError, too."""
    try:
        return "works", str(call())
    except Exception as error:
        return type(error).__name__, str(error)


if __name__ == "__main__":
    print(json.dumps({name: outcome(call) for name, call in calls(sys.argv[1]).items()}))
