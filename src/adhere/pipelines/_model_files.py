"""What the files of a model state, read before a component is loaded: model_index.json, weights, headers."""

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError, infer_diffusers_model_type
from safetensors import SafetensorError, safe_open

from adhere._warnings import ignored_library_warnings
from adhere.core._checks import is_out_of_memory
from adhere.core.covariance import StationaryCovariance
from adhere.errors import AdhereError, OutOfMemory

REFINER = (
    "this is the refiner of Stable Diffusion XL, which only finishes pictures of the base model and was not trained at "
    "high noise; use the base model, such as stabilityai/stable-diffusion-xl-base-1.0"
)
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(-\d{5}-of-\d{5})?(\.(?P<variant>[^.]+?))?(-\d{5}-of-\d{5})?\.safetensors"
)
_SINGLE_FILES = {  # the start of diffusers' name for a checkpoint's layout -> the pipeline's class
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
    "xl_base": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
}
_PREDICTION_TYPES = {  # in the header of a file -> diffusers' name
    "epsilon": "epsilon",
    "v": "v_prediction",
    "v_prediction": "v_prediction",
}
_LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError),
    *(SafetensorError, SingleFileComponentError),
)
_STATEMENTS = {  # entries of model_index.json that diffusers does not know -> attributes of a pipeline
    "_guidance_scale": "default_guidance_scale",
    "_temperature": "temperature",
    "_prior_spectrum": "prior_spectrum",
}


@contextmanager
def as_adhere_error(source: str) -> Iterator[None]:
    """Return a context that converts any error of diffusers to an AdhereError of one line that names the model."""
    try:
        with ignored_library_warnings():
            yield
    except AdhereError as error:
        message = str(error)
        raise AdhereError(message if message.startswith(source) else f"{source}: {message}") from error
    except _LOADING_ERRORS as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"{source}: out of memory; give a smaller model, or torch_dtype=torch.float16") from error
        reason = textwrap.shorten(str(error) or type(error).__name__, 300)
        raise AdhereError(f"{source} cannot be loaded: {reason}") from error


def check_index(index: dict[str, Any], family: Any, given: Mapping[str, Any], source: str) -> None:
    """Raise AdhereError unless each component of the family is named, as [library, class], or given.

    [null, null] stands for a component that is left out: an optional one, or a text encoder, without which the prompt
    must be given as embeddings.
    """
    components, _ = family._get_signature_keys(family)
    left_out = {name for name in components if name.startswith(("text_encoder", "tokenizer"))}
    left_out.update(family._optional_components)
    for name in components - given.keys():
        entry = index.get(name)
        if entry == [None, None] or name not in index:
            if name not in left_out:
                raise AdhereError(f"{source}: model_index.json has no '{name}'; give a complete diffusers pipeline")
        elif not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(one, str) for one in entry)):
            raise AdhereError(
                f"{source}: '{name}' in model_index.json is {textwrap.shorten(json.dumps(entry), 100)}: it must be "
                "[library, class]"
            )


def number_in(index: dict[str, Any], name: str, least: float, source: str) -> float:
    """Return a number of model_index.json; raise AdhereError unless it is at least `least`, and below 1e9."""
    value = index[name]
    if (
        not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value < 1e9
    ):  # NaN is refused, too
        shown = textwrap.shorten(json.dumps(value), 100)
        raise AdhereError(f"{source}: '{name}' in model_index.json is {shown}: give a number of at least {least:g}")
    return float(value)


def prior_spectrum_in(index: dict[str, Any], source: str) -> StationaryCovariance:
    """Return the covariance in model_index.json: the attributes of `StationaryCovariance` by name."""
    values = index["_prior_spectrum"]
    try:
        rows = tuple(tuple(float(value) for value in row) for row in values["channel_covariance"])
        others = {name: float(value) for name, value in values.items() if name != "channel_covariance"}
        return StationaryCovariance(rows, **others)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AdhereError(
            f"{source}: '_prior_spectrum' in model_index.json cannot be read ({error}): give 'channel_covariance', a "
            "list of rows, and 'exponent'"
        ) from error


def statements_of(pipe: object) -> dict[str, Any]:
    """Return the settings that a pipeline's model states, as entries of model_index.json."""
    stated = {entry: vars(pipe)[name] for entry, name in _STATEMENTS.items() if vars(pipe).get(name) is not None}
    return {key: asdict(one) if isinstance(one, StationaryCovariance) else one for key, one in stated.items()}


def copy_statements(source: object, target: Any) -> Any:
    """Return a pipeline with the settings that the model of another pipeline of the same model states."""
    for name in _STATEMENTS.values():
        if name in vars(source):
            setattr(target, name, vars(source)[name])
    return target


def is_model(entry: Any) -> bool:
    """Return whether an entry of model_index.json, [library, class], is a model with weights."""
    if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(one, str) for one in entry):
        return False
    return re.search("(Scheduler|(Tokenizer|ImageProcessor|FeatureExtractor)(Fast|Pil)?)$", entry[1]) is None


def check_weights(folder: Path, index: dict[str, Any], variant: str | None, source: str) -> None:
    """Raise AdhereError unless each model of the index has its configuration and safetensors."""
    parts = [folder / name for name, entry in index.items() if is_model(entry)]
    for part in parts:
        name = part.name if part != folder else "."
        if not (part / "config.json").is_file():
            raise AdhereError(f"{source}: {name}/config.json is missing; save the pipeline with save_pretrained")
        if any(part.glob("*.safetensors")):
            files = [file.name for file in part.iterdir()]
            check_variants(name, files, variant, source)
            chosen = variant if variant in variants_of(files) else None
            for file in (file for file in files if chosen in variants_of([file])):
                check_header(part / file, f"{source}: {name}/{file}")
            continue
        if any(part.glob("*.gguf")):
            raise AdhereError(
                f"{source}: the weights in {name}/ are GGUF, which is not supported: give a folder with *.safetensors"
            )
        if any(file for pattern in ("*.bin", "*.pt", "*.ckpt") for file in part.glob(pattern)):
            raise AdhereError(
                f"{source}: the weights in {name}/ are pickled, which can run code when loaded; "
                "convert them with diffusers' save_pretrained(safe_serialization=True)"
            )
        raise AdhereError(f"{source}: no weights (*.safetensors) in {name}/")
    there = variants_of(file.name for part in parts for file in part.iterdir())
    if variant is not None and variant not in there:
        names = ", ".join(f"'{one}'" for one in sorted(there - {None}, key=str)) or "none"
        raise AdhereError(f"{source}: no weights of the variant '{variant}'; there is {names}: leave variant out")


def check_configurations(folder: Path, index: dict[str, Any]) -> None:
    """Raise AdhereError unless the folder has the configuration of each component, which a single file needs."""
    for name, entry in index.items():
        pattern = "config.json" if is_model(entry) else "*.json"
        if isinstance(entry, list) and None not in entry and not any((folder / name).glob(pattern)):
            raise AdhereError(f"config '{folder}' has no configuration of '{name}'; give a complete diffusers folder")


def check_variants(part: str, files: Iterable[str], variant: str | None, source: str) -> None:
    """Raise AdhereError if a component has weights, but neither the plain ones nor those of the variant."""
    variants = variants_of(files)
    if variants and not {None, variant} & variants:
        one = sorted(map(str, variants))[0]
        raise AdhereError(
            f"{source}: {part}/ has only the variant '{one}' of its weights: give variant='{one}' (--variant {one} on "
            "the command line)"
        )


def check_header(file: Path, shown: str) -> None:
    """Raise AdhereError if the header of a .safetensors file cannot be read, or does not fit the size of the file."""
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        with open(file, "rb") as opened:
            is_pointer = opened.read(64).startswith(b"version https://git-lfs")
        reason = "a pointer of git lfs" if is_pointer else str(error).removeprefix("Error while deserializing header: ")
        raise AdhereError(
            f"{shown} cannot be loaded: damaged or cut short ({reason}); download or copy it again"
        ) from error


def variants_of(files: Iterable[str]) -> set[str | None]:
    """Return the variants of the weights in a list of file names, such as 'fp16'; None is the one without a name."""
    return {match["variant"] for file in files if (match := _WEIGHTS.fullmatch(file))}


def class_of(file: Path) -> str:
    """Return diffusers' class for a checkpoint, from the names and shapes of its weights."""
    with safe_open(file, "pt") as weights:
        names = weights.keys()
        shapes = {name: torch.empty(weights.get_slice(name).get_shape(), device="meta") for name in names}
    layout = infer_diffusers_model_type(shapes)
    if layout == "xl_refiner":
        raise AdhereError(REFINER)
    if layout == "v1" and not any(name.startswith("model.diffusion_model.") for name in names):  # diffusers' fallback
        raise AdhereError("a layout that is not understood; add a LoRA to a loaded model by pipe.load_lora_weights")
    return next((name for start, name in _SINGLE_FILES.items() if layout.startswith(start)), layout)


def scheduler_settings_in(file: Path) -> dict[str, Any]:
    """Return what a checkpoint states about its noise levels, as settings of a diffusers scheduler.

    An empty entry 'v_pred' means that the network predicts v, and 'ztsnr' that it was trained with zero terminal SNR.
    The header may hold 'modelspec.prediction_type' (Stability AI's model metadata specification).
    """
    with safe_open(file, "pt") as weights:
        names, header = set(weights.keys()), weights.metadata() or {}
    stated = "v" if "v_pred" in names else header.get("modelspec.prediction_type", "")
    settings: dict[str, Any] = {}
    if stated in _PREDICTION_TYPES:
        settings["prediction_type"] = _PREDICTION_TYPES[stated]
    if "ztsnr" in names:
        settings["rescale_betas_zero_snr"] = True
    return settings
