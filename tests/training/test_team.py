"""A team that torchrun started takes the steps that one process would on all of its pictures."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from training.loop import Training

STEPS = 5


def draw_loss(network: nn.Module, draw: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(draw))
    return (network(x) - x.flip(1)).square().mean()


def trained(run: Path, loss: Callable[[nn.Module, int], Tensor], steps: int) -> Training:
    torch.manual_seed(0)
    training = Training(nn.Linear(4, 4), run, lr=0.1)
    training.fit(loss, lambda _: {}, batch=8, steps=steps)
    return training


def test_two_processes_step_as_one_on_the_pictures_of_both(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    subprocess.run([*command, __name__, tmp_path / "team"], check=True, cwd=Path(__file__).parents[2])
    team = trained(tmp_path / "team", draw_loss, steps=0)
    both = lambda network, step: (draw_loss(network, 2 * step) + draw_loss(network, 2 * step + 1)) / 2  # noqa: E731
    alone = trained(tmp_path / "alone", both, STEPS)
    assert team.step == alone.step == STEPS
    assert team.pictures_seen == 2 * alone.pictures_seen
    torch.testing.assert_close(team.network.state_dict(), alone.network.state_dict())
    torch.testing.assert_close(team.average.state_dict(), alone.average.state_dict())


if __name__ == "__main__":
    trained(Path(sys.argv[1]), draw_loss, STEPS)
