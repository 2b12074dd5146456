"""Finding and loading a model: a diffusers folder, a hub id, one .safetensors file, or a name that ships.

The family is read from `model_index.json`, or for a single file from its weights. Weights are safetensors only: pickled
ones are refused before anything is opened.
"""

import importlib
import json
import re
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from diffusers.utils.import_utils import is_accelerate_available
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from adhere.errors import AdhereError
from adhere.families import family_for
from adhere.families.schedules import noise_schedule

if TYPE_CHECKING:
    from adhere.pipeline import ConstrainedPipeline

MODELS = Path(__file__).parent / "models"
SHIPPED = sorted(index.parent.name for index in MODELS.glob("*/model_index.json"))
DEFAULT_MODEL = "adhere-photo"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SINGLE_FILES = {  # the start of diffusers' name for a checkpoint's layout -> the pipeline's class
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}


def load(base: "type[ConstrainedPipeline]", model: str | Path | None, arguments: dict[str, Any]) -> Any:
    """`ConstrainedPipeline.from_pretrained`: find the family, check what can be checked, let diffusers load."""
    name = str(model or DEFAULT_MODEL)
    path = MODELS / name if name in SHIPPED else Path(name)
    what = f"model '{name}'"
    if path.is_file():
        return _ready(_single_file(base, path, what, arguments), what)
    # without accelerate, diffusers would warn and fall back to exactly this
    arguments = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()} | arguments
    if path.is_dir():
        source: str | Path = path
        arguments = {"local_files_only": True} | arguments
        index = _index(path, what)
    elif HUB_ID.fullmatch(name):
        source = name
        if not _hub_has_an_address():
            arguments = {"local_files_only": True} | arguments
        with _explained(what):
            index = _index_on_hub(name, arguments)
    else:
        raise AdhereError(
            f"{what}: no such folder or file; give a diffusers folder, a .safetensors file, a hub id such as "
            f"organisation/name, or one that ships: {', '.join(SHIPPED)}"
        )
    family = _family(base, index.get("_class_name"), what)
    if family.network not in index:
        raise AdhereError(f"{what}: model_index.json names no '{family.network}'; give a complete diffusers pipeline")
    if isinstance(source, Path):
        _check_weights(source, {n: e for n, e in index.items() if n not in arguments}, what)
    with _explained(what):
        absent = {name: None for name, entry in index.items() if entry == [None, None]}  # diffusers wants it said
        arguments = absent | arguments
        if not {"quantization_config", "device_map"} & arguments.keys():
            for name in {family.network, "vae", "text_encoder", "text_encoder_2", "text_encoder_3"} - arguments.keys():
                if _is_model(index.get(name)) and index[name][0] in ("diffusers", "transformers"):
                    arguments[name] = _whole_model(source, index[name], name, arguments)
        pipe: Any = super(_base(), family).from_pretrained(source, **arguments)  # type: ignore[misc]
    if "_guidance_scale" in index:  # the model's own word on what suits it
        pipe.default_guidance = float(index["_guidance_scale"])
    return _ready(pipe, what)


def _ready(pipe: Any, what: str) -> Any:
    """Refuses noise levels that cannot be read, before anything is sampled."""
    with _explained(what):
        noise_schedule(pipe.scheduler)
    for name in (pipe.network, "vae"):
        if (module := getattr(pipe, name, None)) is not None:
            module.to(memory_format=torch.channels_last)  # convolutions: faster on CPUs, networks' by a third
    return pipe


def _base() -> type:
    from adhere.pipeline import ConstrainedPipeline

    return ConstrainedPipeline


def _family(base: "type[ConstrainedPipeline]", name: object, what: str) -> "type[ConstrainedPipeline]":
    family = family_for(name, what)
    if not issubclass(family, base):
        raise AdhereError(f"{what} is of {family.__name__}: load it with ConstrainedPipeline.from_pretrained")
    return family


def _single_file(base: "type[ConstrainedPipeline]", file: Path, what: str, arguments: dict[str, Any]) -> Any:
    """A checkpoint in its authors' own layout. diffusers reads the components' configurations from `config`, a local
    folder, or from the hub."""
    if file.suffix != ".safetensors":
        raise AdhereError(f"{what}: a single file must be .safetensors; pickled weights can run code when loaded")
    config = arguments.get("config")
    if config is not None and Path(config).is_dir():
        name = _index(Path(config), what)["_class_name"]
    else:
        with _explained(what):
            name = _class_of(file)
    family: Any = _family(base, name, what)
    with _explained(what):
        return family.from_single_file(str(file), **arguments)


def _class_of(file: Path) -> str:
    """diffusers' class for a checkpoint's layout, read from names and shapes alone."""
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        shapes = {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in names}
    layout = infer_diffusers_model_type(shapes)
    if layout == "v1" and not any(name.startswith("model.diffusion_model.") for name in names):  # its last resort
        raise AdhereError("a layout that is not understood; a LoRA goes on top of a model, by pipe.load_lora_weights")
    return next((name for start, name in SINGLE_FILES.items() if layout.startswith(start)), layout)


def _index(folder: Path, what: str) -> dict[str, Any]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise AdhereError(f"{what}: no model_index.json in it; save the pipeline with diffusers' save_pretrained")
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
        components["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AdhereError(f"{what}: model_index.json cannot be read ({type(error).__name__})") from error
    return components


def _hub_has_an_address() -> bool:
    """Without one, the hub's client would try again and again, for half a minute."""
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        return bool(getproxies()) or bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _index_on_hub(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    wanted = ("revision", "token", "cache_dir", "local_files_only")
    chosen = {name: arguments[name] for name in wanted if name in arguments}
    try:
        index = huggingface_hub.hf_hub_download(name, "model_index.json", **chosen)
    except LocalEntryNotFoundError as error:
        raise AdhereError("not in the local cache, and the hub cannot be reached; give a folder") from error
    return json.loads(Path(index).read_text(encoding="utf-8"))


def _check_weights(folder: Path, index: dict[str, Any], what: str) -> None:
    """Every model the index names has its configuration and safetensors."""
    for name, entry in index.items():
        part = folder / name
        if not _is_model(entry):
            continue
        if not (part / "config.json").is_file():
            raise AdhereError(f"{what}: {name}/config.json is missing; save the pipeline with save_pretrained")
        if any(part.glob("*.safetensors")):
            continue
        if any(file for pattern in ("*.bin", "*.pt", "*.ckpt") for file in part.glob(pattern)):
            raise AdhereError(
                f"{what}: the weights in {name}/ are pickled, which can run code when loaded; "
                "convert them with diffusers' save_pretrained(safe_serialization=True)"
            )
        raise AdhereError(f"{what}: no weights (*.safetensors) in {name}/")


def _is_model(entry: Any) -> bool:
    """Whether an entry of model_index.json, [library, class], is of a model with weights."""
    if not isinstance(entry, list) or None in entry:
        return False
    return not entry[1].endswith(("Scheduler", "Tokenizer", "TokenizerFast", "ImageProcessor", "FeatureExtractor"))


def _whole_model(source: str | Path, entry: list[str], name: str, arguments: dict[str, Any]) -> Any:
    """Load one model; a file that lacks some of its weights is refused: diffusers and transformers only warn."""
    library, class_name = entry
    wanted = [
        "use_safetensors",
        "local_files_only",
        "torch_dtype",
        "dtype",
        "variant",
        "revision",
        "token",
        "cache_dir",
    ]
    if library == "diffusers":
        wanted.append("low_cpu_mem_usage")
    chosen = {key: arguments[key] for key in wanted if key in arguments}
    dtype = torch.float32
    for key in {"torch_dtype", "dtype"} & chosen.keys():
        given = chosen[key]
        dtype = chosen[key] = given.get(name, given.get("default", dtype)) if isinstance(given, dict) else given
    model_class = getattr(importlib.import_module(library), class_name)
    loaded, info = model_class.from_pretrained(source, subfolder=name, output_loading_info=True, **chosen)
    if missing := sorted(info["missing_keys"]):
        raise AdhereError(
            f"the weights in {name}/ lack {len(missing)} entries, such as '{missing[0]}'; copy or save it again"
        )
    # without accelerate, diffusers leaves a transformer as it was saved
    return loaded if loaded.dtype == dtype else loaded.to(dtype)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever diffusers raises, as one line that names the model."""
    try:
        yield
    except AdhereError as error:
        raise AdhereError(f"{what}: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise AdhereError(f"{what} cannot be loaded: {reason}") from error
