"""Train the autoencoder of adhere-emoji: 64x64 RGB in [-1, 1] to 16x16x4 latents of unit variance and back.

    python -m training.emoji.autoencoder --data data/emoji --run data/emoji/run_autoencoder --minutes 45

The loss is a weighted sum of:

- the L1 error;
- the L1 error of the differences of neighboring pixels, for sharp edges;
- the L1 error of the color of each 4x4 patch without its brightness; without this term, the latents represented only
  two of the three color axes for a long time;
- a distance of early EfficientNet-Lite0 features, for similar textures;
- a small KL divergence, for smooth latents that tolerate a little noise;
- the squared distance of the covariance of the latents from the identity; without this term, pairs of channels were
  redundant.

The run folder holds checkpoint.pt, log.jsonl and reconstructions.png: held-out images above their reconstructions.

`--decoder-of` continues with the decoder alone after training.emoji.latents has frozen the autoencoder. The encoder
does not change, so the latents that the network of adhere-emoji is trained on stay valid. The run folder then also
holds autoencoder/, the folder to export, in the layout of diffusers.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.utils.pil_utils import make_image_grid
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from adhere.metrics import FeatureDistance, psnr
from training.emoji.data import SIZE_PIXELS, Emoji
from training.loop import Training

LATENT_CHANNELS = 4
MAX_SHIFT_PIXELS = 4


def new_autoencoder(channels: tuple[int, ...] = (32, 64, 96), norm_groups: int = 16) -> AutoencoderKL:
    """Return the autoencoder with random weights.

    It has no attention and, in the encoder, one residual block per resolution.

    Args:
        channels: Channels at each resolution, from the finest.
        norm_groups: Groups of the group normalization.

    Returns:
        The autoencoder.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(channels),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=norm_groups,
        sample_size=SIZE_PIXELS,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert images to the range of the network: (B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_uint8(x: Tensor) -> np.ndarray:
    """Convert a tensor to images: (B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def image_grid(rows: Sequence[np.ndarray]) -> Image.Image:
    """Join images into one.

    Args:
        rows: The images of each row, shape (N, H, W, 3), uint8.

    Returns:
        The image of all rows.
    """
    return make_image_grid([Image.fromarray(image) for row in rows for image in row], len(rows), len(rows[0]))


def shift(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """Translate an image and fill the border with white.

    Args:
        image: Image of shape (H, W, 3), uint8.
        down: Translation in pixels, in (-H, H).
        right: Translation in pixels, in (-W, W).

    Returns:
        The translated image of shape (H, W, 3).
    """
    out = np.full_like(image, 255)
    height, width = image.shape[:2]
    visible = image[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    out[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = visible
    return out


def augmented_batch(emoji: Emoji, count: int, rng: np.random.Generator, crop: int = SIZE_PIXELS) -> Tensor:
    """Draw a batch with shapes and colors that no training image has.

    Crops stay near the center, because the corners of nearly all images are white.

    Args:
        emoji: The training images.
        count: Number of images B.
        rng: The generator of the random numbers.
        crop: Height and width of the crops in pixels.

    Returns:
        Crops of shape (B, 3, crop, crop), in [-1, 1].
    """
    crops = []
    for i in rng.choice(len(emoji), count, p=emoji.probabilities):
        image = shift(emoji.images[i], *rng.integers(-MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, 2))
        top, left = rng.integers((SIZE_PIXELS - crop) // 4, (SIZE_PIXELS - crop) * 3 // 4 + 1, 2)
        image = image[top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        if rng.random() < 0.25:
            image = image[..., rng.permutation(3)]
        crops.append(image)
    x = to_tensor(np.stack(crops))
    change = torch.from_numpy(rng.uniform(-0.15, 0.15, (count, 3, 1, 1))).float()
    is_changed = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.3)
    changed = (1 - (1 - x) * (1 + change)).clamp(-1, 1)  # scales the distance to white in each color channel
    return torch.where(is_changed, changed, x)


def loss_function(
    emoji: Emoji, batch_size: int, feature_distance: Callable[[Tensor, Tensor], Tensor], crop: int = SIZE_PIXELS
) -> Callable[[Any, int], Tensor]:
    """Return the loss that the docstring of this module describes.

    Args:
        emoji: The training images.
        batch_size: Images per step.
        feature_distance: Distance of two batches of shape (B, 3, crop, crop) in [-1, 1]; returns shape (B,).
        crop: Height and width of the crops in pixels.

    Returns:
        A function of (autoencoder, seed) that returns a scalar loss.
    """

    def loss(autoencoder: Any, seed: int) -> Tensor:
        x = augmented_batch(emoji, batch_size, np.random.default_rng(seed), crop)
        generator = torch.Generator().manual_seed(seed)
        with torch.autocast("cpu", torch.bfloat16):
            moments = autoencoder.quant_conv(autoencoder.encoder(x)).float()
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
            out = autoencoder.decoder(autoencoder.post_quant_conv(z))
            perceptual = feature_distance(out.float(), x).mean()
        error = out.float() - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        color = avg_pool2d(error - error.mean(1, keepdim=True), 4).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        covariance = (torch.cov(mean.transpose(0, 1).flatten(1)) - torch.eye(mean.shape[1])).square().mean()
        return error.abs().mean() + 0.5 * edges + 2 * color + 0.1 * perceptual + 1e-4 * kl + 0.05 * covariance

    return loss


@torch.inference_mode()
def reconstruct(autoencoder: Any, x: Tensor) -> Tensor:
    """Encode images and decode the means of their latents, 64 at a time.

    Args:
        autoencoder: The autoencoder.
        x: Images of shape (B, 3, 64, 64), float32, in [-1, 1].

    Returns:
        The reconstructions, of the same shape.
    """
    return torch.cat([autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample for part in x.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="folder that training.emoji.fetch wrote")
    parser.add_argument(
        "--run", type=Path, default=Path("data/emoji/run_autoencoder"), help="folder of the training run"
    )
    parser.add_argument("--minutes", type=float, default=45, help="duration of the training")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument(
        "--crop",
        type=int,
        default=SIZE_PIXELS,
        help="height and width of the crops in pixels; 32 is four times as fast as 64, for the start of a training",
    )
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate after the warm-up")
    parser.add_argument("--decoder-of", type=Path, help="train only the decoder of the frozen autoencoder of this run")
    parser.add_argument("--cooldown", action="store_true", help="decrease the learning rate linearly to zero")
    args = parser.parse_args()
    torch.manual_seed(0)
    autoencoder: Any = new_autoencoder()
    if args.decoder_of:
        autoencoder = AutoencoderKL.from_pretrained(args.decoder_of / "autoencoder").train()
        autoencoder.encoder.requires_grad_(False)
        autoencoder.quant_conv.requires_grad_(False)
    training = Training(autoencoder, args.run, args.lr, ema_decay=0.998)
    held_out = to_tensor(Emoji.load(args.data, "held_out").subset(96).images)

    def report(autoencoder: Any) -> dict[str, float]:
        out = reconstruct(autoencoder, held_out)
        originals, reconstructions = (to_uint8(x[::2]) for x in (held_out, out))
        rows = [originals[:24], reconstructions[:24], originals[24:], reconstructions[24:]]
        image_grid(rows).save(args.run / "reconstructions.png")
        if args.decoder_of:
            autoencoder.save_pretrained(args.run / "autoencoder")
        return {"held_out_psnr_db": round(float(psnr(out, held_out).mean()), 2)}

    loss = loss_function(Emoji.load(args.data, "train"), args.batch, FeatureDistance(stages=3), args.crop)
    training.fit(loss, report, args.batch, args.minutes, cooldown=args.cooldown)


if __name__ == "__main__":
    main()
