"""Train adhere-photo, a fully convolutional pixel-space prior of photographs, on a CPU.

    python -m training.photo.fetch --to data/photo
    python -m training.photo.train --data data/photo --run data/photo/run --minutes 60
    python -m training.photo.train --data data/photo --run data/photo/run --minutes 20 --crop 128 --batch 4 --cooldown

The network is a `UNet2DModel`, with attention in the middle only, on 2x2 pixel-unshuffled RGB in [-1, 1]; unshuffling
is orthogonal, so white noise stays white and the diffusion is that of the pixels. It predicts v = alpha_t eps - sigma_t
x0 (Salimans & Ho, 2022) under the linear DDPM schedule. Noise levels are drawn where pictures are decided: log-SNR
lambda = log(alpha/sigma) from 0.7 N(mean, 1.4^2) + 0.3 U(-3.5, 4.6), mean 0.7 by default; how losses are weighted:
training.levels.

The run folder holds checkpoint.pt (resumed from when it exists), log.jsonl and model/, the averaged weights as a
diffusers folder. `--cooldown` brings the learning rate linearly to zero over the run: branch from a copy of the run
folder for it.
"""

import argparse
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image, ImageDraw, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_unshuffle
from torch.nn.utils import convert_conv2d_weight_memory_format

from training.levels import Levels
from training.loop import Training, courteous_threads


def new_network() -> UNet2DModel:
    """The network, freshly drawn: 12 = 3 colours of 2x2 pixels."""
    network = UNet2DModel(
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 96, 160, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        attention_head_dim=32,  # in the middle only, over 16x16 pixels a token: an outline goes on across a hole
        norm_num_groups=16,
    )
    return convert_conv2d_weight_memory_format(network, torch.channels_last)


def new_scheduler() -> DDIMScheduler:
    """The schedule of the noise, for training and for the model's folder."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=0,
        timestep_spacing="trailing",
    )


class Crops:
    """Random crops of the picture pyramids, augmented; a batch is (B, 3, crop, crop) in [-1, 1]."""

    def __init__(self, folder: Path, seed: int):
        files = sorted((folder / "pyramid").glob("*.png"))
        if not files:
            raise SystemExit(f"no pictures in {folder / 'pyramid'}: run training.photo.fetch first")
        self.pictures = [np.asarray(Image.open(file)) for file in files]
        sides = np.array([min(picture.shape[:2]) for picture in self.pictures])
        liking = {256: 1.0, 384: 2.0, 512: 2.0, 768: 1.0, 1024: 0.5, 1536: 0.3}  # what a screen shows, not bokeh
        weight = np.array([liking[int(side)] for side in sides])
        self.weight = weight / weight.sum()
        self.rng = np.random.default_rng(seed)

    def _one(self, size: int) -> np.ndarray:
        picture = self.pictures[self.rng.choice(len(self.pictures), p=self.weight)]
        height, width = picture.shape[:2]
        top, left = self.rng.integers(height - size + 1), self.rng.integers(width - size + 1)
        return picture[top : top + size, left : left + size]

    def _occluded(self, behind: np.ndarray, before: np.ndarray) -> np.ndarray:
        """One picture seen through a bar, an ellipse or a polygon cut from another, its edge sharp or soft.

        The photographs are landscapes and close-ups: without this the prior hardly knows an outline that goes on.
        """
        size = len(behind)
        mask = Image.new("L", (2 * size, 2 * size))
        angle, centre = self.rng.uniform(0, math.pi), self.rng.uniform(0.2, 1.8, 2) * size
        across = self.rng.uniform(0.1, 0.6) * size
        along = size * self.rng.choice([3, self.rng.uniform(0.2, 1.0)])
        corners = int(self.rng.choice([4, 40, int(self.rng.integers(3, 8))]))
        turn = 2 * math.pi * (np.arange(corners) + 0.5) / corners
        u, v = along * np.cos(turn), across * np.sin(turn)
        x = centre[0] + u * math.cos(angle) - v * math.sin(angle)
        y = centre[1] + u * math.sin(angle) + v * math.cos(angle)
        ImageDraw.Draw(mask).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(int(self.rng.choice([1, 1, 2, 6]))))
        weight = np.asarray(mask.resize((size, size), Image.Resampling.BOX), np.float32)[..., None] / 255
        return (weight * before + (1 - weight) * behind + 0.5).astype(np.uint8)

    def batch(self, count: int, size: int) -> Tensor:
        crops = []
        for _ in range(count):
            crop = self._one(size)
            if self.rng.random() < 0.8:  # skies and blurred backgrounds teach little: prefer the busier of two
                other = self._one(size)
                crop = other if other[..., 1].std() > crop[..., 1].std() else crop
            if self.rng.random() < 0.3:
                crop = self._occluded(crop, self._one(size))
            if self.rng.random() < 0.5:
                crop = crop[:, ::-1]
            if self.rng.random() < 0.3:
                crop = crop.transpose(1, 0, 2)
            if self.rng.random() < 0.2:
                crop = crop[..., self.rng.permutation(3)]
            crops.append(np.ascontiguousarray(crop))
        return self._recolour(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255)

    def _recolour(self, x: Tensor) -> Tensor:
        """Random gamma, contrast and saturation for half of the crops, in [0, 1] -> [-1, 1]."""
        draw = lambda low, high: torch.from_numpy(self.rng.uniform(low, high, (len(x), 1, 1, 1))).float()  # noqa: E731
        gray = x.mean(1, keepdim=True)
        mean = x.mean((1, 2, 3), keepdim=True)
        changed = gray + draw(0.2, 1.4) * (x - gray)
        changed = (mean + draw(0.7, 1.3) * (changed - mean) + draw(-0.1, 0.1)).clamp(0, 1) ** draw(0.75, 1.3)
        return torch.where(draw(0, 1) < 0.5, changed, x) * 2 - 1


def pull(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """v, unshuffled: (B, 12, H/2, W/2) for x_t (B, 3, H, W) and t (B,)."""
    return network(pixel_unshuffle(x_t, 2).contiguous(memory_format=torch.channels_last), t).sample


def denoising_psnr(network: nn.Module, levels: Levels) -> float:
    """PSNR at sigma = 25/255 of a picture that is neither trained on nor in a benchmark (motorcycle, 256x256)."""
    from skimage import data_dir

    picture = np.asarray(Image.open(Path(data_dir) / "motorcycle_left.png").convert("RGB"))[120:376, 200:456]
    x0 = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    t = int((levels.sigma / levels.alpha - 50 / 255).abs().argmin())
    alpha, sigma = levels.alpha[t], levels.sigma[t]
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        out = torch.nn.functional.pixel_shuffle(pull(network, x_t, torch.tensor([t])), 2)
    return float(10 * torch.log10(4 / mse_loss((alpha * x_t - sigma * out).clamp(-1, 1), x0)))


def save_folder(network: Any, folder: Path) -> None:
    """Write a diffusers folder with float16 weights, the layout of an unconditional DDIM pipeline."""
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    network.save_config(folder / "unet")
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    part = folder / "unet" / "part.safetensors"
    save_file(weights, part, metadata={"format": "pt"})
    os.replace(part, folder / "unet" / "diffusion_pytorch_model.safetensors")
    new_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": "0.30.0",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "octaves": 2,  # the pyramid's scales, so far as measured to help: adhere.core.octaves
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class PhotoTraining(Training):
    """Writes the diffusers folder with every checkpoint."""

    seen = "crops_seen"

    def save(self) -> None:
        super().save()
        save_folder(self.average, self.run / "model")


def v_losses(network: nn.Module, levels: Levels, x0: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of v for each crop, (B,)."""
    alpha, sigma = levels.alpha[t, None, None, None], levels.sigma[t, None, None, None]
    eps = torch.randn_like(x0)
    target = pixel_unshuffle(alpha * eps - sigma * x0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = pull(network, alpha * x0 + sigma * eps, t)
    return (out.float() - target).square().mean((1, 2, 3))


def train(args: argparse.Namespace) -> None:
    """Train until the time is over, or SIGTERM or SIGINT comes; then save."""
    torch.set_flush_denormal(True)
    training = PhotoTraining(new_network(), args.run, args.lr, args.ema)
    levels = Levels(new_scheduler().alphas_cumprod, args.log_snr, width=1.4, even=0.3, low=-3.5, high=4.6)
    crops = Crops(args.data, seed=training.step)
    torch.manual_seed(training.step)
    bins: dict[int, list[float]] = {}

    def loss(network: nn.Module, step: int) -> Tensor:
        x0, t = crops.batch(args.batch, args.crop), levels.draw(args.batch)
        losses = v_losses(network, levels, x0, t)
        for lam, one in zip(levels.lam[t].round().int().tolist(), losses.detach().tolist(), strict=True):
            bins.setdefault(lam, []).append(one)
        return levels.balanced(t, losses).mean()

    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    begin = said = saved = time.monotonic()
    most = torch.get_num_threads()
    while not stop and (elapsed := time.monotonic() - begin) < args.minutes * 60:
        if (threads := courteous_threads(most)) != torch.get_num_threads():
            torch.set_num_threads(threads)
        rate = args.lr * min(1, (training.step + 1) / 300) * (1 - elapsed / (args.minutes * 60) if args.cooldown else 1)
        training.take_step(loss, rate)
        training.pictures_seen += args.batch
        now = time.monotonic()
        if now - said > 120:
            row = dict(step=training.step, crops=training.pictures_seen, minutes=round((now - begin) / 60, 1), lr=rate)
            row["psnr"] = round(denoising_psnr(training.average, levels), 2)
            row["v_loss"] = {lam: round(sum(v) / len(v), 4) for lam, v in sorted(bins.items())}
            training.log(row)
            said = now
            bins.clear()
        if now - saved > 300:
            training.save()
            saved = now
    training.save()
    psnr = denoising_psnr(training.average, levels)
    print(f"step {training.step}, {training.pictures_seen} crops, PSNR {psnr:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/photo"))
    parser.add_argument("--run", type=Path, default=Path("data/photo/run"))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--crop", type=int, default=64, help="crop side in pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--log-snr", type=float, default=0.7, help="mean log-SNR of most noise levels")
    parser.add_argument("--ema", type=float, default=0.9995, help="decay of the weight average")
    parser.add_argument("--cooldown", action="store_true", help="learning rate falls linearly to zero over this run")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
