"""What the trainings share: steps, averages of the weights, checkpoints; and a whole loop, that of adhere-emoji.

In `Training.fit` the loss of a step is a function of (network, draw) alone: every random number in it is seeded by
`draw`, the step in a team of one, so a run that was stopped and resumed takes the steps an unbroken one would have
taken. (Under `cooldown` the learning rate follows the clock instead.)
"""

import json
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.team import Team

WARM_UP = 100  # steps
EXCHANGE = 16  # steps between a team's exchanges


def courteous_threads(most: int) -> int:
    """One thread while the machine has other work, else `most`: OpenMP threads that share a core only wait."""
    loadavg = Path("/proc/loadavg")
    running = int(loadavg.read_text().split()[3].split("/")[0]) if loadavg.exists() else 1
    return 1 if running > 1 else most


class Training:
    """A network on its way: `network` is trained, `average` is the exponential moving average that is used."""

    seen = "pictures_seen"  # as the checkpoint calls it

    def __init__(self, network: nn.Module, run: Path, lr: float, ema: float = 0.9995):
        self.run, self.lr, self.ema, self.step, self.pictures_seen = run, lr, ema, 0, 0
        self.team = Team()
        self.network = network
        self.average = deepcopy(network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.pictures_seen = state["step"], state[self.seen]

    @property
    def checkpoint(self) -> Path:
        return self.run / "checkpoint.pt"

    def save(self) -> None:
        """Write the checkpoint in one move: a kill in between leaves the old one whole. Of a team, the first does."""
        if self.team.rank > 0:
            return
        part = self.checkpoint.with_suffix(".part")
        state = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        torch.save(state | {"step": self.step, self.seen: self.pictures_seen}, part)
        os.replace(part, self.checkpoint)

    def take_step(self, loss: Callable[[Any, int], Tensor], rate: float) -> float:
        """One step of AdamW at a learning rate; returns this process' loss.

        A team takes the mean of its weights every few steps: local SGD (Stich, 2019). The mean of the gradients at
        every step would keep the processes waiting for each other.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        value = loss(self.network, self.step * self.team.size + self.team.rank)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.step += 1
        if self.step % EXCHANGE == 0:
            self.team.mean([p.data for p in self.network.parameters()])
        decay = min(self.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        for mean, new in zip(self.average.buffers(), self.network.buffers(), strict=True):
            mean.copy_(new)
        return float(value.detach())

    def fit(
        self,
        loss: Callable[[Any, int], Tensor],
        report: Callable[[Any], dict[str, Any]],
        batch: int,
        minutes: float = float("inf"),
        steps: float = float("inf"),
        cooldown: bool = False,
    ) -> None:
        """Train until the time or the number of steps is over, or SIGTERM or SIGINT comes; then save.

        `report(average)` is logged every five minutes, with a checkpoint, and at the end. `cooldown` brings the
        learning rate to zero.
        """
        torch.set_flush_denormal(True)
        stop: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: stop.append(number))
        begin = said = time.monotonic()
        clock = torch.zeros(2)  # seconds, and whether somebody wants to stop
        last, losses, most = self.step + steps, [], torch.get_num_threads()
        pictures = batch * self.team.size  # a step
        while self.step < last:
            if self.step % EXCHANGE == 0 or self.team.size == 1:
                clock = torch.tensor([time.monotonic() - begin, float(len(stop))])
                self.team.mean([clock])  # all stop after the same step, and agree on the rate
            elapsed, stops = clock.tolist()
            if stops or elapsed >= 60 * minutes:
                break
            if (threads := courteous_threads(most)) != torch.get_num_threads():
                torch.set_num_threads(threads)
            rate = self.lr * min(1, (self.step + 1) / WARM_UP) * (1 - elapsed / (60 * minutes) if cooldown else 1)
            losses.append(self.take_step(loss, rate))
            self.pictures_seen += pictures
            now = time.monotonic()
            if now - said > 300:
                self._report(report, losses, pictures * len(losses) / (now - said), rate)
                self.save()
                said, losses = time.monotonic(), []
        self.save()
        self._report(report, losses, pictures * len(losses) / (time.monotonic() - said), 0)

    def _report(self, report: Callable[[Any], dict[str, Any]], losses: list[float], speed: float, rate: float) -> None:
        if self.team.rank > 0:
            return
        row = {"step": self.step, "pictures": self.pictures_seen, "per_second": round(speed, 1), "lr": round(rate, 7)}
        row |= {"loss": round(sum(losses) / len(losses), 5)} if losses else {}
        self.log(row | report(self.average))

    def log(self, row: dict[str, Any]) -> None:
        """Print a row, and add it to the run's log.jsonl."""
        line = json.dumps(row)
        print(line, flush=True)
        with (self.run / "log.jsonl").open("a") as log:
            log.write(line + "\n")
