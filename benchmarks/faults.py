"""Damaged files and signals: the command must print one line, and leave no file behind.

    python -m benchmarks.faults files --count 2000 --seed 0
    python -m benchmarks.faults signals --points 15 --seed 0

`files` damages pictures, masks, model_index.json and the headers of safetensors, and runs the verbs on them in this
process. Every run must end with exit code 0 or with 2 and one line, without a traceback; the folder must then hold
the same files with the same bytes, and the result if the exit code was 0.

`signals` runs the command in processes that send TERM, HUP, INT or KILL to themselves at points that are spread over
the whole run: the n-th audit event of Python (imports, opened files, renames, ...) after the first line of the program.
The result must be absent or complete. Nothing else may be left, but for KILL until the next start.
"""

import argparse
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from adhere.apps.cli import main as adhere_command
from adhere.io._atomic import check_writable

SIZE = (24, 31)
FORMATS: dict[str, dict[str, Any]] = {
    "png": {},
    "jpg": {},
    "webp": {"lossless": True},
    "tif": {"compression": "tiff_lzw"},
    "bmp": {},
    "gif": {},
}
KINDS = ("photo", "mask", "model_index", "safetensors")
SIGNALS = ("TERM", "HUP", "INT", "KILL")
WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")

# The program, which sends a signal to itself at an audit event; without a number it prints how many there are.
PROGRAM = """
import os, runpy, signal, sys
number, at = int(sys.argv[1]), int(sys.argv[2])
count = None

def hook(event, arguments):
    global count
    if event == "import" and arguments[0] == "adhere.apps.cli":
        count = count or 0
    if count is not None:
        count += 1
        if count == at:
            os.kill(os.getpid(), number)

sys.addaudithook(hook)
sys.argv = ["adhere", *sys.argv[3:]]
try:
    runpy.run_module("adhere", run_name="__main__", alter_sys=True)
finally:
    if not at:
        print(count, file=sys.stderr)
"""


# --- Inputs.


def save_inputs(folder: Path) -> None:
    """Write a picture and a mask in every format, and a tiny model."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
    mask = np.zeros(SIZE, np.uint8)
    mask[6:18, 8:23] = 255
    for suffix, options in FORMATS.items():
        photo.save(folder / f"photo.{suffix}", **options)
        Image.fromarray(mask).save(folder / f"mask.{suffix}", **options)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDIMPipeline(unet, DDIMScheduler(steps_offset=1, clip_sample=False)).save_pretrained(folder / "model")


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files in a folder by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- Damage.

JSON_VALUES: list[Any] = [None, True, 0, -1, 1e308, float("nan"), "", "x" * 3000, "../..", [], {}, [None], ["a", "b"]]
JSON_VALUES += [[[[]]], {"": 1}]


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return data with one to three random changes, some of them among the first 64 bytes."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 3])):
        at = rng.randrange(min(64, len(out)) if rng.random() < 0.3 else len(out)) if out else 0
        length = rng.randint(1, 16)
        change = rng.randrange(6)
        if change == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            out[at : at + length] = rng.randbytes(length)
        elif change == 2:
            out[at : at + length] = rng.choice([b"\0", b"\xff", b"\x80", b"\x7f"]) * length
        elif change == 3:
            del out[at : at + length]
        elif change == 4:
            out[at:at] = out[at : at + 4 * length]
        else:
            del out[at:]
    return bytes(out)


def damaged_json(text: str, rng: random.Random) -> str:
    """Return a JSON object with a random part replaced or removed, or damaged as text."""
    if rng.random() < 0.25:
        return damaged_bytes(text.encode(), rng).decode(errors="replace")
    root = json.loads(text)
    places = list(_places(root))
    container, key = rng.choice(places)
    if rng.random() < 0.3:
        del container[key]
    elif rng.random() < 0.2 and isinstance(container, dict):
        container[rng.choice(["_guidance_scale", "_temperature", "_prior_spectrum", "vae", "x"])] = rng.choice(
            JSON_VALUES
        )
    else:
        container[key] = rng.choice(JSON_VALUES)
    return json.dumps(root)


def _places(node: Any) -> Any:
    """Yield (container, key) of every value in a JSON object."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from _places(value)


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a damaged header, a damaged length of the header, or cut short."""
    (length,) = struct.unpack("<Q", data[:8])
    header, tensors = data[8 : 8 + length].decode(), data[8 + length :]
    kind = rng.randrange(4)
    if kind == 0:
        return struct.pack("<Q", rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63, len(data)])) + data[8:]
    if kind == 1:
        return data[: rng.randrange(len(data))]
    text = damaged_json(header, rng).encode()
    return struct.pack("<Q", len(text)) + text + tensors


# --- Damaged files through the verbs.

PHOTO_VERBS = ("outpaint", "upscale", "denoise", "deblur", "colorize")
REFERENCE_VERBS = ("style", "layout", "silhouette")


@dataclass
class Outcome:
    """How many runs ended how, and what was wrong with a run.

    Attributes:
        endings: counts of (kind of file, exit code).
        faults: one line for each run that did not end as it must.
    """

    endings: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run_command(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command in this process; return the exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            adhere_command(arguments)
        except SystemExit as error:
            return int(error.code or 0), out.getvalue(), err.getvalue()
    raise AssertionError("the command did not exit")


def damage(kind: str, folder: Path, rng: random.Random) -> list[str]:
    """Write a damaged file of a kind into the folder, and return the arguments of a command that reads it."""
    verb, photo, mask, model = "inpaint", "photo.png", "mask.png", "model"
    suffix = rng.choice(list(FORMATS))
    if kind in ("photo", "mask"):
        data = damaged_bytes((folder / f"{kind}.{suffix}").read_bytes(), rng)
        bad = folder / f"bad.{suffix}"
        bad.write_bytes(data)
        photo, mask = (bad.name, mask) if kind == "photo" else (photo, bad.name)
        if kind == "photo" and rng.random() < 0.7 and _has_usual_size(bad):
            verb = rng.choice(PHOTO_VERBS)
    else:
        model = "damaged"
        for name, data in contents_of(folder / "model").items():
            target = folder / model / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        file = folder / model / ("model_index.json" if kind == "model_index" else WEIGHTS)
        if kind == "model_index":
            file.write_text(damaged_json(file.read_text(), rng), encoding="utf-8")
        else:
            file.write_bytes(damaged_safetensors(file.read_bytes(), rng))
        verb = rng.choice(["inpaint", *PHOTO_VERBS, "generate", *REFERENCE_VERBS])
    own = {
        "inpaint": [photo, "--mask", mask],
        "outpaint": [photo, "--left", "4"],
        "upscale": [photo, "--factor", "2"],
        "denoise": [photo],
        "deblur": [photo, "--psf", mask if kind == "mask" else "disk:1"],
        "colorize": [photo],
        "generate": [],
    }
    if kind == "mask" and rng.random() < 0.5:
        verb = rng.choice(["deblur", *REFERENCE_VERBS])
    return [verb, *own.get(verb, ["--reference", mask]), "-o", "out.png", "--model", model, "--steps", "1"]


def _has_usual_size(path: Path) -> bool:
    """Whether a picture has not become larger, which would take long to upscale."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return image.size == (SIZE[1], SIZE[0])
    except Exception:
        return False


def run_files(count: int, seed: int, folder: Path) -> Outcome:
    """Run the verbs on damaged files, each with a seed of its own; the folder is the working folder meanwhile."""
    save_inputs(folder)
    outcome = Outcome()
    previous = Path.cwd()
    os.chdir(folder)
    try:
        for number in range(seed, seed + count):
            rng = random.Random(number)
            kind = KINDS[number % len(KINDS)]
            arguments = damage(kind, folder, rng)
            if fault := _fault(kind, arguments, folder, outcome):
                outcome.faults.append(f"seed {number}, {kind}, {' '.join(arguments)}: {fault}")
    finally:
        os.chdir(previous)
    return outcome


def _fault(kind: str, arguments: list[str], folder: Path, outcome: Outcome) -> str:
    """Run a command; return what is wrong, or an empty text."""
    before = contents_of(folder)
    try:
        code, _, stderr = run_command(arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    outcome.endings[kind, code] += 1
    after = contents_of(folder)
    result = after.pop("out.png", None)
    (folder / "out.png").unlink(missing_ok=True)
    if after != before:
        return "the files in the folder have changed"
    errors = [line for line in stderr.splitlines() if not line.startswith("adhere: note: ")]
    if code == 2 and (len(errors) != 1 or not errors[0].startswith("adhere: ")):
        return f"not one line: {stderr[:300]}"
    if code not in (0, 2) or (code == 0) != (result is not None):
        return f"exit code {code}, {'a' if result else 'no'} result"
    return ""


# --- Signals.


def command_at(number: int, at: int, folder: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run `adhere inpaint` in a process that sends itself a signal at an audit event; 0 is none.

    The prefix is another command that runs it, such as nohup.
    """
    arguments = ["inpaint", "photo.png", "--mask", "mask.png", "-o", "out.png", "--json", "report.json"]
    arguments += ["--model", "model", "--steps", "2"]
    command = [*prefix, sys.executable, "-c", PROGRAM, str(number), str(at), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def count_events(folder: Path) -> int:
    """Return the number of audit events of a run to its end."""
    result = command_at(0, 0, folder)
    (folder / "out.png").unlink()
    (folder / "report.json").unlink()
    return int(result.stderr.split()[-1])


def points_of(events: int, count: int, rng: random.Random) -> list[int]:
    """Return points in a run of so many audit events; half of them are in the last 2 %, where files are written."""
    late = events - events // 50
    return [rng.randint(late, events) if i % 2 else rng.randint(1, events) for i in range(count)]


def run_signal(name: str, at: int, folder: Path) -> str:
    """Send one signal; return what is wrong afterwards, or an empty text."""
    before = contents_of(folder)
    number = int(getattr(signal, f"SIG{name}"))
    result = command_at(number, at, folder)
    if name == "KILL":
        check_writable(folder / "next")  # as at the next start
    after = contents_of(folder)
    picture, report = after.pop("out.png", None), after.pop("report.json", None)
    for file in ("out.png", "report.json"):
        (folder / file).unlink(missing_ok=True)
    if after != before:
        return f"left: {sorted(set(after) ^ set(before))}"
    try:
        if picture is not None:
            Image.open(io.BytesIO(picture)).load()
        if report is not None:
            json.loads(report)
    except (OSError, ValueError) as error:
        return f"a part of a file: {error}"
    if name == "KILL":
        return "" if result.returncode in (-number, 0) else f"exit code {result.returncode}"
    return _fault_of_ending(result, number, (picture is not None, report is not None))


def _fault_of_ending(result: subprocess.CompletedProcess[str], number: int, written: tuple[bool, bool]) -> str:
    if "Traceback" in result.stderr:
        return result.stderr[-300:]
    if written[0] != written[1]:
        return "one of two files is written"
    if result.returncode == 0:  # the signal came while files were renamed, or after the end
        return "" if written[0] else "no result"
    message = "the files are written" if written[0] else "nothing was written"
    if result.returncode != 128 + number or not result.stderr.endswith(f"adhere: stopped; {message}\n"):
        return f"exit code {result.returncode}: {result.stderr[-300:]}"
    return ""


def run_signals(points: int, seed: int, folder: Path) -> list[str]:
    """Send each signal at some points; return one line for each run that did not end as it must."""
    save_inputs(folder)
    rng = random.Random(seed)
    events = count_events(folder)
    faults = []
    for name in SIGNALS:
        for at in points_of(events, points, rng):
            if fault := run_signal(name, at, folder):
                faults.append(f"{name} at event {at} of {events}: {fault}")
        print(f"{name}: {points} points")
    return faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["files", "signals"])
    parser.add_argument("--count", type=int, default=2000, help="damaged files")
    parser.add_argument("--points", type=int, default=15, help="points per signal")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if args.what == "files":
            outcome = run_files(args.count, args.seed, folder)
            for (kind, code), count in sorted(outcome.endings.items()):
                print(f"{kind}, exit code {code}: {count}")
            faults = outcome.faults
        else:
            faults = run_signals(args.points, args.seed, folder)
    print("\n".join(faults) or "no faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
