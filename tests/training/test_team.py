"""A team that torchrun started learns apart, and meets."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from training.loop import EXCHANGE, Training

STEPS = EXCHANGE  # until they meet


def draw_loss(network: nn.Module, draw: int) -> Tensor:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(draw))
    return (network(x) - x.flip(1)).square().mean()


def trained(run: Path, loss: Callable[[nn.Module, int], Tensor], steps: int) -> Training:
    torch.manual_seed(0)
    training = Training(nn.Linear(4, 4), run, lr=0.1)
    training.fit(loss, lambda _: {}, batch=8, steps=steps)
    return training


def test_two_processes_learn_apart_and_meet_at_the_mean_of_their_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    subprocess.run([*command, __name__, tmp_path / "team"], check=True, cwd=Path(__file__).parents[2])
    team = trained(tmp_path / "team", draw_loss, steps=0)
    one, other = (
        trained(tmp_path / str(rank), lambda network, step, rank=rank: draw_loss(network, 2 * step + rank), STEPS)
        for rank in range(2)
    )
    assert team.step == one.step == STEPS
    assert team.pictures_seen == 2 * one.pictures_seen
    for met, mine, theirs in zip(*(run.network.parameters() for run in (team, one, other)), strict=True):
        assert not torch.equal(mine, theirs)
        torch.testing.assert_close(met, (mine + theirs) / 2)


if __name__ == "__main__":
    trained(Path(sys.argv[1]), draw_loss, STEPS)
