"""Loading one component of a model: from its own folder, or an autoencoder from another place."""

import importlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import huggingface_hub
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import safe_open

from adhere.errors import AdhereError
from adhere.pipelines._foreign_files import kind_of_file, refuse_format, refuse_quantized
from adhere.pipelines._model_files import as_adhere_error, check_header, check_weights, variants_of

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_AUTOENCODERS = ("AutoencoderKL", "AutoencoderTiny", "VQModel")


def hub_is_reachable() -> bool:
    """Return whether the hub's name resolves; if it does not, its client would retry for half a minute."""
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        return bool(getproxies()) or bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def hub_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options for diffusers' `from_pretrained` that concern the hub."""
    return {name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs}


def load_component(location: str | Path, entry: list[str], name: str, kwargs: dict[str, Any], source: str) -> Any:
    """Return one component; missing weights raise AdhereError, while the libraries only warn about them.

    Args:
        location: the folder, or the hub id.
        entry: [library, class].
        name: of the component and of its subfolder; "" is the folder itself.
        kwargs: for diffusers' `from_pretrained`.
        source: what is loaded, for the message.
    """
    library, class_name = entry
    if isinstance(location, Path) and kwargs.get("variant") not in variants_of(os.listdir(location / name)):
        kwargs = {key: value for key, value in kwargs.items() if key != "variant"}  # the plain weights, as in diffusers
    refuse_quantized(_configuration(location, name, kwargs), name, source)
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
    if "dtype" not in chosen:
        chosen["torch_dtype"] = dtype  # otherwise diffusers loads in torch's default dtype
    model_class = getattr(importlib.import_module(library), class_name)
    loaded, info = model_class.from_pretrained(location, subfolder=name, output_loading_info=True, **chosen)
    if missing := sorted(info["missing_keys"]):
        raise AdhereError(
            f"the weights in {name}/ lack {len(missing)} entries, such as '{missing[0]}'; copy or save it again"
        )
    # Without accelerate, diffusers leaves a transformer in the dtype it was saved in.
    return loaded if loaded.dtype == dtype else loaded.to(dtype)


def _configuration(location: str | Path, name: str, kwargs: Mapping[str, Any]) -> Path:
    """Return the config.json of a component."""
    if isinstance(location, Path):
        return location / name / "config.json"
    return Path(huggingface_hub.hf_hub_download(location, f"{name}/config.json".lstrip("/"), **hub_options(kwargs)))


def with_autoencoder(
    kwargs: dict[str, Any], components: set[str], source: str, model: str | Path | None
) -> dict[str, Any]:
    """Return `kwargs` with the autoencoder that `vae` names, loaded; LDM calls its autoencoder 'vqvae'.

    Args:
        kwargs: for diffusers' `from_pretrained` or `from_single_file`.
        components: the names of the family's components.
        source: what is loaded, for the message.
        model: the folder or the hub id with the model's own configurations, if there is one.
    """
    if kwargs.get("vae") is None:
        return kwargs
    name = next((name for name in ("vae", "vqvae") if name in components), None)
    given, others = kwargs["vae"], {key: value for key, value in kwargs.items() if key != "vae"}
    if name is None:
        raise AdhereError(
            f"{source}: works on pixels and has no autoencoder: leave vae out (--vae on the command line)"
        )
    if isinstance(given, (str, Path)):
        given = _read_autoencoder(str(given), others, f"vae '{given}'", model)
    return others | {name: given}


def _read_autoencoder(given: str, kwargs: dict[str, Any], source: str, model: str | Path | None) -> Any:
    """Return the autoencoder of a folder, a hub id or a .safetensors file."""
    path = Path(given).expanduser()
    with as_adhere_error(source):
        if path.is_file():
            return _from_file(path, kwargs, source, model)
        is_folder = path.is_dir()
        if not is_folder and not HUB_ID.fullmatch(given):
            raise AdhereError("no such folder or file; give the folder or the .safetensors file of an autoencoder")
        location: str | Path = path if is_folder else given
        options = dict(kwargs)
        if not isinstance(model, Path):  # the revision is that of the model's own entry on the hub
            options.pop("revision", None)
        is_local = is_folder or bool(kwargs.get("local_files_only")) or not hub_is_reachable()
        options |= {"use_safetensors": True, "local_files_only": is_local}
        part = _autoencoder_in(path) if is_folder else ""
        settings: Any = AutoencoderKL.load_config(location, subfolder=part or None, **hub_options(options))
        class_name = settings.get("_class_name")
        if class_name not in _AUTOENCODERS:
            raise AdhereError(f"is a {class_name}, not an autoencoder: give one of {', '.join(_AUTOENCODERS)}")
        if is_folder:
            check_weights(path, {part: ["diffusers", class_name]}, None, source)
        else:
            options.pop("variant", None)
        return load_component(location, ["diffusers", str(class_name)], part, options, source)


def _autoencoder_in(folder: Path) -> str:
    """Return the subfolder of the autoencoder in a model, or "" if the folder itself is an autoencoder."""
    for part in ("", "vae", "vqvae"):
        if (folder / part / "config.json").is_file():
            return part
    raise AdhereError("no config.json in it; give the folder of an autoencoder, or of a model that has one")


def _from_file(file: Path, kwargs: dict[str, Any], source: str, model: str | Path | None) -> Any:
    """Return the autoencoder of one file in its authors' layout, with the configuration of the model's own one."""
    refuse_format(file, source)
    check_header(file, source)
    kind = kind_of_file(file)
    if kind not in (None, "an autoencoder"):
        raise AdhereError(f"is {kind}, not an autoencoder: give the folder or the .safetensors file of one")
    with safe_open(file, "pt") as weights:
        names = list(weights.keys())
    is_tiny = any(name.startswith("decoder.layers.") for name in names)  # AutoencoderTiny
    if is_tiny or any(".up_blocks." in name for name in names):
        raise AdhereError("is in the layout of diffusers: give the folder that holds it and its config.json")
    if not any("decoder." in name for name in names):
        raise AdhereError("holds no autoencoder: give the folder or the .safetensors file of one")
    options = hub_options(kwargs) | {key: kwargs[key] for key in ("torch_dtype",) if key in kwargs}
    found = {} if model is None else {"config": str(model), "subfolder": "vae"}
    return AutoencoderKL.from_single_file(str(file), **found, **options)
