"""Draw samples of adhere-emoji with diffusers: one row per prompt, then held-out images and their reconstructions.

python -m training.emoji.preview --model src/adhere/models/adhere-emoji --data data/emoji --out out/emoji.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from PIL import Image

from training.emoji.autoencoder import image_grid, reconstruct, to_tensor, to_uint8
from training.emoji.data import Emoji

PROMPTS = (
    "grinning face",
    "grinning face, 3d",
    "red heart",
    "flag japan",
    "cat face",
    "pizza",
    "tree, 3d",
    "blue car",
    "blue heart",  # this prompt and the next two name held-out bases
    "tiger",
    "carrot, flat",
    "",
)
MAGNIFICATION = 2


def load(folder: Path) -> Any:
    """Return the pipeline without a progress bar."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_samples(pipe: Any, prompt: str, count: int, guidance_scale: float, num_inference_steps: int) -> np.ndarray:
    """Return `count` samples with seed 0, shape (count, 64, 64, 3), uint8."""
    generator = torch.Generator().manual_seed(0)
    out = pipe(
        prompt,
        num_images_per_prompt=count,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        generator=generator,
        output_type="np",
    )
    return (out.images * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("src/adhere/models/adhere-emoji"), help="model folder")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    parser.add_argument("--out", type=Path, default=Path("out/emoji.png"), help="the image to write")
    parser.add_argument("--count", type=int, default=8, help="samples per prompt")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=30, help="number of inference steps")
    args = parser.parse_args()
    pipe = load(args.model)
    rows = [draw_samples(pipe, prompt, args.count, args.guidance_scale, args.steps) for prompt in PROMPTS]
    held_out = to_tensor(Emoji.load(args.data, "held_out").subset(args.count).images)
    rows += [to_uint8(held_out), to_uint8(reconstruct(pipe.vae, held_out))]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    grid = image_grid(rows)
    size = (MAGNIFICATION * grid.width, MAGNIFICATION * grid.height)
    grid.resize(size, Image.Resampling.NEAREST).save(args.out)
    print(f"{args.out}: rows", ", ".join(repr(prompt) for prompt in PROMPTS), "held out, reconstructed")


if __name__ == "__main__":
    main()
