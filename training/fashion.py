"""Train the model of benchmarks/jacobian.py: 28x28 gray images, small enough to compute its whole Jacobian.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb data/fashion
    python -m training.fashion --data data/fashion/usr/share/datasets/fashion-mnist --run data/fashion/run

The training takes 15 minutes on one CPU core. It writes the network in float16 to run/model, with a few images of the
test set in clothes.npy. It resumes from its checkpoint.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from training.loop import Training
from training.loss_weighting import LossWeighting
from training.photo.train import new_scheduler


def load_images(folder: Path, split: str) -> Tensor:
    """Load one of the IDX files of Fashion-MNIST.

    Args:
        folder: Folder of the files.
        split: "train" or "t10k" (the test set).

    Returns:
        Images of shape (N, 1, 28, 28), in [-1, 1].
    """
    content = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels / np.float32(127.5) - 1)


def new_network() -> UNet2DModel:
    """Return the network with random weights: 0.9 M parameters, attention in the middle block only (7x7)."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32, 48, 80),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        attention_head_dim=16,
        norm_num_groups=16,
    )


def v_losses(network: Any, weighting: LossWeighting, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Return the mean squared error of v = alpha_t eps - sigma_t x0 of each image.

    Args:
        network: The network.
        weighting: Holds alpha_t and sigma_t.
        x0: Clean images of shape (B, 1, 28, 28), in [-1, 1].
        t: Timesteps of shape (B,).
        generator: The generator of the noise.

    Returns:
        Losses of shape (B,).
    """
    alpha, sigma = weighting.alpha[t, None, None, None], weighting.sigma[t, None, None, None]
    eps = torch.randn(x0.shape, generator=generator)
    return (network(alpha * x0 + sigma * eps, t).sample - (alpha * eps - sigma * x0)).square().mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the IDX files")
    parser.add_argument("--run", type=Path, default=Path("data/fashion/run"), help="folder of the training run")
    parser.add_argument("--minutes", type=float, default=15, help="duration of the training")
    parser.add_argument("--batch", type=int, default=64, help="images per step")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate at the start")
    args = parser.parse_args()
    train, test = load_images(args.data, "train"), load_images(args.data, "t10k")[:512]
    weighting = LossWeighting(
        new_scheduler().alphas_cumprod,
        mean_log_snr=0,
        std_log_snr=1.4,
        uniform_fraction=0.3,
        log_snr_min=-3.5,
        log_snr_max=4.5,
    )

    def loss(network: Any, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        t = weighting.stratified_timesteps(args.batch, generator)
        x0 = train[torch.randint(len(train), (args.batch,), generator=generator)]
        return weighting.weight_losses(t, v_losses(network, weighting, x0, t, generator)).mean()

    @torch.inference_mode()
    def report(network: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        t = weighting.stratified_timesteps(len(test), generator)
        return {"test_v_loss": round(float(v_losses(network, weighting, test, t, generator).mean()), 5)}

    training = Training(new_network(), args.run, args.lr, ema_decay=0.998)
    training.fit(loss, report, args.batch, minutes=args.minutes, cooldown=True)
    training.ema_network.half().save_pretrained(args.run / "model")  # type: ignore[operator]
    np.save(args.run / "model" / "clothes.npy", ((test[:16, 0] + 1) * 127.5).round().byte().numpy())


if __name__ == "__main__":
    main()
