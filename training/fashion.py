"""Train the model of benchmarks.jacobian: Fashion-MNIST, 28x28 gray, small enough for its whole Jacobian.

    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb data/fashion
    python -m training.fashion --data data/fashion/usr/share/datasets/fashion-mnist --run data/fashion/run

A quarter of an hour on one core; run/model is then the network in float16, with a few pictures of the test set. Resumes
from its checkpoint.
"""

import argparse
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from training.levels import Levels
from training.loop import Training
from training.photo.train import new_scheduler


def pictures(folder: Path, name: str) -> Tensor:
    """(N, 1, 28, 28) in [-1, 1] from one of the IDX files, 'train' or 't10k'."""
    content = gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes())
    pixels = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    return torch.from_numpy(pixels / np.float32(127.5) - 1)


def new_network() -> UNet2DModel:
    """0.9 M parameters; attention over the 7x7 of the middle."""
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


def v_losses(network: Any, levels: Levels, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v for each picture, (B,)."""
    alpha, sigma = levels.alpha[t, None, None, None], levels.sigma[t, None, None, None]
    eps = torch.randn(x0.shape, generator=generator)
    return (network(alpha * x0 + sigma * eps, t).sample - (alpha * eps - sigma * x0)).square().mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, default=Path("data/fashion/run"))
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    train, test = pictures(args.data, "train"), pictures(args.data, "t10k")[:512]
    levels = Levels(new_scheduler().alphas_cumprod, mean=0, width=1.4, even=0.3, low=-3.5, high=4.5)

    def loss(network: Any, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        t = levels.spread(args.batch, generator)
        x0 = train[torch.randint(len(train), (args.batch,), generator=generator)]
        return levels.balanced(t, v_losses(network, levels, x0, t, generator)).mean()

    @torch.inference_mode()
    def report(network: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        t = levels.spread(len(test), generator)
        return {"test_v_loss": round(float(v_losses(network, levels, test, t, generator).mean()), 5)}

    training = Training(new_network(), args.run, args.lr, ema=0.998)
    training.fit(loss, report, args.batch, minutes=args.minutes, cooldown=True)
    training.average.half().save_pretrained(args.run / "model")  # type: ignore[operator]
    np.save(args.run / "model" / "clothes.npy", ((test[:16, 0] + 1) * 127.5).round().byte().numpy())


if __name__ == "__main__":
    main()
