"""Freeze the autoencoder and encode the training images for training.emoji.train.

    python -m training.emoji.latents --data data/emoji --run data/emoji/run_autoencoder

The script writes autoencoder/, in the layout of diffusers, and latents.npy, (V, N, 4, 16, 16) float16, into the run
folder. latents.npy holds V versions of each of N training images. Version 0 is the image itself. The others are
translated by up to `MAX_SHIFT_PIXELS`, and odd versions are mirrored if that does not change the meaning.

Before encoding, the latents are whitened: z' = W (z - m) with the mean m and the covariance C of the latents at all
positions and W = C^(-1/2). The channels then are uncorrelated and have unit variance. W is folded into quant_conv, its
inverse is folded into post_quant_conv, and scaling_factor is 1.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.emoji.autoencoder import new_autoencoder, shift, to_tensor
from training.emoji.data import Emoji
from training.loop import Training

NUM_VERSIONS = 2
MAX_SHIFT_PIXELS = 3
NOT_MIRRORED = re.compile(  # names of emoji whose mirror image has another meaning
    r"\b(left|right|east|west|clock|o.clock|button|musical|abc|text|letter|mirror)", re.IGNORECASE
)


@torch.no_grad()
def whiten(autoencoder: Any, images: Tensor) -> None:
    """Change an autoencoder in place such that the latents of the given images have zero mean and unit covariance.

    The reconstructions do not change.

    Args:
        autoencoder: The autoencoder.
        images: Images of shape (B, 3, 64, 64), in [-1, 1].
    """
    moments = torch.cat([autoencoder.encode(part).latent_dist.parameters for part in images.split(64)])
    mean, logvar = moments.permute(1, 0, 2, 3).flatten(1).double().chunk(2)  # (4, B * positions) each
    m, (eigenvalues, axes) = mean.mean(1), torch.linalg.eigh(torch.cov(mean))
    W, W_inverse = axes @ torch.diag(eigenvalues**-0.5) @ axes.T, axes @ torch.diag(eigenvalues**0.5) @ axes.T
    constant_logvar = (W.square() @ logvar.exp().mean(1)).log()  # log-variances do not mix linearly
    encode_conv, decode_conv = autoencoder.quant_conv, autoencoder.post_quant_conv
    channels = len(m)
    weight, bias = encode_conv.weight[:, :, 0, 0].double(), encode_conv.bias.double()
    encode_conv.weight.zero_()
    encode_conv.weight[:channels, :, 0, 0] = (W @ weight[:channels]).float()
    encode_conv.bias.copy_(torch.cat([W @ (bias[:channels] - m), constant_logvar]))
    weight = decode_conv.weight[:, :, 0, 0].double()
    decode_conv.bias.add_((weight @ m).float())
    decode_conv.weight[:, :, 0, 0] = (weight @ W_inverse).float()


def can_mirror(row: dict[str, str]) -> bool:
    """Return whether mirroring an emoji keeps its meaning.

    Args:
        row: Row of the manifest.

    Returns:
        True if the mirror image has the same meaning.
    """
    return row["group"] not in ("flags", "symbols") and not NOT_MIRRORED.search(row["name"])


def augment(emoji: Emoji, version: int) -> np.ndarray:
    """Return one version of every image, shape (N, 64, 64, 3), uint8; version 0 is the image itself."""
    if version == 0:
        return emoji.images
    rng = np.random.default_rng(version)
    shifted = [shift(image, *rng.integers(-MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, 2)) for image in emoji.images]
    mirrored = [version % 2 == 1 and can_mirror(row) for row in emoji.rows]
    return np.stack([x[:, ::-1] if flip else x for x, flip in zip(shifted, mirrored, strict=True)])


@torch.inference_mode()
def encode(autoencoder: Any, images: np.ndarray) -> np.ndarray:
    """Encode images.

    Args:
        autoencoder: The autoencoder.
        images: Images of shape (N, 64, 64, 3), uint8.

    Returns:
        The means of the latents, shape (N, 4, 16, 16), float16.
    """
    parts = np.array_split(images, max(1, len(images) // 64))
    return np.concatenate([autoencoder.encode(to_tensor(x)).latent_dist.mode().numpy() for x in parts]).astype(
        "float16"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    parser.add_argument(
        "--run", type=Path, default=Path("data/emoji/run_autoencoder"), help="run folder of training.emoji.autoencoder"
    )
    args = parser.parse_args()
    autoencoder: Any = Training(new_autoencoder(), args.run, lr=0).ema_network
    emoji = Emoji.load(args.data, "train")
    sample = np.random.default_rng(0).choice(len(emoji), 1024, p=emoji.probabilities)
    whiten(autoencoder, to_tensor(emoji.images[sample]))
    autoencoder.save_pretrained(args.run / "autoencoder")
    latents = np.stack([encode(autoencoder, augment(emoji, version)) for version in range(NUM_VERSIONS)])
    np.save(args.run / "latents.npy", latents)
    channels = latents.astype("float32").transpose(2, 0, 1, 3, 4).reshape(latents.shape[2], -1)
    print(f"latents {latents.shape}, mean {channels.mean(1).round(2)}, standard deviation {channels.std(1).round(2)}")


if __name__ == "__main__":
    main()
