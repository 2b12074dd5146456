"""Picture files of every mode for the tests; contents are random, from a fixed seed."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adhere.errors import AdhereError

SIZE = HEIGHT, WIDTH = 24, 31
OPTIONS: dict[str, dict] = {".webp": {"lossless": True, "exact": True}}


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """Return integers that are uniform over the whole range of the dtype."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def image_of(mode: str, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Return a PIL image of any mode with random values."""
    if mode == "1":
        return Image.fromarray(noise(height, width) > 127)
    if mode == "I;16":
        return Image.fromarray(noise(height, width, dtype=np.uint16))
    if mode == "I":
        return Image.fromarray(noise(height, width, dtype=np.uint16).astype(np.int32))
    if mode == "F":
        return Image.fromarray(noise(height, width).astype(np.float32))
    if mode == "P":
        image = Image.frombytes("P", (width, height), noise(height, width).tobytes())
        image.putpalette(noise(768, seed=1).tobytes())
        return image
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "PA":
        image = Image.frombytes("PA", (width, height), noise(height, width, 2).tobytes())
        image.putpalette(noise(768, seed=1).tobytes())
        return image
    return Image.frombytes(mode, (width, height), noise(height, width, bands).tobytes())


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG file of this size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    first = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + first + struct.pack(">I", 1000) + b"IDAT"


def hole(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a mask that is True in a rectangle away from the edges."""
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4] = True
    return mask


def written(folder: Path, mode: str, suffix: str) -> Path:
    """Write a picture file, lossless where the format can be, and return its path."""
    path = folder / f"input{suffix}"
    image_of(mode).save(path, **OPTIONS.get(suffix, {}))
    return path


def refusal(function: Callable[..., object], *args: object, **kwargs: object) -> str:
    """Return the message of the AdhereError that the call must raise: one line."""
    with pytest.raises(AdhereError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message
