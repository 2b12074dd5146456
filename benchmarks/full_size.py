"""Time and memory of the methods on SD 1.5, SDXL, SD3.5 medium and Flux at their published sizes, with random weights.

    python -m benchmarks.full_size --json out.json [--device cuda|cpu] [--models sd15 sdxl sd3 flux] [--methods ...]
    python -m benchmarks.full_size --json out/tiny.json --tiny      # a rehearsal on a CPU in two minutes

The networks and autoencoders are diffusers' classes with the published configurations, so time and memory are those of
the released models, and the pictures are noise. Prompt embeddings are random and no text encoder is built. Guidance is
that of each family by default: two passes per evaluation, one for Flux. The task is a picture whose right half is
masked, and x8 is super-resolution through the decoder. The weights are in float16, or bfloat16 for SD3.5 and Flux, on a
GPU and in float32 on a CPU, as on the command line.

Seconds are the median of several runs of one picture, with the final decoding. `times plain` is the median ratio to a
run of plain just before in the same process. `times inexact_newton` and `times dps` are the quotients of two such
ratios. `peak MB` is the largest memory in the first run, that of torch on a GPU and that of the process on a CPU, and
`MB above the model` its difference to the memory with the model loaded. Each model has a process of its own. What does
not fit into memory is a row that says so. Background trainings that have a run folder below data/ are paused
meanwhile. Rows of other models and methods that are in the file are kept. On a CPU, the script needs Linux.
"""

import argparse
import inspect
import logging
import math
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.utils.logging import set_verbosity
from torch import Tensor, nn

from adhere import AdhereError, Generate, Inpaint, Upscale
from adhere.pipelines.flux import FluxPipeline
from adhere.pipelines.sd import SDPipeline
from adhere.pipelines.sd3 import SD3Pipeline
from adhere.pipelines.sdxl import SDXLPipeline
from adhere.tasks import Task
from benchmarks.peak import resident_mb
from benchmarks.tables import Row, load, meta, save, table

RUNS = (
    "plain",
    "moment_matching",
    "moment_matching_fast",
    "moment_matching_posterior",
    "x8",
    "inexact_newton",
    "dps",
)
ONLY_SD15 = ("dps",)  # its backward passes through the network take several times the memory
MIN_SECONDS, MAX_RUNS = 10, 5  # of the timed runs of a row
WARM_UP_STEPS = 2
MARGIN_BYTES = 2 * 1024**3  # beside the weights, for 512x512 pixels; proportional to the number of pixels
TINY_SIDE = 64
PAUSE_SECONDS = 20  # in which a training ends its step and saves
DATA = Path("data")
COLUMNS = ("nfe", "seconds", "times_plain", "times_newton", "times_dps", "peak_mb", "working_mb")


@dataclass(frozen=True)
class Model:
    """A published model.

    Attributes:
        label: The name in the tables.
        side: The height and width of its pictures in pixels.
        dtype: Of the weights on a GPU.
        family: The class of the pipeline.
        network: The class of the network.
        config: The arguments of the network that differ from diffusers' defaults.
        tiny: What replaces them in a rehearsal.
        vae: The arguments of the autoencoder beside VAE.
        scheduler: The noise levels.
        tokens: The number of tokens of a prompt, as diffusers' `encode_prompt` pads it.
        negative: Whether there are negative prompts, for classifier-free guidance.
    """

    label: str
    side: int
    dtype: torch.dtype
    family: Any
    network: Any
    config: dict[str, Any]
    tiny: dict[str, Any]
    vae: dict[str, Any]
    scheduler: Any
    tokens: int
    negative: bool = True

    def build_network(self, tiny: bool = False) -> nn.Module:
        """Return the network on torch's default device and in torch's default dtype."""
        return self.network(**self.config | (self.tiny if tiny else {})).eval()

    def build_vae(self, tiny: bool = False) -> nn.Module:
        """Return the autoencoder on torch's default device and in torch's default dtype."""
        return AutoencoderKL(**VAE | self.vae | (TINY_VAE if tiny else {})).eval()

    def prompts(self, device: torch.device, dtype: torch.dtype, tiny: bool = False) -> dict[str, Tensor]:
        """Return random embeddings of one prompt as arguments of the pipeline."""
        config = self.config | (self.tiny if tiny else {})
        width = config.get("cross_attention_dim") or config["joint_attention_dim"]
        pooled = config.get("pooled_projection_dim")
        if "projection_class_embeddings_input_dim" in config:  # SDXL: pooled, and 6 embedded sizes
            pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        shapes = {"prompt_embeds": (1, self.tokens, width)} | ({"pooled_prompt_embeds": (1, pooled)} if pooled else {})
        if self.negative:
            shapes |= {f"negative_{name}": shape for name, shape in shapes.items()}
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(s, generator=generator).to(device, dtype) for name, s in shapes.items()}


# The same in vae/config.json of all four repositories below.
VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
VAE16 = {"latent_channels": 16, "sample_size": 1024, "use_quant_conv": False, "use_post_quant_conv": False}
TINY_VAE = {"block_out_channels": (16,) * 4, "norm_num_groups": 4, "layers_per_block": 1, "sample_size": TINY_SIDE}
SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
TINY_TRANSFORMER = {"num_layers": 1, "num_attention_heads": 2, "joint_attention_dim": 32, "pooled_projection_dim": 16}

MODELS = {
    # unet/config.json, vae/config.json and scheduler_config.json of stable-diffusion-v1-5/stable-diffusion-v1-5
    "sd15": Model(
        "SD 1.5",
        512,
        torch.float16,
        SDPipeline,
        UNet2DConditionModel,
        {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "attention_head_dim": 8,  # the number of heads, in diffusers' older configurations
            "cross_attention_dim": 768,
        },
        {"sample_size": 8, "block_out_channels": (32,) * 4, "layers_per_block": 1, "cross_attention_dim": 32},
        {"latent_channels": 4, "sample_size": 512},
        PNDMScheduler(set_alpha_to_one=False, skip_prk_steps=True, **SCALED_LINEAR),
        77,
    ),
    # The same files of stabilityai/stable-diffusion-xl-base-1.0
    "sdxl": Model(
        "SDXL",
        1024,
        torch.float16,
        SDXLPipeline,
        UNet2DConditionModel,
        {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),  # the numbers of heads
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {
            "sample_size": 8,
            "block_out_channels": (32,) * 3,
            "layers_per_block": 1,
            "transformer_layers_per_block": (1, 1, 2),
            "attention_head_dim": (2, 2, 4),
            "cross_attention_dim": 32,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 64,
        },
        {"latent_channels": 4, "sample_size": 1024, "scaling_factor": 0.13025, "force_upcast": True},
        EulerDiscreteScheduler(timestep_spacing="leading", **SCALED_LINEAR),
        77,
    ),
    # transformer/config.json, vae/config.json and scheduler_config.json of stabilityai/stable-diffusion-3.5-medium
    "sd3": Model(
        "SD3.5 medium",
        1024,
        torch.bfloat16,
        SD3Pipeline,
        SD3Transformer2DModel,
        {
            "sample_size": 128,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 24,
            "dual_attention_layers": tuple(range(13)),
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
        },
        {
            "sample_size": 8,
            "dual_attention_layers": (0,),
            "attention_head_dim": 8,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
            **TINY_TRANSFORMER,
        },
        {"scaling_factor": 1.5305, "shift_factor": 0.0609, **VAE16},
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        77 + 256,  # those of CLIP and of T5
    ),
    # The same files of black-forest-labs/FLUX.1-dev
    "flux": Model(
        "Flux.1 dev",
        1024,
        torch.bfloat16,
        FluxPipeline,
        FluxTransformer2DModel,
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": (16, 56, 56),
        },
        {"num_single_layers": 1, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6), **TINY_TRANSFORMER},
        {"scaling_factor": 0.3611, "shift_factor": 0.1159, **VAE16},
        FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        512,
        negative=False,
    ),
}


@dataclass(frozen=True)
class Settings:
    """How a model is run.

    Attributes:
        device: 'cuda' or 'cpu'.
        scale: The side of the pictures as a multiple of the published one.
        tiny: Whether the network, the autoencoder and the pictures are tiny.
        steps: The number of noise levels; None is that of each preset.
        threads: The number of threads of torch.
    """

    device: str
    scale: float = 1.0
    tiny: bool = False
    steps: int | None = None
    threads: int = 1

    def side(self, model: Model) -> int:
        """Return the height and width of the pictures, a multiple of 64 pixels."""
        return TINY_SIDE if self.tiny else max(1, round(model.side * self.scale / 64)) * 64

    def dtype(self, model: Model) -> torch.dtype:
        """Return the dtype of the weights."""
        return torch.float32 if self.device == "cpu" else model.dtype

    def title(self, model: Model) -> str:
        """Return the heading of the model's table."""
        side, dtype = self.side(model), str(self.dtype(model)).removeprefix("torch.")
        notes = [
            f"{side}x{side}",
            dtype,
            self.device,
            *["tiny"] * self.tiny,
            *[f"{self.steps} steps"] * bool(self.steps),
        ]
        return ", ".join([model.label, *notes])


def count_weights(model: Model, tiny: bool = False) -> int:
    """Return the number of weights of the network and the autoencoder, with buffers."""
    with torch.device("meta"):
        modules = [model.build_network(tiny), model.build_vae(tiny)]
    return sum(tensor.numel() for module in modules for tensor in [*module.parameters(), *module.buffers()])


def free_bytes(device: str) -> float:
    """Return the free memory of the device, infinity if the system does not say it."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), math.inf)


def reason_not_built(model: Model, settings: Settings) -> str | None:
    """Return why a model is not built, None if its weights and a margin fit into the free memory."""
    weights = count_weights(model, settings.tiny) * settings.dtype(model).itemsize
    needed = weights + MARGIN_BYTES * (settings.side(model) / 512) ** 2
    free = free_bytes(settings.device)
    return f"needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free" if needed > free else None


def build(model: Model, settings: Settings) -> Any:
    """Return the pipeline with random weights that are drawn on the device and in their dtype."""
    default, dtype = torch.get_default_dtype(), settings.dtype(model)
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(settings.device):
            network, vae = model.build_network(settings.tiny), model.build_vae(settings.tiny)
    finally:
        torch.set_default_dtype(default)
    for module in (network, vae):  # as adhere.load does
        module.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = {model.family.network: network, "vae": vae, "scheduler": model.scheduler}
    parameters = inspect.signature(model.family.__init__).parameters.values()
    absent = {p.name: None for p in parameters if p.default is p.empty and p.name not in ("self", *parts)}
    pipe = model.family(**absent, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Memory:
    """The peak memory on a device from the creation of this object."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # reset VmHWM

    def peak_mb(self) -> float:
        """Return the peak in MB."""
        return torch.cuda.max_memory_allocated() / 1024**2 if self.device == "cuda" else resident_mb("VmHWM")


def make_task(method: str, side: int) -> Task:
    """Return what a method is run on, for pictures of side x side pixels of noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    if method == "plain":
        return Generate((side, side))
    if method == "x8":
        return Upscale(pixels[: side // 8, : side // 8], 8)
    return Inpaint(pixels, np.arange(side)[None].repeat(side, 0) >= side // 2, context=side)


def measure(name: str, methods: list[str], settings: Settings) -> Iterator[Row]:
    """Yield the rows of a model, run in this process.

    Args:
        name: A key of MODELS.
        methods: Some of RUNS.
        settings: The device and the sizes.
    """
    set_verbosity(logging.ERROR)
    torch.set_num_threads(settings.threads)
    model = MODELS[name]
    title, side = settings.title(model), settings.side(model)
    if reason := reason_not_built(model, settings):
        yield skipped(title, "all methods", reason)
        return
    pipe = build(model, settings)
    prompts = model.prompts(torch.device(settings.device), settings.dtype(model), settings.tiny)
    loaded_mb = Memory(settings.device).peak_mb()

    def run(method: str, steps: int | None = settings.steps) -> tuple[int, float]:
        """Return the network evaluations and the seconds of one picture."""
        task, solver = make_task(method, side), "moment_matching" if method == "x8" else method
        generator = torch.Generator().manual_seed(0)
        options = {"solver": solver, "num_inference_steps": steps, "generator": generator, "output_type": "pt"}
        begin = time.perf_counter()
        out = pipe(task, **prompts, **options)
        if settings.device == "cuda":
            torch.cuda.synchronize()
        return out.nfe, time.perf_counter() - begin

    for method in methods:
        try:
            if settings.device == "cuda":
                run(method, WARM_UP_STEPS)
            memory, peak, nfe, pairs = Memory(settings.device), 0.0, 0, []
            while not pairs or (sum(map(sum, pairs)) < MIN_SECONDS and len(pairs) < MAX_RUNS and not settings.tiny):
                plain = run("plain")[1]
                nfe, seconds = run(method)
                pairs.append((plain, seconds))
                peak = peak or memory.peak_mb()
        except AdhereError as error:  # out of memory, or a network that overflows
            yield skipped(title, method, textwrap.shorten(str(error), 100))
            continue
        scores = {"working_mb": peak - loaded_mb}
        if method != "plain":
            scores["times_plain"] = median(seconds / plain for plain, seconds in pairs)
        label = f"moment_matching @ {nfe}, x8" if method == "x8" else f"{method} @ {nfe}"
        yield Row(title, "noise", label, 0, nfe, median(seconds for _, seconds in pairs), peak, scores)


def skipped(title: str, method: str, reason: str) -> Row:
    """Return the row of a method that was not run."""
    return Row(title, "noise", f"{method}: skipped, {reason}", 0, math.nan, math.nan)


def send_rows(sender: Connection, *args: Any) -> None:
    """Send the rows of `measure` to another process."""
    for row in measure(*args):
        sender.send(row)


def measure_in_new_process(name: str, methods: list[str], settings: Settings) -> Iterator[Row]:
    """Yield the rows of `measure`, run in a process without the memory of other models."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_rows, args=(sender, name, methods, settings), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        process.join()
    if process.exitcode:
        reason = f"the process ended with {process.exitcode}; -9 is a lack of memory"
        yield skipped(settings.title(MODELS[name]), "the remaining methods", reason)


@contextmanager
def trainings_paused(data: Path) -> Iterator[None]:
    """Return a context in which the trainings with a run folder in data/*/ are paused, by a file PAUSE in each."""
    files = [log.with_name("PAUSE") for log in sorted(data.glob("*/*/log.jsonl"))]
    created = [file for file in files if not file.exists()]
    try:
        for file in created:
            file.touch()
        if created:
            time.sleep(PAUSE_SECONDS)
        yield
    finally:
        for file in created:
            file.unlink(missing_ok=True)


def with_ratios(rows: list[Row]) -> list[Row]:
    """Return the rows with `times_newton` and `times_dps`, where these methods were measured with the same model."""
    found = {(row.task, row.method.split(" @ ")[0]): row.scores.get("times_plain") for row in rows}

    def ratios(row: Row) -> dict[str, float]:
        own = row.scores.get("times_plain", 1.0 if row.method.startswith("plain @") else math.nan)
        references = {
            "times_newton": found.get((row.task, "inexact_newton")),
            "times_dps": found.get((row.task, "dps")),
        }
        values = {name: own / reference for name, reference in references.items() if reference}
        return {} if math.isnan(own) or row.method.endswith("x8") else values

    return [replace(row, scores=row.scores | ratios(row)) for row in rows]


def merge(old: list[Row], new: list[Row]) -> list[Row]:
    """Return the new rows, then the old ones that were not measured again; skipped rows of a model are replaced."""
    measured, tasks = {(row.task, row.method) for row in new}, {row.task for row in new}
    outdated = {(row.task, row.method) for row in old if row.task in tasks and "skipped, " in row.method}
    return with_ratios([*new, *(row for row in old if (row.task, row.method) not in measured | outdated)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--scale", type=float, default=1.0, help="sides of the pictures, 1 is as published")
    parser.add_argument("--steps", type=int, help="noise levels of all methods, to try whether a model runs")
    parser.add_argument("--tiny", action="store_true", help="shrink all models, to rehearse the script on a CPU")
    args = parser.parse_args()
    settings = Settings(args.device, args.scale, args.tiny, args.steps, torch.get_num_threads())
    about = meta()
    if args.device == "cuda":
        about["machine"] = torch.cuda.get_device_name()
    old = load(args.json)[0] if args.json.exists() else []
    rows: list[Row] = []
    with nullcontext() if args.tiny else trainings_paused(DATA):
        for name in args.models:
            methods = [method for method in args.methods if name == "sd15" or method not in ONLY_SD15]
            for row in measure_in_new_process(name, methods, settings):
                rows.append(row)
                print(f"{row.task}: {row.method}", file=sys.stderr)
                save(args.json, merge(old, rows), about)  # again after each row, since a later one may be killed
    print(table(merge(old, rows), COLUMNS))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that paused trainings go on
    main()
