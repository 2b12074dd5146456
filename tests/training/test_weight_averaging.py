"""Two processes started by torchrun train independently and then average their weights."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from training.loop import STEPS_PER_AVERAGING, Training

STEPS = STEPS_PER_AVERAGING  # until the weights are averaged for the first time


def loss(network: nn.Module, seed: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
    return (network(x) - x.flip(1)).square().mean()


def train(run: Path, loss: Callable[[nn.Module, int], Tensor], steps: int) -> Training:
    torch.manual_seed(0)
    training = Training(nn.Linear(4, 4), run, lr=0.1)
    training.fit(loss, lambda _: {}, batch_size=8, steps=steps)
    return training


def test_two_processes_average_their_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    subprocess.run([*command, __name__, tmp_path / "both"], check=True, cwd=Path(__file__).parents[2])
    both = train(tmp_path / "both", loss, steps=0)
    rank_0, rank_1 = (
        train(tmp_path / str(rank), lambda network, step, rank=rank: loss(network, 2 * step + rank), STEPS)
        for rank in range(2)
    )
    assert both.step == rank_0.step == STEPS
    assert both.images_seen == 2 * rank_0.images_seen
    for mean, a, b in zip(*(run.network.parameters() for run in (both, rank_0, rank_1)), strict=True):
        assert not torch.equal(a, b)
        torch.testing.assert_close(mean, (a + b) / 2)


if __name__ == "__main__":
    train(Path(sys.argv[1]), loss, STEPS)
