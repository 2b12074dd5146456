"""README.md and docs/: every Python example and command runs on tiny random models, every link leads somewhere.

The models are at the places that the pages name, also where a page names a hub id or a model that ships.
"""

import importlib.util
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

import adhere
from adhere.apps.cli import main
from adhere.core.presets import PRESETS
from adhere.core.schedules import FlowSchedule
from adhere.pipelines import loading
from adhere.pipelines.registry import FAMILIES
from tests.picture_files import hole, image_of
from tests.single_file import save_single_file
from tests.tiny_latent_models import stride, tinier_vae, tiny_flux, tiny_ldm, tiny_sd, tiny_sd3, tiny_sdxl
from tests.tiny_models import edit_json, save_model, tiny_unet

ROOT = Path(__file__).parents[1]
GENERATED = {"docs/results.md"}  # without examples
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
}
EXAMPLES = {
    page: blocks
    for page, text in PAGES.items()
    if page not in GENERATED and (blocks := re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
}
SHELL = [
    (page, command.split("  #")[0].strip())
    for page, text in PAGES.items()
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    for command in block.replace("\\\n", "").splitlines()
    if command.strip()
]
# Without a GPU, and as large as the tiny models are.
REPLACEMENTS = {
    '"cuda"': '"cpu"',
    "cpu_offload()": 'cpu_offload(device="cpu")',
    "(512, 512)": "(64, 64)",
    "(3, 512, 512)": "(3, 32, 32)",
}

SKETCHED = {"README.md": ("net", "alphas_cumprod", "x", "known")}  # a reader's own network and measurement
# The sections 'Objects, not strings' of the design, line by line.
OBJECTS = """
pipe = adhere.load("stable-diffusion-v1-5/stable-diffusion-v1-5", torch_dtype=torch.float16).to("cuda")
out = pipe(adhere.Inpaint("photo.jpg", "mask.png"), prompt="a brick wall", num_images_per_prompt=4, generator=g)
out.images[0].save("repaired.png"); out.residual, out.nfe, out.seconds
pipe(task, solver="moment_matching_posterior")
pipe(task, solver=adhere.MomentMatching(fusion_snr=0.1))
pipe(task, solver=adhere.Sampler(adhere.MomentMatching(fusion_snr=0.1)))
pipe([task_a, task_b])
A = adhere.operator(lambda x: x[..., ::2, ::2], shape)
pipe(adhere.Restore(y, A, noise=0.02))
pipe(adhere.Custom(adhere.Loss(lambda x: (x - 0.5).square().mean((1, 2, 3))), size=(512, 512)), num_inference_steps=1)
D = adhere.NetworkDenoiser.from_alphas_cumprod(net, ac, prediction_type="epsilon")
x0 = adhere.sample(D, adhere.Linear(adhere.Mask(known), known * x), shape=(4, 3, 64, 64), generator=g)
assert x0.shape == (4, 3, 64, 64) and not x0.requires_grad
"""


@pytest.fixture(scope="module")
def models_and_pictures(tmp_path_factory) -> Path:
    """Return a folder with the tiny models and the pictures that the pages name."""
    folder = tmp_path_factory.mktemp("place")
    sd: Any = tiny_sd(folder)
    sd.save_pretrained(folder / "stable-diffusion-v1-5/stable-diffusion-v1-5")
    sd.save_pretrained(folder / "shipped/adhere-emoji")
    save_model(folder / "shipped/adhere-photo")
    save_single_file(sd, folder / "checkpoint.safetensors")
    sd.save_pretrained(flow := folder / "XCLiu/instaflow_0_9B_from_sd_1_5")
    edit_json(flow / "model_index.json", _class_name="RectifiedFlowPipeline")
    tiny_sd(folder, stride("v_prediction")).save_pretrained(folder / "models/stable-diffusion-2-1")
    for variant in (None, "fp16"):
        tiny_sdxl(folder).save_pretrained(folder / "stabilityai/stable-diffusion-xl-base-1.0", variant=variant)
    for name in ("3.5-medium", "3-medium-diffusers"):
        tiny_sd3(folder).save_pretrained(folder / f"stabilityai/stable-diffusion-{name}")
    tiny_flux(folder).save_pretrained(folder / "black-forest-labs/FLUX.1-dev")
    tiny_ldm().save_pretrained(folder / "models/ldm-celebahq-256")
    save_model(folder / "models/ddpm-cifar10-32", ddpm=True)
    tinier_vae().save_pretrained(folder / "madebyollin/taesd")
    sd.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    sd.save_lora_weights(folder, get_peft_model_state_dict(sd.unet), weight_name="lora.safetensors")
    sizes = {"photo.jpg": 48, "photo2.jpg": 48, "small.png": 16, "sketch.png": 20, "painting.jpg": 64, "emoji.png": 48}
    for name, size in sizes.items():
        image_of("RGB", size, size).save(folder / name)
    image_of("RGBA", 48, 48).save(folder / "hints.png")
    for name in ("mask.png", "shape.png", "right-half.png"):
        Image.fromarray(hole(48, 48)).save(folder / name)
    return folder


@pytest.fixture
def place(models_and_pictures, tmp_path, monkeypatch) -> Iterator[Path]:
    """Enter an empty folder with links to the models and pictures; presets and families are restored afterwards."""
    for entry in models_and_pictures.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loading, "MODELS", tmp_path / "shipped")
    before, modules = [(table, dict(table)) for table in (PRESETS, FAMILIES)], set(sys.modules)
    PRESETS["inexact_newton"] = replace(PRESETS["inexact_newton"], num_steps=2)  # each noise level is like the others
    yield tmp_path
    for table, entries in before:
        table.clear()
        table.update(entries)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__ or "").parent == tmp_path:
            del sys.modules[name]


def given_names() -> dict[str, Any]:
    """Return the names that a sketch may use without defining them."""
    unet = tiny_unet()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    return {
        "g": torch.Generator().manual_seed(0),
        "net": lambda x_t, t: unet(x_t, t).sample,
        "ac": alphas_cumprod,
        "alphas_cumprod": alphas_cumprod,
        "known": (torch.rand(1, 1, 64, 64) < 0.5).float(),
        "x": x,
        "y": x[..., ::2, ::2],
        "shape": (3, 64, 64),
    }


def run(block: str, name: str, names: dict[str, Any]) -> None:
    """Execute an example; one that begins with the name of a file, such as '# my_family.py', becomes that file."""
    for words, replacement in REPLACEMENTS.items():
        block = block.replace(words, replacement)
    if file := re.match(r"# (\w+\.py)\n", block):
        Path(file[1]).write_text(block, encoding="utf-8")
    else:
        exec(compile(block, name, "exec"), names)


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", EXAMPLES)
def test_the_python_examples_of_a_page_run_one_after_another(place, page):
    names = {name: value for name, value in given_names().items() if name in SKETCHED.get(page, ())}
    for number, block in enumerate(EXAMPLES[page], 1):
        run(block, f"{page}, example {number}", names)
    assert "out" in names


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_objects_and_not_strings_can_be_given(place):
    names = given_names() | {"adhere": adhere, "torch": torch}
    names["task"] = names["task_a"] = adhere.Inpaint("photo.jpg", "mask.png")
    names["task_b"] = adhere.Inpaint("photo2.jpg", "mask.png")
    run(OBJECTS, "objects", names)
    out = names["out"]
    assert len(out.images) == len(out.residual) == 4 and out.nfe > 0
    assert Path("repaired.png").exists()


@pytest.mark.parametrize(("page", "command"), [(page, line) for page, line in SHELL if line.startswith("adhere ")])
def test_the_commands_of_a_page_run(place, monkeypatch, page, command):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Ctrl-C is left as it was
    with pytest.raises(SystemExit) as end:
        main(shlex.split(command)[1:])
    assert end.value.code == 0


@pytest.mark.parametrize(("page", "command"), [(page, line) for page, line in SHELL if not line.startswith("adhere ")])
def test_other_commands_name_targets_modules_and_extras_that_exist(page, command):
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    words = shlex.split(command)
    if words[0] == "make":
        assert set(words[1:2]) <= set(targets)
    if "-m" in words[:3]:
        assert importlib.util.find_spec(words[words.index("-m") + 1])
    for word in words:
        if extras := re.fullmatch(r"(?:\.|adhere)\[(.*)\]", word):
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_to_files_and_headings(page):
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), target
        if heading:
            assert heading in headings(path.read_text(encoding="utf-8")), target


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_evaluations_in_the_table_of_costs_are_those_of_the_presets():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|([^|]*)\|([^|]*)\|", PAGES["docs/your-own-model.md"], re.M)
    costs = {name: (levels, nfe) for name, levels, nfe in rows if name in PRESETS}
    assert set(costs) == set(PRESETS) - {"newton_exact"}
    for name, (levels, nfe) in costs.items():
        sampler, schedules = PRESETS[name], (stable_diffusion_schedule(), FlowSchedule(1000.0, 3.0, s_end=0.003))
        assert numbers(nfe) == numbers(" ".join(str(sampler.evaluations(one)) for one in schedules)), name
        counts = (len(sampler.timesteps(one, sampler.num_steps)) for one in schedules)
        assert numbers(levels) == numbers(" ".join(map(str, counts))), name


def stable_diffusion_schedule():
    from adhere.pipelines.schedulers import noise_schedule

    return noise_schedule(stride())[0]


def numbers(text: str) -> list[int]:
    """Return the different numbers in a text, in their order."""
    return list(dict.fromkeys(map(int, re.findall(r"\d+", text))))


def test_the_page_on_architecture_names_every_module():
    """Except those of folders that have one line together."""
    package, text = ROOT / "src" / "adhere", PAGES["docs/architecture.md"]
    for path in package.rglob("*.py"):
        folders = path.relative_to(package).parts[:-1]
        if path.name.startswith("__") or {"io", "tasks", "testing", "solvers", "baselines"} & set(folders):
            continue
        assert re.search(rf"\b{path.stem}\b", text), path


def test_citation_file_is_valid():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "license"} <= citation.keys()
    assert citation["references"][0]["title"] == "Fast constrained sampling in pre-trained diffusion models"
