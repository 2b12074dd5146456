"""Train adhere-photo, a fully convolutional pixel-space diffusion model of photographs, on a CPU.

    python -m training.photo.fetch --to data/photo
    python -m training.photo.train --data data/photo --run data/photo/run --minutes 60
    python -m training.photo.train --data data/photo --run data/photo/run --minutes 20 --crop 128 --batch 4 --cooldown
    python -m training.photo.train --run data/photo/high --start src/adhere/models/adhere-photo/unet --log-snr -0.8

The network is a `UNet2DModel` with attention in the middle block only. Its input is RGB in [-1, 1], pixel-unshuffled
2x2 to 12 channels. Pixel unshuffling is orthogonal, so white noise stays white and the diffusion process equals that of
the pixels. The network predicts v = alpha_t eps - sigma_t x0 (Salimans & Ho, "Progressive Distillation for Fast
Sampling of Diffusion Models", 2022) under the linear DDPM schedule.

The log-SNR lambda = log(alpha_t / sigma_t) of a training example follows 0.7 N(mean, std^2) + 0.3 U(-3.5, 4.6). The
mean is 0.7 by default, near the noise levels at which the content of an image is determined, and std is 1.4. The module
training.loss_weighting describes the weights of the losses.

The run folder holds checkpoint.pt, log.jsonl and model/, the averaged weights in the layout of diffusers. A run resumes
from its checkpoint. `--cooldown` decreases the learning rate linearly to zero over the run; use a copy of the run
folder for it if the training is to continue afterwards at the full rate.
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
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from torch.nn.utils import convert_conv2d_weight_memory_format

from adhere.metrics import psnr
from training.loop import Training, available_threads
from training.loss_weighting import LossWeighting

WARMUP_STEPS = 300
LOG_INTERVAL_SECONDS = 120
SAVE_INTERVAL_SECONDS = 300
SCALE_WEIGHTS = {  # short side in pixels: relative probability; larger scales are mostly out-of-focus background
    256: 1.0,
    384: 2.0,
    512: 2.0,
    768: 1.0,
    1024: 0.5,
    1536: 0.3,
}
PYRAMID_SHARE = 0.5  # of the crops; the others are from gcompris/, which has more subjects and fewer pixels
TEST_NOISE_STD = 25 / 255  # on images in [0, 1]


def new_network() -> UNet2DModel:
    """Return the network with random weights, on the 12 channels of 2x2 pixel-unshuffled RGB."""
    network = UNet2DModel(
        in_channels=12,
        out_channels=12,
        block_out_channels=(64, 96, 160, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
        attention_head_dim=32,  # middle block only, 16x16 pixels per token: continues an outline across a hole
        norm_num_groups=16,
    )
    return convert_conv2d_weight_memory_format(network, torch.channels_last)


def new_scheduler() -> DDIMScheduler:
    """Return the noise schedule of the training and of the saved model."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        steps_offset=0,
        timestep_spacing="trailing",
    )


class RandomCrops:
    """Random augmented crops of the images that training.photo.fetch wrote.

    Args:
        folder: The data folder, with the images in `folder`/pyramid and `folder`/gcompris.
        seed: Seed of all random numbers.
        size: Height and width of the crops in pixels; smaller images are left out.
        max_factor: A power of two. Crops are of the image or of its means over f x f pixels, f = 2, 4, ..., max_factor,
            which the network is shown by `MultiscaleDenoiser` at high noise.

    Raises:
        SystemExit: If there are no images.
    """

    def __init__(self, folder: Path, seed: int, size: int, max_factor: int = 1):
        files = sorted((folder / "pyramid").glob("*.png"))
        if not files:
            raise SystemExit(f"no images in {folder / 'pyramid'}: run python -m training.photo.fetch --to {folder}")
        pyramid = [np.asarray(Image.open(file)) for file in files]
        others = [np.asarray(Image.open(file).convert("RGB")) for file in sorted((folder / "gcompris").glob("*.png"))]
        others = [image for image in others if min(image.shape[:2]) >= size]
        weights = np.array([SCALE_WEIGHTS[min(image.shape[:2])] for image in pyramid])
        share = PYRAMID_SHARE if others else 1.0
        self.images = pyramid + others
        self.probabilities = np.append(
            share * weights / weights.sum(), [(1 - share) / max(len(others), 1)] * len(others)
        )
        self.max_factor = max_factor
        self.rng = np.random.default_rng(seed)

    def _crop(self, size: int) -> np.ndarray:
        """Return a random crop of shape (size, size, 3)."""
        image = self.images[self.rng.choice(len(self.images), p=self.probabilities)]
        height, width = image.shape[:2]
        factor = 2 ** int(self.rng.integers(self.max_factor.bit_length()))
        while factor * size > min(height, width):
            factor //= 2
        side = factor * size
        top, left = self.rng.integers(height - side + 1), self.rng.integers(width - side + 1)
        blocks = image[top : top + side, left : left + side].reshape(size, factor, size, factor, 3)
        return blocks.mean((1, 3)).round().astype(np.uint8)

    def _occlude(self, background: np.ndarray, foreground: np.ndarray) -> np.ndarray:
        """Cover part of one crop by a bar, an ellipse or a polygon of another, with a sharp or a soft edge.

        The photographs are landscapes and close-ups. Without these shapes the model sees few long outlines.
        """
        size = len(background)
        mask = Image.new("L", (2 * size, 2 * size))
        angle, center = self.rng.uniform(0, math.pi), self.rng.uniform(0.2, 1.8, 2) * size
        half_width = self.rng.uniform(0.1, 0.6) * size
        half_length = size * self.rng.choice([3, self.rng.uniform(0.2, 1.0)])
        corners = int(self.rng.choice([4, 40, int(self.rng.integers(3, 8))]))
        phase = 2 * math.pi * (np.arange(corners) + 0.5) / corners
        u, v = half_length * np.cos(phase), half_width * np.sin(phase)
        x = center[0] + u * math.cos(angle) - v * math.sin(angle)
        y = center[1] + u * math.sin(angle) + v * math.cos(angle)
        ImageDraw.Draw(mask).polygon(list(zip(x.tolist(), y.tolist(), strict=True)), fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(int(self.rng.choice([1, 1, 2, 6]))))
        weight = np.asarray(mask.resize((size, size), Image.Resampling.BOX), np.float32)[..., None] / 255
        return (weight * foreground + (1 - weight) * background + 0.5).astype(np.uint8)

    def batch(self, count: int, size: int) -> Tensor:
        """Draw a batch.

        Args:
            count: Number of crops B.
            size: Height and width of the crops in pixels.

        Returns:
            Crops of shape (B, 3, size, size), in [-1, 1].
        """
        crops = []
        for _ in range(count):
            crop = self._crop(size)
            if self.rng.random() < 0.8:  # prefer detail: skies and out-of-focus backgrounds contain little information
                other = self._crop(size)
                crop = other if other[..., 1].std() > crop[..., 1].std() else crop
            if self.rng.random() < 0.3:
                crop = self._occlude(crop, self._crop(size))
            if self.rng.random() < 0.5:
                crop = crop[:, ::-1]
            if self.rng.random() < 0.3:
                crop = crop.transpose(1, 0, 2)
            if self.rng.random() < 0.2:
                crop = crop[..., self.rng.permutation(3)]
            crops.append(np.ascontiguousarray(crop))
        return self._jitter_color(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255)

    def _jitter_color(self, x: Tensor) -> Tensor:
        """Change gamma, contrast, brightness and saturation of half of the crops: [0, 1] -> [-1, 1]."""
        uniform = lambda low, high: torch.from_numpy(  # noqa: E731
            self.rng.uniform(low, high, (len(x), 1, 1, 1))
        ).float()
        gray = x.mean(1, keepdim=True)
        mean = x.mean((1, 2, 3), keepdim=True)
        changed = gray + uniform(0.2, 1.4) * (x - gray)
        changed = mean + uniform(0.7, 1.3) * (changed - mean) + uniform(-0.1, 0.1)
        changed = changed.clamp(0, 1) ** uniform(0.75, 1.3)
        return torch.where(uniform(0, 1) < 0.5, changed, x) * 2 - 1


def predict_v(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """Predict v = alpha_t eps - sigma_t x0.

    Args:
        network: The network.
        x_t: Noisy images of shape (B, 3, H, W).
        t: Timesteps of shape (B,).

    Returns:
        The prediction, pixel-unshuffled, of shape (B, 12, H/2, W/2).
    """
    return network(pixel_unshuffle(x_t, 2).contiguous(memory_format=torch.channels_last), t).sample


def denoising_psnr(network: nn.Module, weighting: LossWeighting) -> float:
    """Measure denoising of scikit-image's motorcycle (256x256), which is in neither the training set nor a benchmark.

    Args:
        network: The network.
        weighting: Holds alpha_t and sigma_t.

    Returns:
        PSNR in dB at a noise of standard deviation `TEST_NOISE_STD`.
    """
    from skimage import data_dir

    image = np.asarray(Image.open(Path(data_dir) / "motorcycle_left.png").convert("RGB"))[120:376, 200:456]
    x0 = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    t = int((weighting.sigma / weighting.alpha - 2 * TEST_NOISE_STD).abs().argmin())
    alpha, sigma = weighting.alpha[t], weighting.sigma[t]
    x_t = alpha * x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        v = pixel_shuffle(predict_v(network, x_t, torch.tensor([t])), 2)
    return float(psnr((alpha * x_t - sigma * v).clamp(-1, 1), x0))


def save_model(network: Any, folder: Path) -> None:
    """Write the model with float16 weights in the layout of an unconditional DDIM pipeline of diffusers.

    Args:
        network: The network.
        folder: The folder to write to. It is created if it does not exist.
    """
    (folder / "unet").mkdir(parents=True, exist_ok=True)
    network.save_config(folder / "unet")
    weights = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    partial = folder / "unet" / "part.safetensors"
    save_file(weights, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "unet" / "diffusion_pytorch_model.safetensors")
    new_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "DDIMPipeline",
        "_diffusers_version": "0.30.0",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "max_downsamplings": 2,  # of adhere's MultiscaleDenoiser; more were not measured to help
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


class PhotoTraining(Training):
    """A training run that also writes the model in the layout of diffusers with every checkpoint."""

    images_seen_key = "crops_seen"

    def save(self) -> None:
        super().save()
        save_model(self.ema_network, self.run / "model")


def v_losses(network: nn.Module, weighting: LossWeighting, x0: Tensor, t: Tensor) -> Tensor:
    """Return the mean squared error of v of each crop.

    Args:
        network: The network.
        weighting: Holds alpha_t and sigma_t.
        x0: Clean crops of shape (B, 3, H, W), in [-1, 1].
        t: Timesteps of shape (B,).

    Returns:
        Losses of shape (B,).
    """
    alpha, sigma = weighting.alpha[t, None, None, None], weighting.sigma[t, None, None, None]
    eps = torch.randn_like(x0)
    target = pixel_unshuffle(alpha * eps - sigma * x0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        v = predict_v(network, alpha * x0 + sigma * eps, t)
    return (v.float() - target).square().mean((1, 2, 3))


def train(args: argparse.Namespace) -> None:
    """Train until the time is over, or SIGTERM or SIGINT arrives; then save."""
    torch.set_flush_denormal(True)
    network = new_network()
    if args.start is not None:
        network.load_state_dict(UNet2DModel.from_pretrained(args.start, torch_dtype=torch.float32).state_dict())
    training = PhotoTraining(network, args.run, args.lr, args.ema)
    weighting = LossWeighting(
        new_scheduler().alphas_cumprod,
        mean_log_snr=args.log_snr,
        std_log_snr=args.log_snr_std,
        uniform_fraction=0.3,
        log_snr_min=-3.5,
        log_snr_max=4.6,
    )
    crops = RandomCrops(args.data, training.step, args.crop, args.max_factor)
    torch.manual_seed(training.step)
    losses_by_log_snr: dict[int, list[float]] = {}  # the log-SNR rounded to an integer

    def loss(network: nn.Module, seed: int) -> Tensor:
        x0, t = crops.batch(args.batch, args.crop), weighting.sample_timesteps(args.batch)
        losses = v_losses(network, weighting, x0, t)
        log_snrs = weighting.log_snr[t].round().int().tolist()
        for log_snr, value in zip(log_snrs, losses.detach().tolist(), strict=True):
            losses_by_log_snr.setdefault(log_snr, []).append(value)
        return weighting.weight_losses(t, losses).mean()

    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: signals.append(number))
    start = last_log = last_save = time.monotonic()
    max_threads = torch.get_num_threads()
    while not signals and (elapsed := time.monotonic() - start) < args.minutes * 60:
        if (threads := available_threads(max_threads)) != torch.get_num_threads():
            torch.set_num_threads(threads)
        warmup = min(1, (training.step + 1) / WARMUP_STEPS)
        lr = args.lr * warmup * (1 - elapsed / (args.minutes * 60) if args.cooldown else 1)
        training.take_step(loss, lr)
        training.images_seen += args.batch
        now = time.monotonic()
        if now - last_log > LOG_INTERVAL_SECONDS:
            row = {
                "step": training.step,
                "crops_seen": training.images_seen,
                "minutes": round((now - start) / 60, 1),
                "lr": lr,
                "denoising_psnr_db": round(denoising_psnr(training.ema_network, weighting), 2),
                "v_loss_by_log_snr": {
                    log_snr: round(sum(v) / len(v), 4) for log_snr, v in sorted(losses_by_log_snr.items())
                },
            }
            training.log(row)
            last_log = now
            losses_by_log_snr.clear()
        if now - last_save > SAVE_INTERVAL_SECONDS:
            training.save()
            last_save = now
    training.save()
    psnr_db = denoising_psnr(training.ema_network, weighting)
    print(f"step {training.step}, {training.images_seen} crops seen, denoising PSNR {psnr_db:.2f} dB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/photo"), help="folder that training.photo.fetch wrote")
    parser.add_argument("--run", type=Path, default=Path("data/photo/run"), help="folder of the training run")
    parser.add_argument("--start", type=Path, help="folder of a unet to begin with, if the run folder is empty")
    parser.add_argument("--minutes", type=float, default=60, help="duration of the training")
    parser.add_argument("--crop", type=int, default=64, help="height and width of the crops, a multiple of 16 pixels")
    parser.add_argument("--batch", type=int, default=16, help="crops per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate after the warm-up")
    parser.add_argument("--log-snr", type=float, default=0.7, help="mean of the normal distribution of the log-SNR")
    parser.add_argument("--log-snr-std", type=float, default=1.4, help="standard deviation of that distribution")
    parser.add_argument(
        "--max-factor",
        type=int,
        choices=(1, 2, 4, 8),
        default=1,
        help="largest f of means over f x f pixels: 1, 2, 4, ...",
    )
    parser.add_argument("--ema", type=float, default=0.9995, help="decay of the weight average per step")
    parser.add_argument("--cooldown", action="store_true", help="decrease the learning rate linearly to zero")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
