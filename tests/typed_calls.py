"""Calls whose types pyright must know; `tests/test_public_api.py` runs pyright on this file, nothing runs the file."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from typing import assert_type

import numpy as np
import torch
from PIL import Image

import adhere

pipe = adhere.load()
task = adhere.Inpaint("photo.jpg", "mask.png")
assert_type(pipe, adhere.ConstrainedPipeline)
assert_type(pipe(task), adhere.ConstrainedOutput)
assert_type(pipe(task, return_dict=True), adhere.ConstrainedOutput)
assert_type(pipe(task, "a cat", num_images_per_prompt=4, solver=adhere.DDNM()), adhere.ConstrainedOutput)
assert_type(pipe([task, task]).residual, list[float])
assert_type(pipe(task, return_dict=False), tuple[list[Image.Image] | np.ndarray | torch.Tensor])
D = adhere.NetworkDenoiser.from_alphas_cumprod(torch.nn.Identity(), torch.linspace(0.9, 0.1, 10))
assert_type(D, adhere.NetworkDenoiser)
constraint = adhere.Linear(adhere.Mask(torch.ones(1, 1, 8, 8)), torch.zeros(1, 3, 8, 8))
assert_type(adhere.sample(D, constraint, shape=(1, 3, 8, 8)), torch.Tensor)
pipe(task, num_inference_step=3)  # pyright: ignore[reportCallIssue]  # must be an error
pipe(task, num_inference_steps="3")  # pyright: ignore[reportArgumentType]  # must be an error
