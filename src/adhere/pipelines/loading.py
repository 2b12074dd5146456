"""Finding and loading a model: a diffusers folder, a hub id, one .safetensors file, or the name of a shipped model.

The family is read from `model_index.json`, or for a single file from its weights. Weights are safetensors only: pickled
weights are refused before they are opened.
"""

import importlib
import inspect
import json
import re
import socket
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.import_utils import is_accelerate_available
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from adhere.core.covariance import StationaryCovariance
from adhere.errors import AdhereError
from adhere.pipelines import experts
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.registry import FAMILIES, family_for
from adhere.pipelines.schedulers import noise_schedule

DEFAULT_MODEL = "adhere-photo"
_MODELS = Path(__file__).parents[1] / "models"
SHIPPED_MODELS = sorted(index.parent.name for index in _MODELS.glob("*/model_index.json"))
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SINGLE_FILES = {  # the start of diffusers' name for a checkpoint's layout -> the pipeline's class
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}


def load(model: str | Path | None = None, **kwargs: Any) -> ConstrainedPipeline:
    """Return the constrained pipeline of a model.

    Args:
        model: a diffusers folder, a hub id, one .safetensors file, 'adhere-photo' or 'adhere-emoji'; None is
            adhere-photo, the photograph model that ships.
        kwargs: for diffusers' `from_pretrained` or `from_single_file`, such as `torch_dtype` (float32 by default),
            `variant`, `config` or components.

    Raises:
        AdhereError: if the model cannot be found, has no safetensors weights, or is of an unknown class.
    """
    if isinstance(model, DiffusionPipeline):
        raise AdhereError("the model is a pipeline in memory: use adhere.from_pipe(pipeline)")
    name = str(DEFAULT_MODEL if model is None else model)
    source = f"model '{name}'"
    kwargs = _with_torch_dtype(kwargs, source)
    path = _MODELS / name if name in SHIPPED_MODELS else Path(name).expanduser()
    if path.is_file():
        return _finish(_from_single_file(path, source, kwargs), source)
    # Without accelerate, diffusers would warn and use the same setting.
    kwargs = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()} | kwargs
    if path.is_dir():
        return _from_folder_or_hub(path, _read_index(path, source), source, {"local_files_only": True} | kwargs)
    if not _HUB_ID.fullmatch(name):
        raise AdhereError(
            f"{source}: no such folder or file; give a diffusers folder, a .safetensors file, a hub id such as "
            f"organization/name, or a shipped model: {', '.join(SHIPPED_MODELS)}"
        )
    if not _hub_is_reachable():
        kwargs = {"local_files_only": True} | kwargs
    with _as_adhere_error(source):
        index = _read_index_from_hub(name, kwargs)
    return _from_folder_or_hub(name, index, source, kwargs)


def from_pipe(pipeline: DiffusionPipeline, **components: Any) -> ConstrainedPipeline:
    """Return the constrained pipeline with the components of a diffusers pipeline in memory; nothing is copied.

    Args:
        pipeline: of a class that `adhere.load` knows, or a subclass.
        components: replace components of the pipeline.

    Raises:
        AdhereError: for a pipeline of an unknown class.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        raise AdhereError(f"the pipeline is a {type(pipeline).__name__}: give a diffusers pipeline, or use adhere.load")
    given = type(pipeline).__name__
    name = next((c.__name__ for c in type(pipeline).__mro__ if c.__name__ in FAMILIES), given)
    family: Any = family_for(name, f"pipeline {given}")
    noise_schedule(pipeline.components["scheduler"])
    parts = pipeline.components | components
    settings = inspect.signature(family.__init__).parameters.keys() - parts.keys()
    return family(**parts, **{name: pipeline.config[name] for name in settings & pipeline.config.keys()})


def _with_torch_dtype(kwargs: dict[str, Any], source: str) -> dict[str, Any]:
    """Return kwargs with a dtype given by name, such as torch_dtype="float16", as a torch dtype."""
    names = {key: kwargs[key] for key in ("torch_dtype", "dtype") if isinstance(kwargs.get(key), str)}
    for key, name in names.items():
        dtype = getattr(torch, name.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise AdhereError(f"{source}: {key} = '{name}': write torch.float32, torch.float16 or torch.bfloat16")
        kwargs = kwargs | {key: dtype}
    return kwargs


def _from_folder_or_hub(
    location: str | Path, index: dict[str, Any], source: str, kwargs: dict[str, Any]
) -> ConstrainedPipeline:
    """Return the pipeline of a folder or a hub id, whose model_index.json is `index`."""
    family: Any = family_for(index.get("_class_name"), source)
    if family.network not in index:
        raise AdhereError(f"{source}: model_index.json has no '{family.network}'; give a complete diffusers pipeline")
    if isinstance(location, Path):
        _check_weights(location, {name: entry for name, entry in index.items() if name not in kwargs}, source)
    with _as_adhere_error(source):
        absent = {name: None for name, entry in index.items() if entry == [None, None]}  # diffusers needs them named
        kwargs = absent | kwargs
        if not {"quantization_config", "device_map"} & kwargs.keys():
            for name in {
                family.network,
                "unet_2",
                "vae",
                "text_encoder",
                "text_encoder_2",
                "text_encoder_3",
            } - kwargs.keys():
                if _is_model(index.get(name)) and index[name][0] in ("diffusers", "transformers", experts.__name__):
                    kwargs[name] = _load_component(location, index[name], name, kwargs)
        pipe = family.from_pretrained(location, **kwargs)
    if "_guidance_scale" in index:  # the model's own recommendation
        pipe.default_guidance_scale = float(index["_guidance_scale"])
    if "_temperature" in index:
        pipe.temperature = float(index["_temperature"])
    if "_prior_spectrum" in index:
        pipe.prior_spectrum = _prior_spectrum(index["_prior_spectrum"], source)
    return _finish(pipe, source)


def _prior_spectrum(values: Any, source: str) -> StationaryCovariance:
    """Return the covariance that a model states for its states: the attributes of `StationaryCovariance` by name."""
    try:
        rows = tuple(tuple(float(value) for value in row) for row in values["channel_covariance"])
        others = {name: float(value) for name, value in values.items() if name != "channel_covariance"}
        return StationaryCovariance(rows, **others)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdhereError(
            f"{source}: '_prior_spectrum' in model_index.json cannot be read ({error}): give 'channel_covariance', a "
            "list of rows, and 'exponent'"
        ) from error


def _finish(pipe: Any, source: str) -> ConstrainedPipeline:
    """Return the pipeline in the memory format that suits it, once its noise levels are known to be readable."""
    with _as_adhere_error(source):
        noise_schedule(pipe.scheduler)
    for name in (pipe.network, "unet_2", "vae"):
        if (module := getattr(pipe, name, None)) is not None:
            module.to(memory_format=torch.channels_last)  # a third faster on CPUs
    return pipe


def _from_single_file(file: Path, source: str, kwargs: dict[str, Any]) -> Any:
    """Return the pipeline of a checkpoint in its authors' own layout.

    diffusers reads the configurations of the components from `config`, a local folder, or from the hub.
    """
    if file.suffix != ".safetensors":
        raise AdhereError(f"{source}: a single file must be .safetensors; pickled weights can run code when loaded")
    config = kwargs.get("config")
    if config is not None and Path(config).is_dir():
        name = _read_index(Path(config), source)["_class_name"]
    else:
        with _as_adhere_error(source):
            name = _class_of(file)
    family: Any = family_for(name, source)
    with _as_adhere_error(source):
        return family.from_single_file(str(file), **kwargs)


def _class_of(file: Path) -> str:
    """Return diffusers' class for a checkpoint, from the names and shapes of its weights."""
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        shapes = {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in names}
    layout = infer_diffusers_model_type(shapes)
    if layout == "v1" and not any(name.startswith("model.diffusion_model.") for name in names):  # diffusers' fallback
        raise AdhereError("a layout that is not understood; add a LoRA to a loaded model by pipe.load_lora_weights")
    return next((name for start, name in _SINGLE_FILES.items() if layout.startswith(start)), layout)


def _read_index(folder: Path, source: str) -> dict[str, Any]:
    index = folder / "model_index.json"
    if not index.is_file():
        raise AdhereError(f"{source}: no model_index.json in it; save the pipeline with diffusers' save_pretrained")
    try:
        components = json.loads(index.read_text(encoding="utf-8"))
        components["_class_name"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise AdhereError(f"{source}: model_index.json cannot be read ({type(error).__name__})") from error
    return components


def _hub_is_reachable() -> bool:
    """Return whether the hub's name resolves; without that, its client would retry for half a minute."""
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        return bool(getproxies()) or bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def _read_index_from_hub(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    names = ("revision", "token", "cache_dir", "local_files_only")
    chosen = {name: kwargs[name] for name in names if name in kwargs}
    try:
        index = huggingface_hub.hf_hub_download(name, "model_index.json", **chosen)
    except LocalEntryNotFoundError as error:
        raise AdhereError("not in the local cache, and the hub cannot be reached; give a folder") from error
    return json.loads(Path(index).read_text(encoding="utf-8"))


def _check_weights(folder: Path, index: dict[str, Any], source: str) -> None:
    """Raise AdhereError unless each model of the index has its configuration and safetensors."""
    for name, entry in index.items():
        part = folder / name
        if not _is_model(entry):
            continue
        if not (part / "config.json").is_file():
            raise AdhereError(f"{source}: {name}/config.json is missing; save the pipeline with save_pretrained")
        if any(part.glob("*.safetensors")):
            continue
        if any(file for pattern in ("*.bin", "*.pt", "*.ckpt") for file in part.glob(pattern)):
            raise AdhereError(
                f"{source}: the weights in {name}/ are pickled, which can run code when loaded; "
                "convert them with diffusers' save_pretrained(safe_serialization=True)"
            )
        raise AdhereError(f"{source}: no weights (*.safetensors) in {name}/")


def _is_model(entry: Any) -> bool:
    """Return whether an entry of model_index.json, [library, class], is a model with weights."""
    if not isinstance(entry, list) or None in entry:
        return False
    return not entry[1].endswith(("Scheduler", "Tokenizer", "TokenizerFast", "ImageProcessor", "FeatureExtractor"))


def _load_component(location: str | Path, entry: list[str], name: str, kwargs: dict[str, Any]) -> Any:
    """Return one component; a file that lacks some of its weights is refused, where the libraries only warn."""
    library, class_name = entry
    options = [
        "use_safetensors",
        "local_files_only",
        "torch_dtype",
        "dtype",
        "variant",
        "revision",
        "token",
        "cache_dir",
    ]
    if library != "transformers":
        options.append("low_cpu_mem_usage")
    chosen = {key: kwargs[key] for key in options if key in kwargs}
    dtype = torch.float32
    for key in {"torch_dtype", "dtype"} & chosen.keys():
        given = chosen[key]
        dtype = chosen[key] = given.get(name, given.get("default", dtype)) if isinstance(given, dict) else given
    model_class = getattr(importlib.import_module(library), class_name)
    loaded, info = model_class.from_pretrained(location, subfolder=name, output_loading_info=True, **chosen)
    if missing := sorted(info["missing_keys"]):
        raise AdhereError(
            f"the weights in {name}/ lack {len(missing)} entries, such as '{missing[0]}'; copy or save it again"
        )
    # Without accelerate, diffusers leaves a transformer in the dtype it was saved in.
    return loaded if loaded.dtype == dtype else loaded.to(dtype)


@contextmanager
def _as_adhere_error(source: str) -> Iterator[None]:
    """Raise whatever diffusers raises as an AdhereError of one line that names the model."""
    try:
        with warnings.catch_warnings():
            # Newer versions of diffusers prefer `dtype`, which older ones do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    except AdhereError as error:
        raise AdhereError(f"{source}: {error}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise AdhereError(f"{source} cannot be loaded: {reason}") from error
