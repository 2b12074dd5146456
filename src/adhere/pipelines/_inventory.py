"""The models that need no download: the shipped ones, and those in the cache of the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from adhere.errors import AdhereError
from adhere.pipelines._index import MODELS, SHIPPED_MODELS, base_class, read_index
from adhere.pipelines.registry import FAMILIES

_PURPOSES = {
    "adhere-photo": "photographs: inpaint (text, scratches, small holes), outpaint, upscale, denoise, deblur, "
    "colorize (from hints)",
    "adhere-emoji": "emoji from a prompt: generate, inpaint, layout, silhouette",
}
_TEXT_PURPOSE = "what a prompt says: all verbs but denoise"
_FAMILY_PURPOSES = {  # of models that do not ship
    "PixelPipeline": "pictures like those of its training: all verbs but style, layout, silhouette",
    "UnconditionalLatentPipeline": "pictures like those of its training: all verbs but denoise",
}
_MEGABYTE = 1e6


@dataclass(frozen=True)
class KnownModel:
    """One model.

    Attributes:
        name: the name for `adhere.load`.
        family: the name of its class in adhere.
        size: the size of its files in bytes.
        license: the license in its card; without a card, where the license can be read.
        purpose: what the model is good for.
    """

    name: str
    family: str
    size: int
    license: str
    purpose: str

    @property
    def row(self) -> tuple[str, str, str, str, str]:
        """Name, family, size on disk, license and purpose, as text."""
        return self.name, self.family, f"{self.size / _MEGABYTE:.0f} MB", self.license, self.purpose


def known_models() -> list[KnownModel]:
    """Return the shipped models, then those in the cache that can be loaded, by name."""
    shipped = [_model(name, MODELS / name) for name in SHIPPED_MODELS]
    return [*shipped, *sorted(_cached(), key=lambda model: model.name)]


def _cached() -> Iterator[KnownModel]:
    with suppress(huggingface_hub.CacheNotFound):
        for repo in huggingface_hub.scan_cache_dir().repos:
            for revision in repo.revisions if repo.repo_type == "model" else ():
                if "main" in revision.refs or len(repo.revisions) == 1:
                    with suppress(AdhereError):  # another kind of model
                        yield _model(repo.repo_id, Path(revision.snapshot_path))


def _model(name: str, folder: Path) -> KnownModel:
    """Return the description of the model in a folder; raise AdhereError if it is not of a known family."""
    family = FAMILIES.get(base_class(str(read_index(folder, name).get("_class_name"))))
    if family is None:
        raise AdhereError(f"{name}: is of no known family")
    family = family.partition(":")[2]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    license = _license(folder / "README.md") or f"see huggingface.co/{name}"
    purpose = _PURPOSES.get(name) or _FAMILY_PURPOSES.get(family, _TEXT_PURPOSE)
    return KnownModel(name, family, size, license, purpose)


def _license(card: Path) -> str | None:
    """Return the license in the header of a model card, or its name if it is not in the hub's list."""
    with suppress(OSError):
        header = card.read_text(encoding="utf-8", errors="replace").split("---")[1:2]
        for entry in ("license_name", "license"):
            if header and (found := re.search(rf"^{entry}:\s*(?:- )?[\"']?([^\s\"'\[]+)", header[0], re.MULTILINE)):
                return found[1]
    return None
