"""The list of the models that need no download: those that ship, and those in the cache of the hub."""

import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest

from adhere.pipelines import _inventory
from adhere.pipelines._index import SHIPPED_MODELS
from adhere.pipelines._inventory import known_models
from tests.apps.command import run
from tests.tiny_latent_models import tiny_ldm, tiny_sd
from tests.tiny_models import save_model

CARDS = {
    "named": "---\ntags:\n- art\nlicense: other\nlicense_name: flux-1-dev-non-commercial-license\n---\n# A model\n",
    "listed": '---\nlicense:\n- "mit"\n---\n',
    "plain": "---\nlicense: creativeml-openrail-m\n---\nlicense: not this one\n",
    "without": "# A model\nlicense: none\n",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return a cache of the hub with models of several kinds, in the layout of huggingface_hub."""
    cache = tmp_path / "cache"
    for name, save in {
        "plain": lambda folder: tiny_sd(tmp_path).save_pretrained(folder),
        "named": save_model,
        "listed": lambda folder: tiny_ldm().save_pretrained(folder),
        "without": save_model,
        "no-card": save_model,
        "no-model": lambda folder: folder.mkdir(parents=True),
        "another-class": save_model,
    }.items():
        repo = cache / f"models--nobody--{name}"
        snapshot = repo / "snapshots" / ("0" * 40)
        save(snapshot)
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text("0" * 40)
        if name in CARDS:
            (snapshot / "README.md").write_text(CARDS[name])
        if name == "another-class":
            index = snapshot / "model_index.json"
            index.write_text(index.read_text().replace("DDIMPipeline", "AudioLDMPipeline"))
    (cache / "models--nobody--broken").mkdir()
    scan = huggingface_hub.scan_cache_dir
    monkeypatch.setattr(huggingface_hub, "scan_cache_dir", lambda: scan(cache))
    return cache


def test_shipped_and_cached_models_with_family_size_license_and_purpose(cache):
    models = {model.name: model for model in known_models()}
    assert list(models) == [*SHIPPED_MODELS, *(f"nobody/{name}" for name in sorted([*CARDS, "no-card"]))]
    licenses = {name: models[f"nobody/{name}"].license for name in (*CARDS, "no-card")}
    assert licenses == {
        "named": "flux-1-dev-non-commercial-license",
        "listed": "mit",
        "plain": "creativeml-openrail-m",
        "without": "see huggingface.co/nobody/without",
        "no-card": "see huggingface.co/nobody/no-card",
    }
    families = {name: models[f"nobody/{name}"].family for name in ("plain", "named", "listed")}
    assert families == {"plain": "SDPipeline", "named": "PixelPipeline", "listed": "UnconditionalLatentPipeline"}
    assert "prompt" in models["nobody/plain"].purpose
    assert "all verbs but style" in models["nobody/named"].purpose
    folder = cache / "models--nobody--plain" / "snapshots" / ("0" * 40)
    assert models["nobody/plain"].size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert [models[name].license for name in SHIPPED_MODELS] == ["cc-by-4.0", "gpl-3.0"]


def test_the_command_prints_one_line_for_each(cache):
    result = run(["models"])
    assert (result.exit_code, result.stderr) == (0, "")
    heading, *lines = result.stdout.splitlines()
    assert heading.split() == ["MODEL", "FAMILY", "SIZE", "LICENSE", "GOOD", "FOR"]
    assert [line.split()[0] for line in lines] == [model.name for model in known_models()]


def test_a_cache_that_is_missing_or_damaged_does_no_harm(cache, monkeypatch):
    snapshot = cache / "models--nobody--plain" / "snapshots" / ("0" * 40)
    (snapshot / "model_index.json").write_text("{")
    os.symlink("missing", snapshot / "link")
    assert "nobody/plain" not in [model.name for model in known_models()]
    shutil.rmtree(cache)
    assert [model.name for model in known_models()] == SHIPPED_MODELS


def test_every_shipped_model_says_what_it_is_good_for():
    assert set(_inventory._PURPOSES) == set(SHIPPED_MODELS)
