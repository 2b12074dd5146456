"""Draw what adhere-emoji draws, by plain diffusers: a row of samples for each prompt, then reconstructions.

python -m training.emoji.preview --model src/adhere/models/adhere-emoji --data data/emoji --out out/emoji.png
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

from benchmarks.sheets import sheet
from training.emoji.autoencoder import reconstruct, to_pictures, to_tensor
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
    "blue heart",  # held out, as are the next two
    "tiger",
    "carrot, flat",
    "",
)


def load(folder: Path) -> Any:
    """The pipeline, quiet."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def samples(pipe: Any, prompt: str, count: int, guidance_scale: float, steps: int) -> np.ndarray:
    """(count, 64, 64, 3) uint8, from seed 0."""
    generator = torch.Generator().manual_seed(0)
    out = pipe(
        prompt,
        num_images_per_prompt=count,
        guidance_scale=guidance_scale,
        num_inference_steps=steps,
        generator=generator,
        output_type="np",
    )
    return (out.images * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("src/adhere/models/adhere-emoji"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--out", type=Path, default=Path("out/emoji.png"))
    parser.add_argument("--count", type=int, default=8, help="samples of each prompt")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    pipe = load(args.model)
    rows = [samples(pipe, prompt, args.count, args.guidance_scale, args.steps) for prompt in PROMPTS]
    held_out = to_tensor(Emoji.load(args.data, "held_out").thinned(args.count).pictures)
    rows += [to_pictures(held_out), to_pictures(reconstruct(pipe.vae, held_out))]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(rows, scale=2).save(args.out)
    print(args.out, "rows:", ", ".join(repr(prompt) for prompt in PROMPTS), "held-out, reconstructed")


if __name__ == "__main__":
    main()
