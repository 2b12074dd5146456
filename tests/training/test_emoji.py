"""What the training of adhere-emoji promises: an honest split, readable captions, steps that teach and resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from training.emoji.autoencoder import loss_function as autoencoder_loss
from training.emoji.autoencoder import new_autoencoder, psnr, reconstruct, shifted, to_pictures, to_tensor
from training.emoji.data import Emoji, all_captions, base_of, caption, held_out_bases
from training.emoji.export import write_folder
from training.emoji.fetch import choose_held_out
from training.emoji.latents import encode, mirrors, whiten
from training.emoji.text import LENGTH, fit_tokenizer, new_text_encoder, save_tokenizer, token_ids
from training.emoji.train import TextToImage, loss_function, new_levels, new_network, report_function
from training.levels import Levels
from training.loop import Training

TONES = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
NAMES = ("grinning face", "red heart", "pizza", "cat face", "waving hand: light skin tone", "flag: Japan")


def row(name: str, vendor: str = "fluent", base: str = "1f600") -> dict[str, str]:
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
    """Six pictures: a disc of another colour on white for each name."""
    y, x = np.mgrid[:64, :64] - 31.5
    colours = np.random.default_rng(0).integers(0, 200, (len(NAMES), 3))
    pictures = [np.where((x**2 + y**2 < 600)[..., None], colour, 255).astype(np.uint8) for colour in colours]
    return Emoji(np.stack(pictures), [row(name, base=str(i)) for i, name in enumerate(NAMES)])


def tiny_tokenizer() -> CLIPTokenizer:
    return fit_tokenizer((text for name in NAMES for text in all_captions(row(name))), size=640)


def tiny_model(levels: Levels) -> TextToImage:
    torch.manual_seed(0)
    text_encoder = new_text_encoder(tiny_tokenizer(), hidden=16, layers=1, heads=2)
    return TextToImage(new_network(16, blocks=(8, 16), heads=(1, 2), groups=4), text_encoder, levels)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1f44b", "1f44b-1f3fd"),  # a skin tone
        ("2764-fe0f", "2764-fe0f-200d-1f525"),  # heart on fire
        ("1f9d1-200d-1f33e", "1f469-1f3fb-200d-1f33e"),  # farmers
        ("1f3c3", "1f3c3-1f3ff-200d-2640-fe0f-200d-27a1-fe0f"),  # runners
        ("1f48f", "1f468-200d-2764-fe0f-200d-1f48b-200d-1f468"),  # kisses
        ("1f1f3-1f1f4", "1f1f8-1f1ef"),  # one flag of two territories
    ],
)
def test_variants_share_a_base(one: str, other: str) -> None:
    assert base_of(one) == base_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1f600", "1f603"), ("1f1ef-1f1f5", "1f1ef-1f1ea"), ("1f468-200d-1f33e", "1f468-200d-1f373"), ("1f499", "1f49a")],
)
def test_ideas_differ(one: str, other: str) -> None:
    assert base_of(one) != base_of(other)


@given(st.sampled_from(["1f44b", "1f9d1-200d-1f33e", "1f600", "1f1ef-1f1f5"]), st.sampled_from(TONES))
def test_a_base_is_its_own_base_and_that_of_its_tones(code: str, tone: str) -> None:
    first, *rest = code.split("-")
    assert base_of(base_of(code)) == base_of(code) == base_of("-".join([first, tone, *rest]))


def test_held_out_bases_are_bases_of_every_kind() -> None:
    bases = held_out_bases()
    assert 80 <= len(bases) <= 130
    assert {base_of(base) for base in bases} == bases
    text = Path("training/emoji/held_out.txt").read_text(encoding="utf-8")
    for kind in ("face", "heart", "animals & nature", "food & drink", "objects", "flags"):
        assert text.count(f"({kind})") >= 5


def test_choice_of_held_out_does_not_depend_on_the_order() -> None:
    found = [row(f"face {i}", vendor, f"1f6{i:02x}") for i in range(64) for vendor in ("fluent", "google")]
    assert choose_held_out(found) == choose_held_out(found[::-1])
    assert len(choose_held_out(found).splitlines()) == 17  # 16 faces and the comment


def test_splits_of_a_folder_share_no_base(tmp_path: Path) -> None:
    held, kept = sorted(held_out_bases())[0], "1f600"
    codes = [(vendor, code) for vendor in ("fluent", "google", "twitter") for code in (held, f"{held}-1f3fb", kept)]
    lines = ["vendor,code,base,name,group,subgroup,tags,split"]
    for vendor, code in codes:
        split = "held_out" if base_of(code) in held_out_bases() else "train"
        lines.append(f"{vendor},{code},{base_of(code)},name,group,subgroup,,{split}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    np.save(tmp_path / "pictures.npy", np.zeros((len(codes), 64, 64, 3), np.uint8))
    train, test = Emoji.load(tmp_path, "train"), Emoji.load(tmp_path, "held_out")
    assert (len(train), len(test)) == (3, 6)
    assert not {r["base"] for r in train.rows} & held_out_bases()
    assert train.weight.sum() == pytest.approx(1)


@given(st.integers(0, 2**32))
def test_captions_are_plain_words(seed: int) -> None:
    text = caption(row("flag: Côte d’Ivoire", "twitter"), np.random.default_rng(seed))
    assert text == text.lower()
    assert not set(text) & set(":&|’")


def test_a_tenth_of_the_captions_is_empty() -> None:
    rng = np.random.default_rng(0)
    empty = sum(caption(row("pizza"), rng) == "" for _ in range(4000))
    assert 320 < empty < 480


@given(st.text(st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["C", "Z"]), max_size=8))
def test_any_word_can_be_tokenized(text: str) -> None:
    ids = tiny_tokenizer()(f"a {text} heart").input_ids
    assert ids[0] == 0
    assert ids.index(1) == len(ids) - 1  # the end token ends the text and stands nowhere else


def test_tokenizer_reads_back_what_it_wrote(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").unlink()  # as older releases, which know vocab.json and merges.txt only
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for name in NAMES:
        text = all_captions(row(name))[0]
        assert again(text).input_ids == tokenizer(text).input_ids
        words = again.decode(again(text).input_ids, skip_special_tokens=True)
        assert words.replace(" ", "") == text.replace(" ", "")
    assert token_ids(again, ["", "pizza " * 50]).shape == (2, LENGTH)


@given(st.integers(-5, 5), st.integers(-5, 5))
def test_shift_moves_and_fills_with_white(down: int, right: int) -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    moved = shifted(picture, down, right)
    assert (moved == 0).sum() == (64 - abs(down)) * (64 - abs(right)) * 3
    assert (shifted(moved, -down, -right)[8:-8, 8:-8] == 0).all()


def test_pictures_survive_conversion() -> None:
    pictures = tiny_emoji().pictures
    assert (to_pictures(to_tensor(pictures)) == pictures).all()


def test_letters_and_flags_are_not_mirrored() -> None:
    assert mirrors(row("cat face"))
    assert not mirrors(row("backhand index pointing left"))
    assert not mirrors(row("flag: Japan") | {"group": "flags"})


def test_whitening_changes_the_latents_and_not_the_pictures() -> None:
    torch.manual_seed(0)
    autoencoder = new_autoencoder(blocks=(8, 8, 8), groups=4).eval()
    x = to_tensor(tiny_emoji().pictures)
    before = reconstruct(autoencoder, x)
    whiten(autoencoder, x)
    z = torch.from_numpy(encode(autoencoder, tiny_emoji().pictures)).double().permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(z), torch.eye(4, dtype=torch.float64), atol=0.02)
    assert torch.allclose(reconstruct(autoencoder, x), before, atol=1e-3)


def test_autoencoder_learns(tmp_path: Path) -> None:
    emoji, x = tiny_emoji(), to_tensor(tiny_emoji().pictures)
    torch.manual_seed(0)
    training = Training(new_autoencoder(blocks=(8, 8, 8), groups=4), tmp_path, lr=3e-3, ema=0.9)
    before = psnr(reconstruct(training.average, x), x).mean()
    loss = autoencoder_loss(emoji, 6, lambda a, b: (a - b).square())
    training.fit(loss, lambda _: {}, batch=6, steps=40)
    assert psnr(reconstruct(training.average, x), x).mean() > before + 3


def test_network_learns_and_a_stopped_run_goes_on_as_if_unbroken(tmp_path: Path) -> None:
    emoji, tokenizer = tiny_emoji(), tiny_tokenizer()
    latents = np.random.default_rng(0).standard_normal((2, len(emoji), 4, 16, 16)).astype(np.float16)

    def run(folder: str, steps: int) -> tuple[Training, dict[str, float]]:
        levels = new_levels()
        training = Training(tiny_model(levels), tmp_path / folder, lr=3e-3, ema=0.9)
        report = report_function(latents[0], emoji, tokenizer, levels)
        before = report(training.average)
        training.fit(loss_function(latents, emoji, tokenizer, levels, 8), report, batch=8, steps=steps)
        return training, before["held_out_v_loss"]

    whole, before = run("whole", 12)
    run("broken", 5)
    resumed, _ = run("broken", 7)
    assert resumed.step == whole.step == 12
    for name in ("network", "average"):
        one, other = getattr(whole, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)
    after = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])["held_out_v_loss"]
    assert after["-1"] < before["-1"]


def test_exported_folder_is_a_stable_diffusion_pipeline(tmp_path: Path) -> None:
    model = tiny_model(new_levels())
    autoencoder = new_autoencoder(blocks=(8, 8, 8), groups=4)
    write_folder(autoencoder, model.unet, model.text_encoder, tiny_tokenizer(), tmp_path)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None, feature_extractor=None)
    pipe.set_progress_bar_config(disable=True)
    draw = lambda seed: pipe(  # noqa: E731
        "a red heart", guidance_scale=3, num_inference_steps=3, generator=torch.Generator().manual_seed(seed)
    ).images[0]
    assert draw(0).size == (64, 64)
    assert np.array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))
    for config in tmp_path.rglob("*.json"):
        assert str(tmp_path.parent.parent) not in config.read_text()  # no path of the machine that trained it
