"""The format of the results, the tables and the plots of benchmarks.tables."""

import json
import math
import sys

import numpy as np
import pytest
import torch

from benchmarks import tables
from benchmarks.tables import Row


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
    rows = [*ROWS, Row("inpaint", "a", "diverged", 1, 7, 2.0, peak_mb=300.5, scores={"psnr": -math.inf})]
    path = tmp_path / "new" / "results.json"
    about = tables.meta()
    tables.save(path, rows, about)
    again, meta = tables.load(path)
    assert again[:-1] == rows[:-1] and meta == about
    assert again[-1].peak_mb == 300.5 and math.isnan(again[-1].scores["psnr"])  # JSON has no infinity
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_file_is_plain_flat_json(tmp_path):
    tables.save(tmp_path / "r.json", ROWS[:1], {})
    (record,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert record == dict(
        task="inpaint", item="a", method="ours", seed=0, nfe=20, seconds=1.0, psnr=30.0, feature_distance=0.1
    )


def test_empty_results(tmp_path):
    tables.save(tmp_path / "r.json", [], {})
    assert tables.load(tmp_path / "r.json") == ([], {})


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "r.json"
    tables.save(path, ROWS, {})
    with pytest.raises(TypeError):
        tables.save(path, ROWS[:1], {"not json": object()})
    assert tables.load(path)[0] == ROWS


def test_meta_has_the_machine_but_not_the_host_name():
    import platform

    about = tables.meta()
    assert {"version", "machine", "cores", "torch", "date"} <= set(about)
    assert platform.node() not in map(str, about.values())


def cells(text):
    """The cells of Markdown tables, by (task, method, column)."""
    out, task, head = {}, "", []
    for line in text.splitlines():
        if line.startswith("### "):
            task, head = line[4:], []
        elif line.startswith("|") and not line.startswith("| ---"):
            parts = [part.strip() for part in line.strip("|").split(" | ")]
            head = head or parts
            out |= {(task, parts[0], column): part for column, part in zip(head, parts, strict=True)}
    return out


def test_table_has_means_and_the_best_is_bold():
    found = cells(tables.table(ROWS))
    assert found["inpaint", "ours", "PSNR (dB)"] == "**32.00**"  # higher is better
    assert found["inpaint", "theirs", "PSNR (dB)"] == "30.00"
    assert found["inpaint", "ours", "feature distance"] == "**0.2000**"  # lower is better
    assert found["inpaint", "theirs", "feature distance"] == "0.3000"
    assert found["inpaint", "theirs", "seconds"] == "**0.50**"
    assert found["upscale", "spline", "NFE"] == "0"  # no value is best
    assert ("upscale", "ours", "PSNR (dB)") not in found


def test_table_of_given_columns_has_all_of_them():
    found = cells(tables.table(ROWS, ["psnr", "ssim"]))
    assert found["upscale", "ours", "PSNR (dB)"] == "–"
    assert ("upscale", "ours", "NFE") not in found


def test_ties_are_all_bold_and_nan_is_not():
    found = cells(tables.table([row("a", psnr=30.0), row("b", psnr=30.001), row("c", psnr=math.nan)]))
    assert [found["inpaint", m, "PSNR (dB)"] for m in "abc"] == ["**30.00**", "**30.00**", "nan"]


def test_the_reference_is_not_bold_and_spread_is_best_at_one():
    found = cells(
        tables.table([row("exact", spread=1.0, sw2=0), row("a", spread=0.5, sw2=1), row("b", spread=1.1, sw2=2)])
    )
    assert [found["inpaint", m, "spread"] for m in ("exact", "a", "b")] == ["1.00", "0.50", "**1.10**"]
    assert [found["inpaint", m, "sliced W2"] for m in ("exact", "a", "b")] == ["0.0000", "**1.0000**", "2.0000"]


def test_scalars_of_numpy_and_torch_are_saved(tmp_path):
    tables.save(tmp_path / "r.json", [row("a", psnr=np.float32(30.5)), row("b", psnr=torch.tensor(31.5))], {})
    assert [r.scores["psnr"] for r in tables.load(tmp_path / "r.json")[0]] == [30.5, 31.5]


def test_a_method_with_fewer_items_says_so():
    more_seeds = row("ours", "a", seed=1, psnr=31.0)
    assert "| theirs (1 of 2 items) |" in tables.table([*ROWS[:3], more_seeds])
    assert "items)" not in tables.table([*ROWS[:4], more_seeds])  # some methods have one seed only


def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match=r"pnsr.*psnr"):
        row("ours", pnsr=30.0)
    with pytest.raises(ValueError, match="seconds"):
        Row("inpaint", "a", "ours", 0, 20, 1.0, scores={"seconds": 1.0})


@pytest.mark.parametrize("against", ["nfe", "seconds"])
def test_command_prints_tables_and_plots(against, tmp_path, monkeypatch, capsys):
    source, out = tmp_path / "r.json", tmp_path / "out.png"
    tables.save(source, [*ROWS, row("ours @ 50", nfe=50, psnr=33.0), row("flat", nfe=0, psnr=20.0)], tables.meta())
    monkeypatch.setattr(sys, "argv", ["tables", str(source), "--plot", str(out), "--against", against])
    tables.main()
    assert "### inpaint" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="residual"):
        tables.plot(ROWS, "unused.png", "residual")


def test_tables_can_be_embedded_repeatedly(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- photo -->\nold\n<!-- /photo -->\nafter\n")
    for text in ("one\n", "two\n"):
        tables.embed(page, "photo", text)
    assert page.read_text() == "before\n<!-- photo -->\ntwo\n<!-- /photo -->\nafter\n"
    with pytest.raises(ValueError, match="no <!-- posterior -->"):
        tables.embed(page, "posterior", "text")


def test_only_scores_of_several_items_have_intervals():
    rows = [
        row("ours", psnr=30.0),
        Row("inpaint", "b", "ours", 0, 20, 1.0, scores={"psnr": 34.0}),
        row("flat", psnr=20.0),
    ]
    text = tables.table(rows, ("psnr", "nfe"), intervals=True)
    assert "**32.00** ± 25.42" in text  # 12.71 * 2 sqrt 2 / sqrt 2
    assert "20.00 |" in text
    assert text.count("±") == 1


def test_pairs_are_the_items_and_seeds_that_both_methods_have():
    rows = [
        *(row("old", item, seed=seed, psnr=20.0 + i) for i, (item, seed) in enumerate([("a", 0), ("a", 1), ("b", 0)])),
        row("new", "a", seed=0, psnr=21.0),
        row("new", "b", seed=0, psnr=25.0),
        row("new", "c", seed=0, psnr=99.0),
        row("old", "b", seed=1, psnr=math.nan),
        row("new", "b", seed=1, psnr=1.0),
    ]
    assert tables.paired_differences(rows, "old", "new", "psnr") == [-1.0, -3.0]
    assert "| inpaint | 2 | -2.00 ± 12.71 |" in tables.comparison(rows, "old", "new")  # 12.71 * sqrt 2 / sqrt 2
    assert "ssim" not in tables.comparison(rows, "old", "new")


def test_the_command_prints_paired_differences(tmp_path, monkeypatch, capsys):
    tables.save(tmp_path / "r.json", ROWS, {})
    monkeypatch.setattr(sys, "argv", ["tables", str(tmp_path / "r.json"), "--compare", "ours", "theirs"])
    tables.main()
    printed = capsys.readouterr().out
    assert printed.startswith("ours minus theirs\n")
    assert "| inpaint | 2 | 2.00 ±" in printed and "upscale" not in printed


def test_the_command_selects_tasks(tmp_path, monkeypatch, capsys):
    source = tmp_path / "r.json"
    tables.save(source, [row("ours", psnr=30.0), Row("other", "a", "ours", 0, 20, 1.0)], tables.meta())
    monkeypatch.setattr(sys, "argv", ["tables", str(source), "--tasks", "other"])
    tables.main()
    assert "inpaint" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["tables", str(source), "--tasks", "nothing"])
    with pytest.raises(SystemExit):
        tables.main()
    assert "'inpaint', 'other'" in capsys.readouterr().err
