"""The tables of a study: published figures, filled and empty cells, and runs that are excluded."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY

from kd.reports import figures
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.studies import tables
from kd.studies.runs import gather
from kd.studies.study import Study

THESIS = ROOT.parent / "shared" / "thesis.md"
SE, PLAIN = ("seresnet50", "seresnet101"), ("vgg11", "resnet18", "resnet34", "resnet50")


def as_mura(report):
    report["data"]["name"] = "mura"


def whole_study(make, seeds=(0, 1), change=lambda report: None):
    for seed in seeds:
        for name in (*SE, *PLAIN):
            make("alone", "", name, seed, change)
        for name in SE:
            make("defective-alone", "", name, seed, change)
        for large in SE:
            for small in PLAIN:
                make("normal", large, small, seed, change)
                make("reverse", small, large, seed, change)
                make("defective", large, small, seed, change)


@pytest.mark.draws
def test_a_whole_study_fills_three_tables_and_missing_runs_are_named_with_their_commands(make, script):
    whole_study(make)
    result = tables.write_tables(Path("runs"), 0.01)
    assert [table["title"] for table in result["protocols"][0]["tables"]] == list(tables.TITLES.values())
    assert all(len(table["cells"]) == 8 and not table["missing"] for table in result["protocols"][0]["tables"])
    assert all(cell["n"] == 2 and cell["minus_alone"]["seeds"] == 2 for cell in result["protocols"][0]["tables"][0]["cells"])
    assert Path("runs/tables.md").read_text().count("No missing runs.") == 3
    gone = [Path(f"runs/set/{name}") for name in ("normal/seresnet50-vgg11/seed1", "reverse/vgg11-seresnet101/seed0",
                                              "defective/seresnet50-resnet34/seed0", "defective/seresnet50-resnet34/seed1",
                                              "defective-alone/-seresnet101/seed1")]
    for folder in gone:
        shutil.rmtree(folder)
    code, out = script("evaluate", ["--tables", "runs"])
    commands = [line.strip() for line in out.splitlines() if line.startswith("    python ")]
    assert code == 0 and len(commands) == 5 and "Missing runs: 1." in out and "Missing runs: 3." in out
    wanted = {("distill.py", "--mode", "normal", "--teacher", "seresnet50", "--student", "vgg11", "--seed", "1"),
              ("distill.py", "--mode", "reverse", "--teacher", "vgg11", "--student", "seresnet101", "--seed", "0"),
              ("distill.py", "--mode", "defective", "--teacher", "seresnet50", "--student", "resnet34", "--seed", "0"),
              ("distill.py", "--mode", "defective", "--teacher", "seresnet50", "--student", "resnet34", "--seed", "1"),
              ("train_teacher.py", "--model", "seresnet101", "--seed", "1")}
    found = set()
    for command in commands:
        words = shlex.split(command)
        place = words.index("--config")
        assert Path(words[place + 1]).is_file() and words[-2:] == ["--out", "runs"]
        found.add((words[1], *words[place + 2:-2]))
    assert found == wanted


def test_the_commands_fill_the_cells(script):
    for seed in (0, 1):
        pair = ["--teacher", "kdwide", "--student", "kdtiny", "--mode", "normal"]
        assert script("distill", [*pair, *TINY, "--max-steps", "1", "--seed", seed])[0] == 0
    assert script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "1"])[0] == 0
    shutil.rmtree("runs/synthetic-patient-32/normal/kdwide-kdtiny/seed1")
    out = script("evaluate", ["--tables", "runs"])[1]
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("    python ")]
    assert len(commands) == 2
    for words in commands:
        assert script(words[1].removesuffix(".py"), words[2:])[0] == 0
    result = json.loads(Path("runs/tables.json").read_text())
    assert script("evaluate", ["--tables", "runs"])[0] == 0
    after = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"][0]
    assert len(result["protocols"][0]["tables"][0]["missing"]) == 2 and not after["missing"]
    assert after["cells"][0]["n"] == 2 and after["cells"][0]["minus_teacher"]["seeds"] == 2


def test_every_published_figure_is_beside_its_cell_for_mura_only(make):
    whole_study(make, seeds=(0,), change=as_mura)
    result = tables.write_tables(Path("runs"), 0.01)
    printed, text = tables.published(), Path("runs/tables.md").read_text()
    for table in result["protocols"][0]["tables"]:
        for cell in table["cells"]:
            assert cell["published"] == printed[table["mode"]]["students"][cell["teacher"]][cell["student"]]
            assert " / ".join(cell["published"]) in text
    assert sum(len(row) for mode in tables.TITLES for row in printed[mode]["students"].values()) == 24
    assert all(" ".join(one["macro"]) in text and " | ".join(one["recall"]) in text for one in printed["reports"])
    shutil.rmtree("runs")
    whole_study(make, seeds=(0,))
    tables.write_tables(Path("runs"), 0.01)
    assert "published" not in Path("runs/tables.md").read_text().replace("published figures", "")


@pytest.mark.skipif(not THESIS.is_file(), reason="the figures of the thesis are not beside the project")
def test_the_published_figures_are_those_of_the_thesis():
    text, printed = THESIS.read_text(), tables.published()

    def whole(number):
        return number if number.startswith("1") else "0" + number

    def figures_of(row):
        return [[whole(number) for number in cell.replace(" ", "").split("/")] for cell in row]

    def section(start, end):
        return text[text.index(start):text.index(end)]

    names = {"ResNet18": "resnet18", "ResNet34": "resnet34", "ResNet50": "resnet50", "VGG11": "vgg11",
             "SE-ResNet50": "seresnet50", "SE-ResNet101": "seresnet101"}
    count = 0
    for mode, start, end, turned in (("normal", "Normal KD, student <- teacher", "Teachers of Reverse", False),
                                     ("reverse", "Reverse KD, student <- teacher", "Defective teachers", False),
                                     ("defective", "Defective KD, student <- teacher", "Six classification", False)):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section(start, end).splitlines()
                            if line.startswith("|")]
        for row in rows:
            for teacher, cell in zip(header[1:], figures_of(row[1:])):
                assert printed[mode]["students"][names[teacher]][names[row[0]]] == cell
                count += 1
    for mode, start, end in (("normal", "Teachers of Normal KD", "Normal KD, student"),
                             ("defective", "Defective teachers", "Defective KD,"),
                             ("reverse", "Teachers of Reverse KD", "VGG11 as a teacher")):
        for name, cell in re.findall(r"((?:SE-)?ResNet\d+) (\.\d+ / \.\d+ / \.\d+)", section(start, end).replace("\n", " ")):
            assert [printed[mode]["teachers"][names[name]]] == figures_of([cell])
            count += 1
    assert count == 24 + 2 + 3 + 2
    short = {"R34": "resnet34", "R50": "resnet50", "SE50": "seresnet50", "SE101": "seresnet101"}
    rows = re.findall(r"\| (normal|reverse|defective) (\w+) -> (\w+) \| (.*?) \| (.*?) \| (.*?) \| (\S+); (.*?); (.*?) \|", text)
    assert len(rows) == 6
    for (mode, teacher, student, *series, accuracy, macro, weighted), one in zip(rows, printed["reports"]):
        assert (mode, short[teacher], short[student]) == (one["mode"], one["teacher"], one["student"])
        full = [[whole(number) for number in cell.split()] for cell in (*series, macro, weighted)]
        assert full == [one[key] for key in ("precision", "recall", "f1", "macro", "weighted")]
        assert one["accuracy"] == "0" + accuracy


def test_unusable_runs_are_listed_and_the_others_are_printed(make, script):
    for seed in (0, 1):
        make("alone", "", "resnet18", seed)
        make("normal", "resnet50", "resnet18", seed)
    make("normal", "resnet50", "resnet18", 0, where="runs/copy/of/it/seed0")
    make("normal", "resnet50", "resnet34", 0, lambda report: report.update(schema_version=1))
    cut = make("normal", "resnet50", "resnet34", 1) / "report.json"
    cut.write_text(cut.read_text()[:500])
    nan = make("reverse", "resnet18", "resnet50", 0) / "report.json"
    nan.write_text(nan.read_text().replace('"ece": ', '"ece": NaN, "x": ', 1))
    empty = make("reverse", "resnet18", "resnet50", 1)
    (empty / "predictions.csv").unlink()
    for seed, old, new in ((2, ",0.0,", ",nan,"), (3, "label", "lable")):
        file = make("reverse", "resnet18", "resnet50", seed) / "predictions.csv"
        file.write_text(file.read_text().replace(old, new))
    lines = (make("reverse", "resnet18", "resnet50", 4) / "predictions.csv").read_text().splitlines(True)
    Path("runs/set/reverse/resnet18-resnet50/seed4/predictions.csv").write_text("".join([lines[0], *lines[:0:-1]]))
    shutil.copy("runs/set/normal/resnet50-resnet18/seed0/predictions.csv", make("reverse", "resnet18", "resnet50", 5))
    make("reverse", "resnet18", "resnet50", 6, lambda report: report.update(classification_report={}))
    spaced = make("normal", "resnet50", "resnet18", 2) / "predictions.csv"
    spaced.write_text(spaced.read_text() + "\n\n")  # blank lines do no harm
    make("normal", "resnet50", "resnet18", 7, lambda report: report["data"].update(split_hash="another"))
    code, out = script("evaluate", ["--tables", "runs"])
    left = out[out.index("# Excluded"):]
    assert code == 0 and "| resnet18 <- resnet50 |" in out and out.count("# synthetic, patient split") == 2
    assert "is in the same table cell as" in left and "schema_version is 1, but 6 is required" in left
    assert left.count("' is damaged: it does not contain a JSON object") == 2 and "predictions.csv' cannot be read" in left
    assert all(words in left for words in ("not finite", "other columns", "or in another order", "differ in accuracy",
                                           "lacks its averages")), left
    assert left.count("\n- ") == 10 and "n = 3" in out


def test_tables_without_any_run_are_refused(script):
    Path("empty").mkdir()
    code, out = script("evaluate", ["--tables", "empty"])
    assert code == 2 and "has no finished run" in out


def test_settings_that_differ_inside_a_table_are_named(make):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet18", 0)
    make("normal", "resnet34", "resnet18", 0, lambda report: report["settings"].update(epochs=9))
    result = tables.write_tables(Path("runs"), 0.01)
    assert result["protocols"][0]["tables"][0]["recipes"] == ["epochs: 2, 9"]
    assert "(students, baselines, teachers): epochs: 2, 9." in Path("runs/tables.md").read_text()
    shutil.rmtree("runs")
    make("alone", "", "resnet18", 0, lambda report: report["settings"].update(lr=0.5))
    make("normal", "resnet50", "resnet18", 0)
    assert tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"][0]["recipes"] == ["lr: 0.001, 0.5"]


def test_a_train_accuracy_is_that_of_all_seeds_of_a_cell_or_none(make):
    """With --keep-matched, it is unknown in the seeds in which fine-tuning did not help."""
    for seed, train in ((0, 0.5), (1, None)):
        make("alone", "", "kdtiny", seed)
        make("unlabeled", "kdwide", "kdtiny", seed, lambda report: report["results"]["best"].update(train_accuracy=train))
    [protocol] = tables.write_tables(Path("runs"))["protocols"]
    [table] = protocol["tables"]
    [cell] = table["cells"]
    assert cell["n"] == 2 and cell["train"] is None and cell["valid"] is not None and cell["test"] is not None


def test_precision_device_and_ranks_that_differ_inside_a_table_are_named(make):
    def clock(**values):
        return lambda report: report["clock"].update(values)

    make("alone", "", "resnet18", 0, clock(precision="float32", device="cpu (x)", ranks=None))  # of an earlier version
    make("normal", "resnet34", "resnet18", 0, clock(precision="bf16", device="cpu (y)", ranks=1))
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert table["recipes"] == ["precision: bf16 (resnet18), float32 (resnet18)"]  # the same kind of device
    make("normal", "resnet34", "resnet18", 1, clock(precision="bf16, depthwise convolutions in float32",
                                                    device="cuda (H100 (80 GB))", ranks=2))
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert table["recipes"] == [
        "precision: bf16 (resnet18), bf16 with depthwise convolutions in float32 (resnet18), float32 (resnet18)",
        "kind of device: cpu, cuda", "ranks: 1, 2"]
    assert "ranks: 1, 2." in Path("runs/tables.md").read_text()


def on_data(**values):
    """Return a change of a report's entry on the data."""
    return lambda report: report["data"].update(values)


def test_the_heading_counts_images_once_and_names_their_repeats(make):
    make("normal", "resnet34", "resnet18", 0)
    [found] = tables.write_tables(Path("runs"), 0.01)["protocols"]
    parts = reports.read(Path("runs/set/normal/resnet34-resnet18/seed0"))["data"]["parts"]
    counts = " / ".join(str(parts[name]) for name in ("train", "valid", "test"))
    assert found["heading"].endswith(f", {counts} training / validation / test images") and found["notes"] == []
    shutil.rmtree("runs")
    repeated = {"distinct_images": {**parts, "train": 4}}
    make("normal", "resnet34", "resnet18", 0, on_data(**repeated))
    [found] = tables.write_tables(Path("runs"), 0.01)["protocols"]
    own = " / ".join(["4", *counts.split(" / ")[1:]])
    assert found["heading"].endswith(f", {own} training / validation / test images ({counts} with repeats)")


@pytest.mark.parametrize("patients, without, units", [
    (7, 0, "7 patients"), (1, 0, "1 patient"), (0, 84, "84 images, whose patients are not known"),
    (7, 1, "7 patients and 1 image, whose patient is not known")])
def test_images_without_a_patient_are_not_called_patients(make, patients, without, units):
    change = on_data(patients={"test": patients}, without_patient={"test": without})
    make("normal", "resnet34", "resnet18", 0, change)
    [runs], _, _ = gather(Path("runs"), "--tables")
    assert Study(runs).units == units
    [found] = tables.write_tables(Path("runs"), 0.01)["protocols"]
    assert found["notes"] == ([f"The test split has {units}. An image without a known patient counts as a patient of its own, or with its study if that is known:"
                               " one patient can be in several splits, and the intervals may be too narrow."] if without else [])


def test_patients_that_an_old_report_does_not_tell_are_counted_in_its_predictions(make):
    unknown = {"test": None}
    folder = make("normal", "resnet34", "resnet18", 0, on_data(patients=unknown, without_patient=unknown))
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    for row in [row for row in rows if row["part"] == "test"][:3]:
        row["patient"] = row["path"]
    with (folder / "predictions.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    [runs], _, _ = gather(Path("runs"), "--tables")
    known = {row["patient"] for row in rows if row["part"] == "test" and row["patient"] != row["path"]}
    assert Study(runs).units == f"{len(known)} patients and 3 images, whose patients are not known"


def test_a_split_that_leaks_is_called_so_with_its_counts(make, script):
    make("normal", "resnet34", "resnet18", 0, on_data(split="given", leaks=True, overlaps={"patients": 412, "files": 1}))
    out = script("evaluate", ["--tables", "runs"])[1]
    assert "# synthetic, given split THAT LEAKS (seed 0," in out
    assert "**WARNING: THIS SPLIT LEAKS. In more than one split: 412 patients, 1 identical file. The accuracies are too" in out
    shutil.rmtree("runs")
    make("normal", "resnet34", "resnet18", 0, on_data(split="thesis", leaks=True))  # of unknown patients, for example
    assert "thesis split THAT MAY LEAK" in script("evaluate", ["--tables", "runs"])[1]
    shutil.rmtree("runs")
    make("normal", "resnet34", "resnet18", 0)
    assert "LEAKS" not in script("evaluate", ["--tables", "runs"])[1]


@pytest.mark.parametrize("split, said", [("patient", True), ("given", True), ("thesis", False)])
def test_published_figures_below_those_of_another_split_are_said_to_be_from_a_split_by_image(make, split, said):
    make("normal", "seresnet50", "resnet18", 0, on_data(name="mura", split=split))
    tables.write_tables(Path("runs"), 0.01)
    text = Path("runs/tables.md").read_text()
    assert (f"published figures are from a split by image, in which a patient can be in training and in test. The measured ones are"
            f" from --split {split}" in text) == said and "published" in text


def test_differences_are_those_of_the_runs_they_name(make):
    for seed in (0, 1, 2):
        for name in ("resnet18", "resnet34"):
            make("alone", "", name, seed)
            make("normal", "seresnet50", name, seed)
    make("normal", "seresnet50", "resnet18", 3)  # a seed without a baseline
    cells = {cell["student"]: cell for cell in tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"][0]["cells"]
             if cell["n"]}

    def accuracy(role, teacher, name, seed, of=lambda report: report["results"]["best"]):
        return of(reports.read(Path(f"runs/set/{role}/{teacher}-{name}/seed{seed}")))["test_accuracy"]

    for name, seeds in (("resnet18", (0, 1, 2, 3)), ("resnet34", (0, 1, 2))):
        own = [accuracy("normal", "seresnet50", name, seed) for seed in seeds]
        alone = [accuracy("alone", "", name, seed) for seed in (0, 1, 2)]
        taught = [accuracy("normal", "seresnet50", name, seed, lambda report: report["teacher"]) for seed in seeds]
        cell = cells[name]
        assert cell["test"]["mean"] == pytest.approx(np.mean(own)) and cell["test"]["sd"] == pytest.approx(np.std(own, ddof=1))
        assert cell["minus_alone"]["mean"] == pytest.approx(np.mean(own[:3]) - np.mean(alone)) != 0
        assert cell["minus_teacher"]["mean"] == pytest.approx(np.mean(own) - np.mean(taught)) != 0
        for gap in (cell["minus_alone"], cell["minus_teacher"]):
            assert gap["low"] < gap["mean"] < gap["high"] and gap["says"].startswith("no verdict: too few differences")
    assert (cells["resnet18"]["minus_alone"]["seeds"], cells["resnet18"]["minus_teacher"]["seeds"]) == (3, 4)


def test_commands_take_over_nothing_that_belongs_to_another_run(make, script):
    make("defective-alone", "", "seresnet50", 0)
    make("defective", "seresnet50", "resnet18", 0, lambda report: report["settings"].update(
        teacher_checkpoint="mine.pt", weights="r18.pt", max_minutes=5.0))
    missing = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"][0]["missing"]
    by_name = {}
    for command in missing:
        words = shlex.split(command)
        by_name[" ".join(words[words.index("--config") + 2:])] = words
    alone = next(words for key, words in by_name.items() if key.startswith("--model resnet34"))
    assert alone[alone.index("--stop-at-val-accuracy") + 1] == "none"
    other = next(words for key, words in by_name.items() if "--teacher seresnet101 --student resnet18" in key)
    assert other[other.index("--teacher-checkpoint") + 1] == "none" and "--weights" not in other
    assert other[other.index("--max-minutes") + 1] == "none"
    for words in (alone, other):
        assert script(words[1].removesuffix(".py"), [*words[2:], "--dry-run"])[0] == 0


def test_the_command_of_a_baseline_has_no_flag_of_teachers(make, script):
    """The only run to take settings from is a student whose teacher is a file."""
    make("normal", "kdwide", "kdtiny", 0, lambda report: report["settings"].update(teacher_checkpoint=["kdwide.pt"]))
    [protocol] = tables.write_tables(Path("runs"))["protocols"]
    [command] = protocol["tables"][0]["missing"]
    words = shlex.split(command)
    assert words[1] == "train_teacher.py" and script("train_teacher", [*words[2:], "--dry-run"])[0] == 0, command


def test_predictions_survive_a_round_trip_through_csv(templates):
    found, report = read_predictions(templates["student"]), reports.read(templates["student"])
    assert found.right.mean() == report["results"]["best"]["test_accuracy"]
    assert (found.teacher == found.labels).mean() == pytest.approx(report["teacher"]["test_accuracy"])
    agreement = report["agreement"]
    assert agreement["newly_wrong"] == int(((found.teacher == found.labels) & ~found.right).sum())
    rows = list(csv.DictReader((templates["student"] / "predictions.csv").open()))
    assert sum(row["newly_wrong"] == "1" for row in rows) == agreement["newly_wrong"]
    assert agreement["first_newly_wrong"] == [line for line, row in enumerate(rows, 2) if row["newly_wrong"] == "1"][:20]
    alone = read_predictions(templates["teacher"])
    assert (alone.teacher == -1).all() and reports.read(templates["teacher"])["agreement"] is None


def test_the_heat_map_shows_every_difference_and_missing_runs():
    gap = {"mean": 0.031, "low": -0.01, "high": 0.07, "says": "no evidence"}
    table = {"title": "t", "teachers": [{"teacher": "a"}, {"teacher": "b"}],
             "cells": [{"student": "s", "teacher": name, "minus_alone": own} for name, own in (("a", gap), ("b", None))]}
    for n, word in ((0, "not run"), (2, "no baseline")):
        for cell in table["cells"]:
            cell["n"] = n
        texts = [text.get_text() for text in figures.heat_map(table, "heading").axes[0].texts]
        assert texts == ["+3.1\n[-1.0, +7.0]", word]


@pytest.mark.draws
def test_curves_and_card(script, templates):
    runs = [str(templates[name]) for name in ("student", "teacher")]
    code, out = script("evaluate", ["--curves", *runs])
    assert code == 0 and Path(out.split("written: ")[1].split("curves.png")[0]).joinpath("curves.png").is_file()
    code, out = script("evaluate", ["--card", runs[0], "--device", "cpu"])
    card = json.loads((templates["student"] / "card.json").read_text())
    assert code == 0 and card["ratios"]["parameters"] < 1 and " the teacher in " in out
    # A 3 x 3 convolution 3 -> 8 with 16 x 16 outputs, and a classifier 128 -> 7.
    assert card["student"]["gmac"] * 1e9 == pytest.approx(8 * 27 * 256 + 128 * 7) and card["student"]["parameters"] == 1143
    assert card["teacher"]["ece"] == reports.read(templates["teacher"])["evidence"]["calibration"]["before"]["ece"]
    assert np.isfinite([card["ratios"][key] for key in ("latency_1", "latency_32", "file_bytes")]).all()
    code, out = script("evaluate", ["--card", runs[1]])
    card = json.loads((templates["teacher"] / "card.json").read_text())
    assert code == 0 and card["teacher"] is None and card["ratios"] is None and card["student"]["gmac"] > 0


@pytest.mark.parametrize("argv, words", [
    ([], "but got none."), (["--tables", "runs", "--check-data"], "but got --tables and --check-data."),
    (["run", "--card", "x"], "but got RUN ... and --card."), (["--check-data"], "--check-data needs a data set"),
    (["run", "--dataset", "synthetic"], "works only with --check-data"),
    (["--tables", "runs", "--subgroups", "sex"], "--subgroups works only with RUN ..., not with --tables. Remove --subgroups"),
    (["--curves", "run", "--prevalence", "0.1"], "--prevalence works only with RUN ..., not with --curves. Remove --prevalence"),
    (["--arms", "runs", "--data-dir", "images"], "--data-dir works only with RUN ... or --shift or --look or --export or --check-data, not with --arms"),
    (["run", "--margin", "0.02"], "--margin works only with --tables or --power or --export")])
def test_evaluate_takes_exactly_one_task(script, argv, words):
    code, out = script("evaluate", argv)
    assert code == 2 and words in out.splitlines()[-1]


def untaught(report):
    """Change a report as if a label distribution had taught, so that no teacher has answers."""
    report["teacher"] |= {"name": "none", "members": [], "valid_accuracy": None, "test_accuracy": None}


def test_all_modes_of_a_student_are_side_by_side_and_defective_is_compared_with_its_controls(make, script):
    for seed in (0, 1, 2):
        make("alone", "", "resnet18", seed)
        make("alone", "", "resnet34", seed)
        make("defective-alone", "", "resnet34", seed)
        for role in ("normal", "defective", "random"):
            make(role, "resnet34", "resnet18", seed)
        make("self", "anything", "resnet18", seed)
        for role in ("virtual", "smoothing"):
            make(role, "", "resnet18", seed, untaught)
    make("normal", "resnet34+resnet50", "resnet18", 0)
    code, out = script("evaluate", ["--tables", "runs"])
    protocol = json.loads(Path("runs/tables.json").read_text())["protocols"][0]
    [found] = protocol["overviews"]
    rows = {(row["mode"], row["teacher"]): row for row in found["rows"]}
    assert code == 0 and "## resnet18: comparison of all modes" in out and list(rows) == [
        ("alone", ""), ("normal", "resnet34"), ("normal", "resnet34+resnet50"), ("defective", "resnet34"), ("self", "resnet18"),
        ("virtual", "none"), ("smoothing", "none"), ("random", "resnet34")]

    def right(folder):
        return np.mean([read_predictions(Path(f"runs/set/{folder}/seed{seed}")).right.mean() for seed in (0, 1, 2)])

    virtual, defective, alone = right("virtual/-resnet18"), right("defective/resnet34-resnet18"), right("alone/-resnet18")
    row = rows["virtual", "none"]
    assert row["test"]["mean"] == pytest.approx(virtual) and row["n"] == 3
    assert row["minus_alone"]["mean"] == pytest.approx(virtual - alone)
    assert row["defective_minus"]["mean"] == pytest.approx(defective - virtual)
    assert rows["defective", "resnet34"]["defective_minus"] is None and rows["alone", ""]["minus_alone"] is None
    assert rows["normal", "resnet34+resnet50"]["minus_alone"]["seeds"] == 1
    tables_of = {table["mode"]: table for table in protocol["tables"]}
    commands = [command for table in tables_of.values() for command in table["missing"]]
    assert not any(flag in command for command in commands for flag in ("anything", "--teacher none", "--model resnet34+"))
    assert sum("--model resnet50" in command for command in commands) > 0  # the ensemble's other member
    assert tables_of["virtual"]["missing"] == tables_of["self"]["missing"] == []
    teacher = tables_of["random"]["teachers"][0]
    assert teacher["n"] == 3 and teacher["train"] is None and teacher["test"]["mean"] == pytest.approx(np.mean(
        [reports.read(Path(f"runs/set/random/resnet34-resnet18/seed{seed}"))["teacher"]["test_accuracy"] for seed in (0, 1, 2)]))


def test_a_missing_born_again_run_is_named_by_its_generations(make):
    for generations, seeds in ((1, (0, 1)), (2, (0,))):
        for seed in seeds:
            make("self", f"g{generations}", "resnet18", seed, lambda report: report["settings"].update(generations=generations))
    [table] = tables.write_tables(Path("runs"), 0.01)["protocols"][0]["tables"]
    assert [row["teacher"] for row in table["teachers"]] == ["resnet18", "resnet18-generation1"]
    wanted = [command for command in table["missing"] if "distill.py" in command]
    assert len(wanted) == 1 and "--mode self --generations 2 --student resnet18 --seed 1" in wanted[0]
    assert sum("--model resnet18 --seed" in command for command in table["missing"]) == 2
