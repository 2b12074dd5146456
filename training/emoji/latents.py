"""Freeze the autoencoder and encode the training pictures: what the network of adhere-emoji learns from.

    python -m training.emoji.latents --data data/emoji --run data/emoji/run_autoencoder

Writes autoencoder/ (a diffusers folder) and latents.npy, (V, N, 4, 16, 16) float16, into the run folder, for V versions
of each of N training pictures: as it is, then moved a little, every other one mirrored where that keeps its meaning.

Before that the latents are whitened: z' = W (z - m) with the mean m and covariance C of all latent cells and
W = C^(-1/2), so each channel has unit variance and none repeats another. W is folded into quant_conv and its inverse
into post_quant_conv, and scaling_factor is 1.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.emoji.autoencoder import new_autoencoder, shifted, to_tensor
from training.emoji.data import Emoji
from training.loop import Training

VERSIONS = 2
SHIFT = 3  # pixels
ONE_SIDED = re.compile(r"\b(left|right|east|west|clock|o.clock|button|musical|abc|text|letter|mirror)", re.IGNORECASE)


@torch.no_grad()
def whiten(autoencoder: Any, pictures: Tensor) -> None:
    """Change `autoencoder` so that the latents of `pictures`, (B, 3, 64, 64) in [-1, 1], have unit covariance."""
    moments = torch.cat([autoencoder.encode(part).latent_dist.parameters for part in pictures.split(64)])
    mean, logvar = moments.permute(1, 0, 2, 3).flatten(1).double().chunk(2)  # each (4, cells)
    m, (variance, axes) = mean.mean(1), torch.linalg.eigh(torch.cov(mean))
    w, w_inverse = axes @ torch.diag(variance**-0.5) @ axes.T, axes @ torch.diag(variance**0.5) @ axes.T
    spread = (w.square() @ logvar.exp().mean(1)).log()  # log-variances cannot be mixed: each channel keeps one
    first, second = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(m)
    weight, bias = first.weight[:, :, 0, 0].double(), first.bias.double()
    first.weight.zero_()
    first.weight[:channels, :, 0, 0] = (w @ weight[:channels]).float()
    first.bias.copy_(torch.cat([w @ (bias[:channels] - m), spread]))
    weight = second.weight[:, :, 0, 0].double()
    second.bias.add_((weight @ m).float())
    second.weight[:, :, 0, 0] = (weight @ w_inverse).float()


def mirrors(row: dict[str, str]) -> bool:
    """Whether a picture's mirror image means the same."""
    return row["group"] not in ("flags", "symbols") and not ONE_SIDED.search(row["name"])


def version(emoji: Emoji, number: int) -> np.ndarray:
    """Version `number` of every picture, (N, 64, 64, 3) uint8."""
    if number == 0:
        return emoji.pictures
    rng = np.random.default_rng(number)
    moved = [shifted(picture, *rng.integers(-SHIFT, SHIFT + 1, 2)) for picture in emoji.pictures]
    flip = [number % 2 == 1 and mirrors(row) for row in emoji.rows]
    return np.stack([x[:, ::-1] if mirrored else x for x, mirrored in zip(moved, flip, strict=True)])


@torch.inference_mode()
def encode(autoencoder: Any, pictures: np.ndarray) -> np.ndarray:
    """Means of the latents of (N, 64, 64, 3) uint8, as (N, 4, 16, 16) float16."""
    parts = np.array_split(pictures, max(1, len(pictures) // 64))
    return np.concatenate([autoencoder.encode(to_tensor(x)).latent_dist.mode().numpy() for x in parts]).astype(
        "float16"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run_autoencoder"))
    args = parser.parse_args()
    autoencoder: Any = Training(new_autoencoder(), args.run, lr=0).average
    emoji = Emoji.load(args.data, "train")
    some = np.random.default_rng(0).choice(len(emoji), 1024, p=emoji.weight)
    whiten(autoencoder, to_tensor(emoji.pictures[some]))
    autoencoder.save_pretrained(args.run / "autoencoder")
    latents = np.stack([encode(autoencoder, version(emoji, number)) for number in range(VERSIONS)])
    np.save(args.run / "latents.npy", latents)
    channels = latents.astype("float32").transpose(2, 0, 1, 3, 4).reshape(latents.shape[2], -1)
    print(f"{latents.shape} latents, mean {channels.mean(1).round(2)}, standard deviation {channels.std(1).round(2)}")


if __name__ == "__main__":
    main()
