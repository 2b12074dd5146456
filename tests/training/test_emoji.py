"""Training of adhere-emoji: the split by base, the captions, the tokenizer, the losses, resuming and the export."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import CLIPTokenizer

from adhere.metrics import psnr
from training.emoji.autoencoder import image_grid, new_autoencoder, reconstruct, shift, to_tensor, to_uint8
from training.emoji.autoencoder import loss_function as autoencoder_loss
from training.emoji.data import Emoji, all_captions, base_of, caption, held_out_bases
from training.emoji.export import write_pipeline
from training.emoji.fetch import choose_held_out
from training.emoji.latents import can_mirror, encode, whiten
from training.emoji.text import MAX_TOKENS, fit_tokenizer, new_text_encoder, save_tokenizer, token_ids
from training.emoji.train import TextToImage, loss_function, new_loss_weighting, new_network, report_function
from training.loop import Training
from training.loss_weighting import LossWeighting

SKIN_TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
NAMES = ("grinning face", "red heart", "pizza", "cat face", "waving hand: light skin tone", "flag: Japan")


def make_row(name: str, vendor: str = "fluent", base: str = "1f600") -> dict[str, str]:
    return {
        "vendor": vendor,
        "code": base,
        "base": base,
        "name": name,
        "group": "smileys & emotion",
        "subgroup": "face",
        "tags": "happy|joy",
        "split": "train",
    }


def tiny_emoji() -> Emoji:
    """Six images: for each name a disc of a random color on white."""
    y, x = np.mgrid[:64, :64] - 31.5
    colors = np.random.default_rng(0).integers(0, 200, (len(NAMES), 3))
    images = [np.where((x**2 + y**2 < 600)[..., None], color, 255).astype(np.uint8) for color in colors]
    return Emoji(np.stack(images), [make_row(name, base=str(i)) for i, name in enumerate(NAMES)])


def tiny_tokenizer() -> CLIPTokenizer:
    return fit_tokenizer((text for name in NAMES for text in all_captions(make_row(name))), vocab_size=640)


def tiny_model(weighting: LossWeighting) -> TextToImage:
    torch.manual_seed(0)
    text_encoder = new_text_encoder(tiny_tokenizer(), hidden_size=16, num_layers=1, num_heads=2)
    return TextToImage(new_network(16, channels=(8, 16), num_heads=(1, 2), norm_groups=4), text_encoder, weighting)


@pytest.mark.parametrize(
    ("code", "other"),
    [
        ("1f44b", "1f44b-1f3fd"),  # waving hand with a skin tone
        ("2764-fe0f", "2764-fe0f-200d-1f525"),  # heart on fire
        ("1f9d1-200d-1f33e", "1f469-1f3fb-200d-1f33e"),  # farmers
        ("1f3c3", "1f3c3-1f3ff-200d-2640-fe0f-200d-27a1-fe0f"),  # runners
        ("1f48f", "1f468-200d-2764-fe0f-200d-1f48b-200d-1f468"),  # couples kissing
        ("1f1f3-1f1f4", "1f1f8-1f1ef"),  # two territories with the same flag
    ],
)
def test_variants_share_a_base(code: str, other: str) -> None:
    assert base_of(code) == base_of(other)


@pytest.mark.parametrize(
    ("code", "other"),
    [("1f600", "1f603"), ("1f1ef-1f1f5", "1f1ef-1f1ea"), ("1f468-200d-1f33e", "1f468-200d-1f373"), ("1f499", "1f49a")],
)
def test_different_ideas_have_different_bases(code: str, other: str) -> None:
    assert base_of(code) != base_of(other)


@given(st.sampled_from(["1f44b", "1f9d1-200d-1f33e", "1f600", "1f1ef-1f1f5"]), st.sampled_from(SKIN_TONES))
def test_base_of_is_idempotent_and_ignores_skin_tones(code: str, tone: str) -> None:
    first, *rest = code.split("-")
    assert base_of(base_of(code)) == base_of(code) == base_of("-".join([first, tone, *rest]))


def test_held_out_bases_cover_all_categories() -> None:
    bases = held_out_bases()
    assert 80 <= len(bases) <= 130
    assert {base_of(base) for base in bases} == bases
    text = Path("training/emoji/held_out.txt").read_text(encoding="utf-8")
    for category in ("face", "heart", "animals & nature", "food & drink", "objects", "flags"):
        assert text.count(f"({category})") >= 5


def test_choose_held_out_does_not_depend_on_the_order_of_rows() -> None:
    found = [make_row(f"face {i}", vendor, f"1f6{i:02x}") for i in range(64) for vendor in ("fluent", "google")]
    assert choose_held_out(found) == choose_held_out(found[::-1])
    assert len(choose_held_out(found).splitlines()) == 17  # a comment line and 16 faces


def test_splits_have_no_common_base(tmp_path: Path) -> None:
    held_out, trained = sorted(held_out_bases())[0], "1f600"
    codes = [
        (vendor, code)
        for vendor in ("fluent", "google", "twitter")
        for code in (held_out, f"{held_out}-1f3fb", trained)
    ]
    lines = ["vendor,code,base,name,group,subgroup,tags,split"]
    for vendor, code in codes:
        split = "held_out" if base_of(code) in held_out_bases() else "train"
        lines.append(f"{vendor},{code},{base_of(code)},name,group,subgroup,,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    np.save(tmp_path / "pictures.npy", np.zeros((len(codes), 64, 64, 3), np.uint8))
    train, test = Emoji.load(tmp_path, "train"), Emoji.load(tmp_path, "held_out")
    assert (len(train), len(test)) == (3, 6)
    assert not {r["base"] for r in train.rows} & held_out_bases()
    assert train.probabilities.sum() == pytest.approx(1)


@given(st.integers(0, 2**32))
def test_captions_are_lower_case_without_punctuation_of_names(seed: int) -> None:
    text = caption(make_row("flag: Côte d’Ivoire", "twitter"), np.random.default_rng(seed))
    assert text == text.lower()
    assert not set(text) & set(":&|’")


def test_a_tenth_of_the_captions_is_empty() -> None:
    rng = np.random.default_rng(0)
    empty = sum(caption(make_row("pizza"), rng) == "" for _ in range(4000))
    assert 320 < empty < 480


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["C", "Z"]), max_size=8))
def test_tokenizer_represents_any_word(text: str) -> None:
    ids = tiny_tokenizer()(f"a {text} heart").input_ids
    assert ids[0] == 0
    assert ids.index(1) == len(ids) - 1  # the only end token is the last token


def test_saved_tokenizer_is_equal_for_older_transformers(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # older releases of transformers read only vocab.json and merges.txt
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    for name in NAMES:
        text = all_captions(make_row(name))[0]
        assert loaded(text).input_ids == tokenizer(text).input_ids
        decoded = loaded.decode(loaded(text).input_ids, skip_special_tokens=True)
        assert decoded.replace(" ", "") == text.replace(" ", "")
    assert token_ids(loaded, ["", "pizza " * 50]).shape == (2, MAX_TOKENS)


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_shift_translates_and_fills_with_white(down: int, right: int) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    shifted = shift(image, down, right)
    assert (shifted == 0).sum() == (64 - abs(down)) * (64 - abs(right)) * 3
    assert (shift(shifted, -down, -right)[8:-8, 8:-8] == 0).all()


def test_to_uint8_inverts_to_tensor() -> None:
    images = tiny_emoji().images
    assert (to_uint8(to_tensor(images)) == images).all()


def test_image_grid_keeps_the_order() -> None:
    images = tiny_emoji().images
    grid = np.asarray(image_grid([images[:3], images[3:]]))
    assert grid.shape == (2 * 64, 3 * 64, 3)
    assert (grid[64:, 64:128] == images[4]).all()


def test_sided_emoji_and_flags_are_not_mirrored() -> None:
    assert can_mirror(make_row("cat face"))
    assert not can_mirror(make_row("backhand index pointing left"))
    assert not can_mirror(make_row("flag: Japan") | {"group": "flags"})


def test_whiten_keeps_the_reconstructions() -> None:
    torch.manual_seed(0)
    autoencoder = new_autoencoder(channels=(8, 8, 8), norm_groups=4).eval()
    x = to_tensor(tiny_emoji().images)
    before = reconstruct(autoencoder, x)
    whiten(autoencoder, x)
    z = torch.from_numpy(encode(autoencoder, tiny_emoji().images)).double().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(z), torch.eye(4, dtype=torch.float64), atol=0.02)
    assert torch.allclose(reconstruct(autoencoder, x), before, atol=1e-3)


def test_autoencoder_training_improves_the_psnr(tmp_path: Path) -> None:
    emoji, x = tiny_emoji(), to_tensor(tiny_emoji().images)
    torch.manual_seed(0)
    training = Training(new_autoencoder(channels=(8, 8, 8), norm_groups=4), tmp_path, lr=3e-3, ema_decay=0.9)
    before = psnr(reconstruct(training.ema_network, x), x).mean()
    loss = autoencoder_loss(emoji, 6, lambda a, b: (a - b).square())
    training.fit(loss, lambda _: {}, batch_size=6, steps=40)
    assert psnr(reconstruct(training.ema_network, x), x).mean() > before + 3


def test_network_training_reduces_the_loss_and_resumes_exactly(tmp_path: Path) -> None:
    emoji, tokenizer = tiny_emoji(), tiny_tokenizer()
    latents = np.random.default_rng(0).standard_normal((2, len(emoji), 4, 16, 16)).astype(np.float16)

    def run(folder: str, steps: int) -> tuple[Training, dict[str, float]]:
        weighting = new_loss_weighting()
        training = Training(tiny_model(weighting), tmp_path / folder, lr=3e-3, ema_decay=0.9)
        report = report_function(latents[0], emoji, tokenizer, weighting)
        before = report(training.ema_network)
        training.fit(loss_function(latents, emoji, tokenizer, weighting, 8), report, batch_size=8, steps=steps)
        return training, before["held_out_v_loss"]

    uninterrupted, before = run("uninterrupted", 12)
    run("resumed", 5)
    resumed, _ = run("resumed", 7)
    assert resumed.step == uninterrupted.step == 12
    for name in ("network", "ema_network"):
        a, b = getattr(uninterrupted, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(a[key], b[key]) for key in a)
    after = json.loads((tmp_path / "uninterrupted" / "log.jsonl").read_text().splitlines()[-1])["held_out_v_loss"]
    assert after["-1"] < before["-1"]


def test_checkpoint_keys_are_those_of_existing_checkpoints(tmp_path: Path) -> None:
    model = tiny_model(new_loss_weighting())
    Training(model, tmp_path, lr=1e-3).save()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert set(checkpoint) == {"network", "average", "optimiser", "step", "pictures_seen"}  # retired spelling
    assert "level_loss" in checkpoint["average"]


def test_export_is_a_stable_diffusion_pipeline(tmp_path: Path) -> None:
    model = tiny_model(new_loss_weighting())
    autoencoder = new_autoencoder(channels=(8, 8, 8), norm_groups=4)
    write_pipeline(autoencoder, model.unet, model.text_encoder, tiny_tokenizer(), tmp_path)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    draw = lambda seed: pipe(  # noqa: E731
        "a red heart", guidance_scale=3, num_inference_steps=3, generator=torch.Generator().manual_seed(seed)
    ).images[0]
    assert draw(0).size == (64, 64)
    assert np.array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))
    with safe_open(tmp_path / "text_encoder" / "model.safetensors", "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118  # it is no dict
    for config in tmp_path.rglob("*.json"):
        assert str(tmp_path.parent.parent) not in config.read_text()  # no local path
