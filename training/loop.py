"""The training loop: optimizer steps, an average of the weights, checkpoints and a log.

`Training.fit` calls the loss as loss(network, seed), where `seed` is different for every step and process. A loss that
takes all its random numbers from `seed` makes a resumed run equal to an uninterrupted one. (This does not hold with
`cooldown`, where the learning rate depends on the elapsed time.)
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

from training.weight_averaging import WeightAveraging

WARMUP_STEPS = 100
STEPS_PER_AVERAGING = 16  # between two averagings of the weights over the processes
REPORT_INTERVAL_SECONDS = 300


def available_threads(max_threads: int) -> int:
    """Return the number of threads to compute with.

    OpenMP threads that share a core with another process mostly wait, so one thread is faster on a busy machine.

    Args:
        max_threads: Number of threads on an idle machine.

    Returns:
        1 if the machine runs other work, `max_threads` otherwise.
    """
    loadavg = Path("/proc/loadavg")
    running = int(loadavg.read_text().split()[3].split("/")[0]) if loadavg.exists() else 1
    return 1 if running > 1 else max_threads


class Training:
    """The state of a training run. Resumes from the checkpoint of the run folder if there is one.

    Args:
        network: The network to train.
        run: The run folder, for checkpoint.pt and log.jsonl. It is created if it does not exist.
        lr: Learning rate of AdamW after the warm-up.
        ema_decay: Largest decay of the exponential moving average (EMA) of the weights per step.

    Attributes:
        network: The network that is trained.
        ema_network: The network with averaged weights, in evaluation mode. It is the result of the training.
        step: Number of steps of each process.
        images_seen: Number of images that all processes were trained on.
    """

    images_seen_key = "pictures_seen"  # name of `images_seen` in the checkpoint

    def __init__(self, network: nn.Module, run: Path, lr: float, ema_decay: float = 0.9995):
        self.run, self.lr, self.ema_decay, self.step, self.images_seen = run, lr, ema_decay, 0, 0
        self.processes = WeightAveraging()
        self.network = network
        self.ema_network = deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True
        )
        run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            for key, part in self._parts().items():
                part.load_state_dict(state[key])
            self.step, self.images_seen = state["step"], state[self.images_seen_key]

    @property
    def checkpoint(self) -> Path:
        """Path of the checkpoint."""
        return self.run / "checkpoint.pt"

    def _parts(self) -> dict[str, Any]:
        """The parts with a state, by their key in the checkpoint. The keys are those of existing checkpoints."""
        parts = {"network": self.network, "average": self.ema_network}
        return parts | {"optimiser": self.optimizer}  # retired spelling

    def save(self) -> None:
        """Write the checkpoint atomically: an interrupted write leaves the previous one. Only rank 0 writes."""
        if self.processes.rank > 0:
            return
        partial = self.checkpoint.with_suffix(".part")
        state = {key: part.state_dict() for key, part in self._parts().items()}
        torch.save(state | {"step": self.step, self.images_seen_key: self.images_seen}, partial)
        os.replace(partial, self.checkpoint)

    def take_step(self, loss: Callable[[Any, int], Tensor], lr: float) -> float:
        """Take one step of AdamW.

        Several processes average their weights every `STEPS_PER_AVERAGING` steps: local SGD (Stich, "Local SGD
        Converges Fast and Communicates Little", 2019). Averaging the gradients at every step would make the processes
        wait for each other.

        Args:
            loss: Function of (network, seed) that returns a scalar loss.
            lr: Learning rate of this step.

        Returns:
            The loss of this process.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        value = loss(self.network, self.step * self.processes.world_size + self.processes.rank)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.step % STEPS_PER_AVERAGING == 0:
            self.processes.average_([p.data for p in self.network.parameters()])
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.ema_network.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        for mean, new in zip(self.ema_network.buffers(), self.network.buffers(), strict=True):
            mean.copy_(new)
        return float(value.detach())

    def fit(
        self,
        loss: Callable[[Any, int], Tensor],
        report: Callable[[Any], dict[str, Any]],
        batch_size: int,
        minutes: float = float("inf"),
        steps: float = float("inf"),
        cooldown: bool = False,
    ) -> None:
        """Train until the time is over, the steps are done, or SIGTERM or SIGINT arrives; then save.

        Args:
            loss: Function of (network, seed) that returns a scalar loss.
            report: Function of the EMA network that returns figures for the log. It is called, and the checkpoint
                written, every `REPORT_INTERVAL_SECONDS` and at the end.
            batch_size: Images per step of one process.
            minutes: Maximum time.
            steps: Maximum number of steps of this call.
            cooldown: Whether the learning rate falls linearly to zero over `minutes`.
        """
        torch.set_flush_denormal(True)
        signals: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _: signals.append(number))
        start = last_report = time.monotonic()
        clock = torch.zeros(2)  # elapsed seconds, and the number of signals
        end_step, losses, max_threads = self.step + steps, [], torch.get_num_threads()
        images_per_step = batch_size * self.processes.world_size
        while self.step < end_step:
            if self.step % STEPS_PER_AVERAGING == 0 or self.processes.world_size == 1:
                clock = torch.tensor([time.monotonic() - start, float(len(signals))])
                self.processes.average_([clock])  # all processes stop at the same step and use the same learning rate
            elapsed, stop = clock.tolist()
            if stop or elapsed >= 60 * minutes:
                break
            if (threads := available_threads(max_threads)) != torch.get_num_threads():
                torch.set_num_threads(threads)
            warmup = min(1, (self.step + 1) / WARMUP_STEPS)
            lr = self.lr * warmup * (1 - elapsed / (60 * minutes) if cooldown else 1)
            losses.append(self.take_step(loss, lr))
            self.images_seen += images_per_step
            now = time.monotonic()
            if now - last_report > REPORT_INTERVAL_SECONDS:
                self._report(report, losses, images_per_step * len(losses) / (now - last_report), lr)
                self.save()
                last_report, losses = time.monotonic(), []
        self.save()
        self._report(report, losses, images_per_step * len(losses) / (time.monotonic() - last_report), 0)

    def _report(
        self, report: Callable[[Any], dict[str, Any]], losses: list[float], images_per_second: float, lr: float
    ) -> None:
        if self.processes.rank > 0:
            return
        row = {
            "step": self.step,
            "images_seen": self.images_seen,
            "images_per_second": round(images_per_second, 1),
            "lr": round(lr, 7),
        }
        row |= {"loss": round(sum(losses) / len(losses), 5)} if losses else {}
        self.log(row | report(self.ema_network))

    def log(self, row: dict[str, Any]) -> None:
        """Print a row as JSON and append it to log.jsonl in the run folder."""
        line = json.dumps(row)
        print(line, flush=True)
        with (self.run / "log.jsonl").open("a") as log:
            log.write(line + "\n")
