"""Train adhere-emoji's autoencoder: 64x64 RGB in [-1, 1] to 16x16x4 latents of unit variance and back.

    python -m training.emoji.autoencoder --data data/emoji --run data/emoji/run_autoencoder --minutes 45

Loss: L1 + L1 of the differences of neighbouring pixels (sharp edges) + L1 of the colour, brightness taken out, of each
4x4 patch (without it two of three colour axes were enough for a long while) + a distance of early EfficientNet-Lite0
features (patches that look alike) + a small KL divergence (latents that are smooth and survive a little noise) + the
distance of the latents' covariance from the identity (without it channels came in pairs that say the same).
The run folder holds checkpoint.pt, log.jsonl and recon.png: held-out pictures above their reconstructions.

Once training.emoji.latents has frozen it, `--decoder-of` goes on with the decoder alone, whose latents stay what the
network of adhere-emoji learns; that run folder also holds autoencoder/, the diffusers folder to export.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.features import FeatureDistance
from benchmarks.sheets import sheet
from training.emoji.data import SIDE, Emoji
from training.loop import Training

CHANNELS = 4
SHIFT = 4  # pixels


def new_autoencoder(blocks: tuple[int, ...] = (32, 64, 96), groups: int = 16) -> AutoencoderKL:
    """The autoencoder, freshly drawn: no attention, one residual block for each level of the encoder."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=blocks,  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * len(blocks),  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * len(blocks),  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=groups,
        sample_size=SIDE,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_pictures(x: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def shifted(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    """A picture moved by less than its side; what comes in is white."""
    out = np.full_like(picture, 255)
    height, width = picture.shape[:2]
    moved = picture[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    out[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = moved
    return out


def augmented(emoji: Emoji, count: int, rng: np.random.Generator, crop: int = SIDE) -> Tensor:
    """A batch for the autoencoder, which must know shapes and colours that no training picture has.

    Crops keep to the middle: the corners of nearly all pictures are white.
    """
    out = []
    for i in rng.choice(len(emoji), count, p=emoji.weight):
        picture = shifted(emoji.pictures[i], *rng.integers(-SHIFT, SHIFT + 1, 2))
        top, left = rng.integers((SIDE - crop) // 4, (SIDE - crop) * 3 // 4 + 1, 2)
        picture = picture[top : top + crop, left : left + crop]
        if rng.random() < 0.5:
            picture = picture[:, ::-1]
        if rng.random() < 0.25:
            picture = picture[..., rng.permutation(3)]
        out.append(picture)
    x = to_tensor(np.stack(out))
    change = torch.from_numpy(rng.uniform(-0.15, 0.15, (count, 3, 1, 1))).float()
    jitter = torch.from_numpy(rng.random((count, 1, 1, 1)) < 0.3)  # fades towards white and shifts hues
    return torch.where(jitter, (1 - (1 - x) * (1 + change)).clamp(-1, 1), x)


def loss_function(
    emoji: Emoji, batch: int, features: Callable[[Tensor, Tensor], Tensor], crop: int = SIDE
) -> Callable[[Any, int], Tensor]:
    """The loss above, as a function of the autoencoder and the step."""

    def loss(autoencoder: Any, step: int) -> Tensor:
        x = augmented(emoji, batch, np.random.default_rng(step), crop)
        generator = torch.Generator().manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16):
            moments = autoencoder.quant_conv(autoencoder.encoder(x)).float()
            mean, logvar = moments.chunk(2, dim=1)
            logvar = logvar.clamp(-12, 4)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
            out = autoencoder.decoder(autoencoder.post_quant_conv(z))
            alike = features(out.float(), x).mean()
        error = out.float() - x
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        hue = avg_pool2d(error - error.mean(1, keepdim=True), 4).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        whiteness = (torch.cov(mean.transpose(0, 1).flatten(1)) - torch.eye(mean.shape[1])).square().mean()
        return error.abs().mean() + 0.5 * edges + 2 * hue + 0.1 * alike + 1e-4 * kl + 0.05 * whiteness

    return loss


@torch.inference_mode()
def reconstruct(autoencoder: Any, x: Tensor) -> Tensor:
    """Through the mean of the latents, 64 at a time, in float32."""
    return torch.cat([autoencoder.decode(autoencoder.encode(part).latent_dist.mode()).sample for part in x.split(64)])


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Of each pair of pictures in [-1, 1], (B,), in dB."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--run", type=Path, default=Path("data/emoji/run_autoencoder"))
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=SIDE, help="side of the crops: 32 is four times as quick, at first")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--decoder-of", type=Path, help="run folder of the frozen autoencoder whose decoder to train")
    parser.add_argument("--cooldown", action="store_true", help="learning rate falls linearly to zero over this run")
    args = parser.parse_args()
    torch.manual_seed(0)
    autoencoder: Any = new_autoencoder()
    if args.decoder_of:
        autoencoder = AutoencoderKL.from_pretrained(args.decoder_of / "autoencoder").train()
        autoencoder.encoder.requires_grad_(False)
        autoencoder.quant_conv.requires_grad_(False)
    training = Training(autoencoder, args.run, args.lr, ema=0.998)
    held_out = to_tensor(Emoji.load(args.data, "held_out").thinned(96).pictures)

    def report(autoencoder: Any) -> dict[str, float]:
        out = reconstruct(autoencoder, held_out)
        pairs = [to_pictures(half) for x in (held_out, out) for half in x[::2].split(24)]
        sheet([pairs[i] for i in (0, 2, 1, 3)]).save(args.run / "recon.png")
        if args.decoder_of:
            autoencoder.save_pretrained(args.run / "autoencoder")
        return {"held_out_psnr": round(float(psnr(out, held_out).mean()), 2)}

    loss = loss_function(Emoji.load(args.data, "train"), args.batch, FeatureDistance(stages=3), args.crop)
    training.fit(loss, report, args.batch, args.minutes, cooldown=args.cooldown)


if __name__ == "__main__":
    main()
