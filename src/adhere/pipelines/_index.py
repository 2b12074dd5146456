"""The models that ship, and model_index.json, which names a pipeline class. Imports neither torch nor diffusers."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

from adhere.errors import AdhereError, InvalidInput

MODELS = Path(__file__).parents[1] / "models"
SHIPPED_MODELS = sorted(index.parent.name for index in MODELS.glob("*/model_index.json"))


def read_index(folder: Path, source: str) -> dict[str, Any]:
    """Return the model_index.json of a folder."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise AdhereError(f"{source}: no model_index.json in it; save the pipeline with diffusers' save_pretrained")
    try:
        return parse_index(index.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        reason = textwrap.shorten(str(error), 100) if isinstance(error, InvalidInput) else "it is no valid JSON text"
        raise AdhereError(f"{source}: model_index.json cannot be read: {reason}") from error


def parse_index(text: bytes) -> dict[str, Any]:
    """Return the entries of a model_index.json.

    Raises:
        ValueError: unless the text is a JSON object with a class name.
        RecursionError: if it is nested too deeply.
    """
    index = json.loads(text.decode("utf-8"))
    if not isinstance(index, dict) or "_class_name" not in index:
        raise InvalidInput("it has no _class_name; save the pipeline with diffusers' save_pretrained")
    return index


def base_class(class_name: str) -> str:
    """Return the text-to-image class of diffusers' inpainting and image-to-image pipelines, others as they are."""
    return re.sub("(Img2Img|Inpaint)Pipeline$", "Pipeline", class_name)
