import json
import math
import sys

import numpy as np
import pytest
import torch

from benchmarks import rows as bench
from benchmarks.rows import Row


def row(method, item="a", task="inpaint", seed=0, nfe=20, seconds=1.0, **scores):
    return Row(task, item, method, seed, nfe, seconds, scores=scores)


ROWS = [
    row("ours", "a", psnr=30.0, feature_distance=0.1),
    row("ours", "b", psnr=34.0, feature_distance=0.3),
    row("theirs", "a", psnr=31.0, feature_distance=0.4, seconds=0.5),
    row("theirs", "b", psnr=29.0, feature_distance=0.2, seconds=0.5),
    row("ours", task="upscale", ssim=0.9),
    row("spline", task="upscale", nfe=0, ssim=0.8),
]


def test_round_trip(tmp_path):
    rows = [*ROWS, Row("inpaint", "a", "blew up", 1, 7, 2.0, peak_mb=300.5, scores={"psnr": -math.inf})]
    path = tmp_path / "new" / "results.json"
    about = bench.meta()
    bench.save(path, rows, about)
    again, meta = bench.load(path)
    assert again[:-1] == rows[:-1] and meta == about
    assert again[-1].peak_mb == 300.5 and math.isnan(again[-1].scores["psnr"])  # JSON has no infinity
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_file_is_plain_flat_json(tmp_path):
    bench.save(tmp_path / "r.json", ROWS[:1], {})
    (record,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert record == dict(
        task="inpaint", item="a", method="ours", seed=0, nfe=20, seconds=1.0, psnr=30.0, feature_distance=0.1
    )


def test_empty_results(tmp_path):
    bench.save(tmp_path / "r.json", [], {})
    assert bench.load(tmp_path / "r.json") == ([], {})


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    bench.save(path, ROWS, {})
    with pytest.raises(TypeError):
        bench.save(path, ROWS[:1], {"not json": object()})
    assert bench.load(path)[0] == ROWS


def test_meta_tells_the_machine_but_not_its_name():
    import platform

    about = bench.meta()
    assert {"version", "machine", "cores", "torch", "date"} <= set(about)
    assert platform.node() not in map(str, about.values())


def cells(text):
    """{(task, method, column): cell}"""
    out, task, head = {}, "", []
    for line in text.splitlines():
        if line.startswith("### "):
            task, head = line[4:], []
        elif line.startswith("|") and not line.startswith("| ---"):
            parts = [part.strip() for part in line.strip("|").split(" | ")]
            head = head or parts
            out |= {(task, parts[0], column): part for column, part in zip(head, parts, strict=True)}
    return out


def test_table_shows_means_and_marks_the_best():
    table = cells(bench.table(ROWS))
    assert table["inpaint", "ours", "PSNR (dB)"] == "**32.00**"  # higher is better
    assert table["inpaint", "theirs", "PSNR (dB)"] == "30.00"
    assert table["inpaint", "ours", "feature distance"] == "**0.2000**"  # lower is better
    assert table["inpaint", "theirs", "feature distance"] == "0.3000"
    assert table["inpaint", "theirs", "seconds"] == "**0.50**"
    assert table["upscale", "spline", "NFE"] == "0"  # a budget is no merit
    assert ("upscale", "ours", "PSNR (dB)") not in table


def test_table_of_chosen_columns_has_them_all():
    table = cells(bench.table(ROWS, ["psnr", "ssim"]))
    assert table["upscale", "ours", "PSNR (dB)"] == "–"
    assert ("upscale", "ours", "NFE") not in table


def test_ties_are_all_best_and_nan_never():
    table = cells(bench.table([row("a", psnr=30.0), row("b", psnr=30.001), row("c", psnr=math.nan)]))
    assert [table["inpaint", m, "PSNR (dB)"] for m in "abc"] == ["**30.00**", "**30.00**", "nan"]


def test_the_reference_is_never_marked_and_spread_is_best_at_one():
    table = cells(
        bench.table([row("exact", spread=1.0, sw2=0), row("a", spread=0.5, sw2=1), row("b", spread=1.1, sw2=2)])
    )
    assert [table["inpaint", m, "spread"] for m in ("exact", "a", "b")] == ["1.00", "0.50", "**1.10**"]
    assert [table["inpaint", m, "sliced W2"] for m in ("exact", "a", "b")] == ["0.0000", "**1.0000**", "2.0000"]


def test_scalars_of_numpy_and_torch_are_saved(tmp_path):
    bench.save(tmp_path / "r.json", [row("a", psnr=np.float32(30.5)), row("b", psnr=torch.tensor(31.5))], {})
    assert [r.scores["psnr"] for r in bench.load(tmp_path / "r.json")[0]] == [30.5, 31.5]


def test_a_method_that_was_run_on_less_says_so():
    more_seeds = row("ours", "a", seed=1, psnr=31.0)
    assert "| theirs (1 of 2 items) |" in bench.table([*ROWS[:3], more_seeds])
    assert "items)" not in bench.table([*ROWS[:4], more_seeds])  # some methods need no seeds


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match=r"pnsr.*psnr"):
        row("ours", pnsr=30.0)
    with pytest.raises(ValueError, match="seconds"):
        Row("inpaint", "a", "ours", 0, 20, 1.0, scores={"seconds": 1.0})


@pytest.mark.parametrize("against", ["nfe", "seconds"])
def test_command_prints_tables_and_plots(against, tmp_path, monkeypatch, capsys):
    source, out = tmp_path / "r.json", tmp_path / "out.png"
    bench.save(source, [*ROWS, row("ours @ 50", nfe=50, psnr=33.0), row("flat", nfe=0, psnr=20.0)], bench.meta())
    monkeypatch.setattr(sys, "argv", ["rows", str(source), "--plot", str(out), "--against", against])
    bench.main()
    assert "### inpaint" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="residual"):
        bench.plot(ROWS, "unused.png", "residual")


def test_tables_are_put_into_a_page_again_and_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- photo -->\nold\n<!-- /photo -->\nafter\n")
    for text in ("one\n", "two\n"):
        bench.embed(page, "photo", text)
    assert page.read_text() == "before\n<!-- photo -->\ntwo\n<!-- /photo -->\nafter\n"
    with pytest.raises(ValueError, match="no <!-- truth -->"):
        bench.embed(page, "truth", "text")


def test_intervals_stand_beside_scores_of_several_items_only():
    rows = [
        row("ours", psnr=30.0),
        Row("inpaint", "b", "ours", 0, 20, 1.0, scores={"psnr": 34.0}),
        row("flat", psnr=20.0),
    ]
    text = bench.table(rows, ("psnr", "nfe"), intervals=True)
    assert "**32.00** ± 25.42" in text  # 12.71 * 2 sqrt 2 / sqrt 2
    assert "20.00 |" in text
    assert text.count("±") == 1


def test_the_command_takes_some_of_the_tasks(tmp_path, monkeypatch, capsys):
    source = tmp_path / "r.json"
    bench.save(source, [row("ours", psnr=30.0), Row("other", "a", "ours", 0, 20, 1.0)], bench.meta())
    monkeypatch.setattr(sys, "argv", ["rows", str(source), "--tasks", "other"])
    bench.main()
    assert "inpaint" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["rows", str(source), "--tasks", "nothing"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "'inpaint', 'other'" in capsys.readouterr().err
