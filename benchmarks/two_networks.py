"""Pictures of adhere-photo with one network and with two, and of the states around the noise level where they change.

    python -m benchmarks.two_networks --to docs/images

two-networks.png: damaged, inpainted by `unet` alone, by both networks, original; four photographs as in the demo, and
ten other pictures of scikit-image, of which `motorcycle_left` also validates trainings. two-networks-steps.png: the
denoised picture at each noise level for a flat, a dark and a textured picture, with the log-SNR and the name of the
network above.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data
from torch import Tensor

import adhere
from adhere.core.schedules import log_snr
from adhere.pipelines.base import ConstrainedPipeline
from benchmarks import masks
from benchmarks.grids import grid, label, to_uint8
from benchmarks.photo import center_crop, photograph

DEMO = (("chelsea", "text"), ("coffee", "strokes"), ("astronaut", "strokes"), ("rocket", "hole"))
FILES = ("motorcycle_left.png", "retina.jpg", "hubble_deep_field.jpg", "ihc.png", "grass.png", "camera.png",
         "gravel.png", "coins.png", "brick.png", "moon.png")  # fmt: skip
CROP = slice(64, 192)  # of the states


def other_picture(name: str) -> np.ndarray:
    """Return the middle of a file of scikit-image, (256, 256, 3) uint8."""
    with Image.open(Path(data.__file__).with_name(name)) as image:
        return center_crop(np.asarray(image.convert("RGB")))


def inpainted(pipe: ConstrainedPipeline, picture: np.ndarray, mask_name: str) -> np.ndarray:
    task = adhere.Inpaint(
        np.where(masks.load(mask_name)[..., None], 0, picture).astype(np.uint8), masks.load(mask_name)
    )
    return np.asarray(pipe(task, generator=torch.Generator().manual_seed(0)).images[0])


def comparison(one: ConstrainedPipeline, two: ConstrainedPipeline) -> Image.Image:
    """Return the pictures before and after, two of them in a row."""
    names = ("text", "strokes", "hole")
    pictures = [(photograph(name), mask) for name, mask in DEMO]
    pictures += [(other_picture(name), names[i % 3]) for i, name in enumerate(FILES)]
    strips = []
    for picture, mask in pictures:
        damaged = np.where(masks.load(mask)[..., None], 255, picture).astype(np.uint8)
        strips.append([damaged, inpainted(one, picture, mask), inpainted(two, picture, mask), picture])
    titles = [label(title, 24, 256) for title in ("damaged", "one network", "two networks", "original")]
    gap = np.full((256, 16, 3), 255, np.uint8)
    rows = [[*a, gap, *b] for a, b in zip(strips[::2], strips[1::2], strict=True)]
    image = grid([[*titles, gap[:24], *titles], *rows])
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def states(pipe: ConstrainedPipeline, picture: np.ndarray) -> tuple[list[str], list[np.ndarray]]:
    """Return the title of each step and the middle of its denoised picture, under the mask of strokes.

    A title has the log-SNR of the step and the network that is evaluated. Smaller pictures have a higher log-SNR.
    """
    titles, found, evaluated = [], [], []
    schedule = pipe.schedule()
    hooks = [
        pipe.components[name].register_forward_hook(lambda *_, name=name: evaluated.append(name))
        for name in ("unet", "unet_2")
    ]

    def keep(_: object, step: int, t: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        titles.append(f"{log_snr(schedule, t):.2f}  {evaluated[-1]}")
        found.append(to_uint8(tensors["x0"])[0][CROP, CROP])
        return {}

    mask = masks.load("strokes")
    task = adhere.Inpaint(np.where(mask[..., None], 0, picture).astype(np.uint8), mask)
    pipe(
        task,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["x0"],
    )
    for hook in hooks:
        hook.remove()
    return titles, found


def steps(pipe: ConstrainedPipeline, pictures: list[np.ndarray]) -> Image.Image:
    """Return the states of each picture in a row, under the log-SNR of each step and the network that it uses."""
    rows, titles = [], []
    for picture in pictures:
        titles, found = states(pipe, picture)
        rows.append(found)
    side = CROP.stop - CROP.start
    return grid([[label(title, 24, side) for title in titles], *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, help="folder of the two pictures")
    folder: Path = parser.parse_args().to
    torch.set_flush_denormal(True)
    two, one = adhere.load(), adhere.load(unet_2=None)
    for pipe in (one, two):
        pipe.set_progress_bar_config(disable=True)
    flat = np.full((256, 256, 3), (96, 128, 160), np.uint8)
    dark = (photograph("chelsea") // 6).astype(np.uint8)
    steps(two, [flat, dark, other_picture("grass.png")]).save(folder / "two-networks-steps.png", optimize=True)
    comparison(one, two).save(folder / "two-networks.png", optimize=True)


if __name__ == "__main__":
    main()
