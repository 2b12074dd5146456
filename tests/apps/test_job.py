"""Jobs without the command line: they return a report, raise AdhereError and print nothing."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import adhere
from adhere.apps.job import Job, Report

REPORT = Report(
    nfe=12,
    seconds=2.14,
    residual=0.0001,
    peak_gb=0.55,
    repainted=None,
    task={"name": "Inpaint"},
    model="adhere-photo",
    variant=None,
    config=None,
    vae=None,
    loras=[],
    offload=False,
    prompt=None,
    negative_prompt=None,
    guidance_scale=None,
    solver="moment_matching",
    steps=10,
    seed=0,
    num_images=1,
    device="cpu",
    dtype="float32",
    compile=False,
    version="0.1.0",
)


def test_the_line_of_a_report():
    assert replace(REPORT, peak_gb=0.6).line == "12 NFE, 2.1 s, residual 0.000, peak 0.6 GB"
    assert replace(REPORT, peak_gb=None).line == "12 NFE, 2.1 s, residual 0.000, peak unknown"
    assert replace(REPORT, repainted=0.9).line == REPORT.line
    hint = "; 95.2 % is repainted: invert the mask if that part was to stay"
    assert replace(REPORT, repainted=0.952).line == REPORT.line + hint


def test_a_job_writes_the_files_returns_the_report_and_prints_nothing(folder, shared_model, capfd):
    job = Job(output=Path("out.png"), json_file=Path("report.json"), model=str(shared_model), steps=2, seed=3)
    task = adhere.Inpaint("photo.png", "mask.png")
    job.check(Path("photo.png"), Path("mask.png"))
    report = job.run(task, task.picture.size)
    assert capfd.readouterr() == ("", "")
    assert Image.open("out.png").size == (31, 24)
    assert json.loads(Path("report.json").read_text()) == asdict(report)
    assert (report.steps, report.seed, report.model) == (2, 3, str(shared_model))


def test_a_job_gives_the_picture_of_the_python_call(folder, shared_model):
    task = adhere.Inpaint("photo.png", "mask.png")
    Job(output=Path("out.png"), model=str(shared_model), steps=2, seed=3, device="cpu").run(task)
    pipe = adhere.load(shared_model)
    out = pipe(task, num_inference_steps=2, generator=torch.Generator().manual_seed(3))
    image = out.images[0]
    assert isinstance(image, Image.Image)
    assert Image.open("out.png").tobytes() == image.tobytes()


def test_a_job_that_fails_raises_and_prints_nothing(folder, shared_model, capfd):
    job = Job(output=Path("photo.png"), model=str(shared_model), steps=1)
    with pytest.raises(adhere.AdhereError, match="--force"):
        job.check(Path("photo.png"))
    with pytest.raises(adhere.AdhereError, match="allows 1 to 1000"):
        replace(job, output=Path("out.png"), steps=1001).run(adhere.Generate())
    assert capfd.readouterr() == ("", "")
    assert not Path("out.png").exists()
