"""Finding and loading a model: a diffusers folder, a hub id, one .safetensors file, or the name of a shipped model.

The family is read from `model_index.json`, or for a single file from its weights. Weights are safetensors only: pickled
weights are refused before they are opened.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.utils.import_utils import is_accelerate_available
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError

from adhere.errors import AdhereError
from adhere.pipelines import experts
from adhere.pipelines._components import HUB_ID, hub_is_reachable, hub_options, load_component, with_autoencoder
from adhere.pipelines._foreign_files import refuse_file, refuse_folder, refuse_format
from adhere.pipelines._index import MODELS, SHIPPED_MODELS, base_class, parse_index, read_index
from adhere.pipelines._model_files import (
    REFINER,
    as_adhere_error,
    check_configurations,
    check_header,
    check_index,
    check_variants,
    check_weights,
    class_of,
    copy_statements,
    is_model,
    number_in,
    prior_spectrum_in,
    scheduler_settings_in,
)
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.registry import FAMILIES, family_for
from adhere.pipelines.schedulers import noise_schedule

_DEFAULT_MODEL = "adhere-photo"
_COMPONENTS = {"unet_2", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"}  # beside the network


def load(model: str | Path | None = None, **kwargs: Any) -> ConstrainedPipeline:
    """Return the constrained pipeline of a model.

    Args:
        model: a diffusers folder, a hub id, one .safetensors file, 'adhere-photo' or 'adhere-emoji'; None is
            adhere-photo, the photograph model that ships.
        kwargs: keyword arguments of diffusers' `from_pretrained` or `from_single_file`, such as `torch_dtype` (float32
            by default), `variant`, `config` or components. `vae` may also be the folder, the hub id or the .safetensors
            file of an autoencoder.

    Raises:
        AdhereError: if the model cannot be found, has no safetensors weights, or is of an unknown class.
    """
    if isinstance(model, DiffusionPipeline):
        raise AdhereError("the model is a pipeline in memory: use adhere.from_pipe(pipeline)")
    name = str(_DEFAULT_MODEL if model is None else model)
    shown = " ".join(name.splitlines())
    source = f"model '{shown if len(shown) <= 300 else shown[:100] + '...'}'"
    kwargs = _with_torch_dtype(kwargs, source)
    if "device" in kwargs:
        raise AdhereError(f"{source}: load has no argument 'device': write adhere.load(model).to({kwargs['device']!r})")
    config = kwargs.get("config")
    for place, text in ((source, name), (f"{source}: config '{config}'", str(config))):
        if "://" in text or re.match("https?:/", text):  # Path("https://a") is "https:/a"
            raise AdhereError(f"{place}: is a URL; download the model first, or give its hub id, organization/name")
    with as_adhere_error(source):  # a folder may be unreadable, a name too long for a file
        path = MODELS / name if name in SHIPPED_MODELS else Path(name).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    if is_file:
        return _finish(_from_single_file(path, source, kwargs), source)
    if "config" in kwargs:
        raise AdhereError(f"{source}: is no single file, so it has a configuration of its own: leave config out")
    # Without accelerate, diffusers would warn and use the same setting.
    kwargs = {"use_safetensors": True, "low_cpu_mem_usage": is_accelerate_available()} | kwargs
    if is_folder:
        with as_adhere_error(source):
            if not (path / "model_index.json").is_file():
                refuse_folder(path, source)
            index = read_index(path, source)
        return _from_folder_or_hub(path, index, source, kwargs)
    if not HUB_ID.fullmatch(name):
        raise AdhereError(
            f"{source}: no such folder or file; give a diffusers folder, a .safetensors file, a hub id such as "
            f"organization/name, or a shipped model: {', '.join(SHIPPED_MODELS)}"
        )
    if not hub_is_reachable():
        kwargs = {"local_files_only": True} | kwargs
    with as_adhere_error(source):
        index = _read_index_from_hub(name, kwargs)
    return _from_folder_or_hub(name, index, source, kwargs)


def from_pipe(pipeline: DiffusionPipeline, **components: Any) -> ConstrainedPipeline:
    """Return the constrained pipeline with the components of a diffusers pipeline in memory; nothing is copied.

    Args:
        pipeline: an object of a class that `adhere.load` knows, of a subclass, or of the inpainting or image-to-image
            pipeline of such a model.
        components: new components, which replace those of the pipeline.

    Raises:
        AdhereError: for a pipeline of an unknown class.
    """
    if not isinstance(pipeline, DiffusionPipeline):
        raise AdhereError(f"the pipeline is a {type(pipeline).__name__}: give a diffusers pipeline, or use adhere.load")
    given = type(pipeline).__name__
    source = f"pipeline {given}"
    name = next((c.__name__ for c in type(pipeline).__mro__ if base_class(c.__name__) in FAMILIES), given)
    family: Any = family_for(name, source)
    _refuse_refiner(pipeline.config, source)
    parts = pipeline.components | components
    noise_schedule(parts["scheduler"])
    settings = inspect.signature(family.__init__).parameters.keys() - parts.keys()
    pipe = family(**parts, **{name: pipeline.config[name] for name in settings & pipeline.config.keys()})
    pipe.check_network()
    return copy_statements(pipeline, pipe)


def _components_of(family: Any) -> set[str]:
    return set(family._get_signature_keys(family)[0])


def _without_safety_checker(kwargs: dict[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """Return kwargs without the safety checker in Stable Diffusion's folder, which has 1.2 GB and is never used."""
    if "safety_checker" in kwargs or not is_model(index.get("safety_checker")):
        return kwargs
    return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False} | kwargs


def _refuse_refiner(settings: Mapping[str, Any], source: str) -> None:
    if settings.get("requires_aesthetics_score"):
        raise AdhereError(f"{source}: {REFINER}")


def _with_torch_dtype(kwargs: dict[str, Any], source: str) -> dict[str, Any]:
    """Return kwargs with a dtype given by name, such as torch_dtype="float16", as a torch dtype.

    `dtype` becomes `torch_dtype`, the name that all versions of diffusers know.
    """
    names = {key: kwargs[key] for key in ("torch_dtype", "dtype") if isinstance(kwargs.get(key), str)}
    for key, name in names.items():
        dtype = getattr(torch, name.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype):
            raise AdhereError(f"{source}: {key} = '{name}': write torch.float32, torch.float16 or torch.bfloat16")
        kwargs = kwargs | {key: dtype}
    names = {"dtype": "torch_dtype"}
    return {names.get(key, key): value for key, value in kwargs.items()}


def _from_folder_or_hub(
    location: str | Path, index: dict[str, Any], source: str, kwargs: dict[str, Any]
) -> ConstrainedPipeline:
    """Return the pipeline of a folder or a hub id, whose model_index.json is `index`."""
    family: Any = family_for(index.get("_class_name"), source)
    _refuse_refiner(index, source)
    kwargs = with_autoencoder(_without_safety_checker(kwargs, index), _components_of(family), source, location)
    if isinstance(location, Path):
        kwargs = {"local_files_only": True} | kwargs
    check_index(index, family, kwargs, source)
    guidance_scale = number_in(index, "_guidance_scale", 0.01, source) if "_guidance_scale" in index else None
    temperature = number_in(index, "_temperature", 0.0, source) if "_temperature" in index else None
    prior_spectrum = prior_spectrum_in(index, source) if "_prior_spectrum" in index else None
    if isinstance(location, Path):
        given = {name: entry for name, entry in index.items() if name not in kwargs}
        with as_adhere_error(source):
            check_weights(location, given, kwargs.get("variant"), source)
    hub_errors = nullcontext() if isinstance(location, Path) else _hub_errors(location, index, kwargs, source)
    with as_adhere_error(source), hub_errors:
        absent = {name: None for name, entry in index.items() if entry == [None, None]}  # diffusers needs them named
        kwargs = absent | kwargs
        if not {"quantization_config", "device_map"} & kwargs.keys():
            for name in ({family.network} | _COMPONENTS) - kwargs.keys():
                if is_model(index.get(name)) and index[name][0] in ("diffusers", "transformers", experts.__name__):
                    kwargs[name] = load_component(location, index[name], name, kwargs, source)
        pipe = family.from_pretrained(location, **kwargs)
    if guidance_scale is not None:  # the model's own recommendation
        pipe.default_guidance_scale = guidance_scale
    if temperature is not None:
        pipe.temperature = temperature
    if prior_spectrum is not None:
        pipe.prior_spectrum = prior_spectrum
    return _finish(pipe, source)


@contextmanager
def _hub_errors(name: str, index: dict[str, Any], kwargs: dict[str, Any], source: str) -> Iterator[None]:
    """Return a context that explains errors of loading a hub id: a missing variant, or a damaged file."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError):
        with suppress(OSError):
            cached = Path(huggingface_hub.hf_hub_download(name, "model_index.json", **hub_options(kwargs))).parent
            files = [path.relative_to(cached) for path in cached.rglob("*.safetensors")]
            if not kwargs.get("local_files_only"):
                chosen = {key: kwargs[key] for key in ("revision", "token") if key in kwargs}
                files = [Path(file) for file in huggingface_hub.list_repo_files(name, **chosen)]
            for part in (part for part, entry in index.items() if is_model(entry) and part not in kwargs):
                names = [file.name for file in files if file.parent.name == part]
                check_variants(part, names, kwargs.get("variant"), source)
                for file in cached.joinpath(part).glob("*.safetensors"):
                    check_header(file, f"{source}: {part}/{file.name}")
        raise


def _finish(pipe: Any, source: str) -> ConstrainedPipeline:
    """Return the pipeline in the memory format that suits it, after a check that its noise levels can be read."""
    with as_adhere_error(source):
        noise_schedule(pipe.scheduler)
        pipe.check_network()
        _check_native_size(pipe)
    for name in (pipe.network, "unet_2", "vae"):
        if (module := getattr(pipe, name, None)) is not None:
            module.to(memory_format=torch.channels_last)  # a third faster on CPUs
    return pipe


def _check_native_size(pipe: ConstrainedPipeline) -> None:
    with suppress(TypeError, ValueError):
        height, width = pipe.native_size
        if all(isinstance(side, int) and side > 0 for side in (height, width)):
            return
    given = getattr(pipe, pipe.network).config.get("sample_size")
    raise AdhereError(f"sample_size = {given!r} in the network's config.json: give a whole number above 0, or two")


def _from_single_file(file: Path, source: str, kwargs: dict[str, Any]) -> Any:
    """Return the pipeline of a checkpoint in its authors' own layout.

    diffusers reads the configurations of the components from `config`, a local folder or a hub id, or from the hub
    entry of the model's base.
    """
    refuse_format(file, source)
    config = None if kwargs.get("config") is None else str(kwargs["config"])
    with as_adhere_error(source):
        check_header(file, "the file")
        refuse_file(file, source)
        index, folder = {}, None if config is None else Path(config).expanduser()
        if folder is not None and folder.is_dir():
            index, config = read_index(folder, f"config '{config}'"), str(folder)
        family: Any = family_for(index.get("_class_name") or class_of(file), source)
        _refuse_refiner(index, source)
        kwargs = with_autoencoder(kwargs, _components_of(family), source, folder or config)
        if folder is not None and index:
            check_index(index, family, kwargs, f"config '{config}'")
            unread = kwargs.keys() | set(family._optional_components)
            check_configurations(folder, {name: entry for name, entry in index.items() if name not in unread})
        if not hub_is_reachable():
            kwargs = {"local_files_only": True} | kwargs
        try:
            pipe = family.from_single_file(str(file), **kwargs | {"config": config})
        except LocalEntryNotFoundError as error:
            raise AdhereError(
                "the configurations of its components are on the hub, which cannot be reached: give config='FOLDER', a "
                "model in the diffusers layout (--config FOLDER on the command line)"
            ) from error
        except SingleFileComponentError as error:
            part = re.search(r"Failed to load (\w+)", str(error))
            name = part[1] if part else "component"
            hint = ", or add an autoencoder by --vae (vae= in Python)" if name.startswith("Autoencoder") else ""
            raise AdhereError(f"the file has no weights of its {name}: give a complete checkpoint{hint}") from error
        if "scheduler" not in kwargs:
            pipe.scheduler = _with_settings(pipe.scheduler, scheduler_settings_in(file))
    return pipe


def _with_settings(scheduler: Any, settings: dict[str, Any]) -> Any:
    """Return the scheduler with those settings of a checkpoint that differ from its own and apply to its class."""
    if "prediction_type" not in scheduler.config:  # a flow
        return scheduler
    changed = {name: value for name, value in settings.items() if scheduler.config.get(name) != value}
    if not changed:
        return scheduler
    # A scheduler that cannot rescale its noise levels is replaced by one that can; only the noise levels matter.
    known = inspect.signature(type(scheduler).__init__).parameters
    return (type(scheduler) if changed.keys() <= known.keys() else DDIMScheduler).from_config(
        scheduler.config, **changed
    )


def _read_index_from_hub(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        index = huggingface_hub.hf_hub_download(name, "model_index.json", **hub_options(kwargs))
    except LocalEntryNotFoundError as error:
        raise AdhereError("not in the local cache, and the hub cannot be reached; give a folder") from error
    return parse_index(Path(index).read_bytes())
