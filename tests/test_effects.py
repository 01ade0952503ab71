"""What a study says as a whole: the effect of each mode, its teachers, its margin, flags, and power."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from kd.reports import statistics
from kd.reports.predictions import Predictions, read_predictions
from kd.studies import power, tables
from kd.system.errors import Problem


def protocol(margin=None):
    [found] = tables.write_tables(Path("runs"), margin)["protocols"]
    return found


def setting(**values):
    return lambda report: report["settings"].update(values)


def right(folder, seed):
    return read_predictions(Path(f"runs/set/{folder}/seed{seed}")).right.astype(float)


def rewrite(folder, change):
    """Replace the rows of a run's predictions by `change(number, row)`, and make its report agree."""
    file, report = folder / "predictions.csv", json.loads((folder / "report.json").read_text())
    with file.open() as opened:
        rows = [change(number, row) for number, row in enumerate(csv.DictReader(opened))]
    for row in rows:
        for name in report["data"]["classes"]:
            row[f"logit_{name}"] = float(name == row["predicted"])
    with file.open("w") as opened:
        writer = csv.DictWriter(opened, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    test = [row for row in rows if row["part"] == "test"]
    report["results"]["best"]["test_accuracy"] = float(np.mean([row["predicted"] == row["label"] for row in test]))
    if report["teacher"]:
        report["teacher"]["test_accuracy"] = float(np.mean([row["teacher"] == row["label"] for row in test]))
    (folder / "report.json").write_text(json.dumps(report))


def answer(folder, of_row):
    rewrite(folder, lambda number, row: row | {"predicted": of_row(row)})


def study(make, seeds=(0, 1, 2)):
    for seed in seeds:
        for student in ("resnet18", "vgg11"):
            make("alone", "", student, seed)
            for teacher in ("seresnet50", "seresnet101"):
                make("normal", teacher, student, seed)
                make("defective", teacher, student, seed)
            make("self", "anything", student, seed)


def test_the_effect_of_a_mode_is_the_mean_over_its_pairs(make):
    study(make)
    found = protocol()
    first, second = found["effects"]
    assert [(row["mode"], row["minus"], len(row["pairs"])) for row in first["rows"]] == [
        ("normal", "alone", 4), ("defective", "alone", 4), ("self", "alone", 2)]
    assert [(row["mode"], row["minus"], len(row["pairs"])) for row in second["rows"]] == [
        ("defective", "normal", 4), ("defective", "self", 4)]
    names = [(teacher, student) for teacher in ("seresnet50", "seresnet101") for student in ("vgg11", "resnet18")]
    sides = [np.stack([np.mean([right(f"normal/{teacher}-{student}", seed) for teacher, student in names], 0) for seed in (0, 1, 2)]),
             np.stack([np.mean([right(f"alone/-{student}", seed) for _, student in names], 0) for seed in (0, 1, 2)])]
    patients = read_predictions(Path("runs/set/alone/-vgg11/seed0")).patients
    expected = statistics.estimate(statistics.compare(*sides, patients))
    row = first["rows"][0]
    assert (row["gap"]["low"] + row["gap"]["high"]) / 2 == pytest.approx(expected.center)
    assert row["gap"]["mean"] == pytest.approx(np.mean(list(row["pairs"].values())))
    assert row["spread"] == pytest.approx(np.std(list(row["pairs"].values()), ddof=1)) and row["left_out"] == {}
    text = Path("runs/tables.md").read_text()
    assert text.index("mean effect of each mode") < text.index("comparison of all modes") < text.index("9.3.1")


def test_pairs_with_fewer_seeds_are_named_and_not_averaged(make):
    study(make)
    make("alone", "", "resnet34", 0)
    make("normal", "seresnet50", "resnet34", 0)
    row = protocol()["effects"][0]["rows"][0]
    assert len(row["pairs"]) == 4 and row["left_out"] == {"resnet34 <- seresnet50": [1, 2]}
    assert ("normal minus baseline: not averaged, because runs are missing: resnet34 <- seresnet50 (without seeds 1, 2)."
            in Path("runs/tables.md").read_text())


def test_one_more_seed_of_one_pair_does_not_change_the_pairs(make):
    study(make)
    make("alone", "", "vgg11", 3)
    make("normal", "seresnet50", "vgg11", 3)
    row = protocol()["effects"][0]["rows"][0]
    assert len(row["pairs"]) == 4 and row["gap"]["seeds"] == 3 and row["left_out"] == {}


def test_a_defective_pair_is_compared_with_the_same_teacher_or_the_students_own(make):
    for seed in (0, 1, 2):
        make("alone", "", "resnet18", seed)
        make("defective", "seresnet50", "resnet18", seed)
        make("unlabeled", "vgg11", "resnet18", seed)  # another teacher: no control
        for generations in (1, 2):
            make("self", f"g{generations}", "resnet18", seed, setting(generations=generations))
    first, second = protocol()["effects"]
    assert [(row["minus"], list(row["pairs"])) for row in second["rows"]] == [("self", ["resnet18 <- seresnet50"])]
    assert [list(row["pairs"]) for row in first["rows"] if row["mode"] == "self"] == [["resnet18 <- resnet18"]]
    expected = [right("defective/seresnet50-resnet18", seed).mean() - right("self/g1-resnet18", seed).mean() for seed in (0, 1, 2)]
    assert second["rows"][0]["gap"]["mean"] == pytest.approx(np.mean(expected))


def test_a_single_test_patient_gives_tables_without_intervals(make):
    for folder in (make("alone", "", "resnet18", 0), make("normal", "resnet50", "resnet18", 0)):
        rewrite(folder, lambda number, row: row | {"patient": "p"})
    found = protocol()
    assert found["effects"][0]["rows"][0]["gap"] is None and found["tables"][0]["cells"][0]["minus_alone"] is None


def words(make, margin):
    """Return the verdicts of a student whose accuracy is 0.9, with a teacher of 0.93, compared with a baseline of 0.6."""
    def answers(share, name):
        def change(number, row):
            wrong = "hand" if row["label"] != "hand" else "elbow"
            return row | {"patient": f"p{number}", "predicted": row["label"] if number % 28 < 28 * share else wrong,
                          "teacher": row["teacher"] and (row["label"] if number % 28 < 26 else wrong)}
        return change
    for seed in (0, 1, 2):
        rewrite(make("alone", "", "resnet18", seed), answers(0.2, "alone"))
        rewrite(make("normal", "resnet50", "resnet18", seed), answers(0.9, "normal"))
    cell = protocol(margin)["tables"][0]["cells"][0]
    return cell["minus_alone"]["says"], cell["minus_teacher"]["says"]


def test_the_words_of_a_study_stand_in_its_tables(make):
    assert words(make, 0.01) == ("better", "no verdict: too few differences (0)")
    text = Path("runs/tables.md").read_text()
    assert text.count("| better |") == 2  # the effect and the cell; one mode has no overview


def test_the_teachers_row_is_that_of_the_networks_that_taught(make):
    for seed in (0, 1):
        make("alone", "", "resnet18", seed)
        make("alone", "", "resnet50", seed, lambda report: report["results"]["best"].update(train_accuracy=0.25))
        make("normal", "resnet50", "resnet18", seed)
    [table] = protocol()["tables"]
    reports = [json.loads(Path(f"runs/set/normal/resnet50-resnet18/seed{seed}/report.json").read_text()) for seed in (0, 1)]
    row = table["teachers"][0]
    assert row["test"]["mean"] == pytest.approx(np.mean([report["teacher"]["test_accuracy"] for report in reports]))
    assert row["n"] == 2 and row["train"]["mean"] == 0.25 and table["notes"] == []
    # Another network of that name taught from a file: the run of the same name taught nobody.
    for seed in (0, 1):
        file = Path(f"runs/set/normal/resnet50-resnet18/seed{seed}/report.json")
        report = reports[seed]
        report["teacher"]["hash"] = report["teacher"]["members"][0]["hash"] = "of a file"
        report["teacher"]["members"][0]["split"] = "other labels"
        file.write_text(json.dumps(report))
    [table] = protocol()["tables"]
    row = table["teachers"][0]
    assert row["n"] == 1 and row["train"] is None
    assert table["notes"] == [
        "All seeds share one teacher resnet50: the intervals are conditional on this network, and do not include the variance"
        " between teachers.",
        "Warning: 2 of 2 students had a teacher that was trained on other labels than theirs."]
    assert all(note in Path("runs/tables.md").read_text() for note in table["notes"])


def test_one_name_for_several_teachers_of_a_seed_is_reported(make):
    make("normal", "resnet50", "resnet18", 0)
    make("normal", "resnet50", "resnet34", 0, lambda report: report["teacher"].update(hash="another"))
    [table] = protocol()["tables"]
    assert table["notes"] == [
        "Warning: the students of resnet50 with seed 0 were taught by different networks of this name."]
    assert table["teachers"][0]["n"] == 2


def test_a_network_of_one_class_or_at_chance_is_flagged_and_gets_no_verdict(make):
    study(make)
    for seed in (0, 1, 2):
        answer(Path(f"runs/set/normal/seresnet50-vgg11/seed{seed}"), lambda row: "hand" if seed == 0 else row["label"])
        place = iter(range(10**6))
        answer(Path(f"runs/set/normal/seresnet101-vgg11/seed{seed}"), lambda row: "hand" if next(place) % 2 else "elbow")
    cells = {(cell["student"], cell["teacher"]): cell for cell in protocol()["tables"][0]["cells"]}
    assert cells["vgg11", "seresnet50"]["flags"] == ["1 network predicts one class"]
    assert cells["vgg11", "seresnet50"]["minus_alone"]["says"] == "no verdict: 1 network predicts one class"
    assert cells["vgg11", "seresnet101"]["flags"] == ["at chance"]
    assert cells["resnet18", "seresnet50"]["flags"] == []
    text = Path("runs/tables.md").read_text()
    assert "(n = 3; 1 network predicts one class)" in text and "(n = 3; at chance)" in text


def test_the_margin_is_the_one_that_the_runs_recorded(make):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet18", 0, setting(margin=0.03))
    found = protocol()
    assert found["margin"] == 0.03 and "0.03, was recorded by the runs before" in Path("runs/tables.md").read_text()
    found = protocol(0.05)
    assert found["margin"] == 0.05 and "0.05, was given to evaluate.py; the runs recorded 0.03." in found["margin_note"]
    make("normal", "resnet50", "resnet34", 0, setting(margin=0.02))
    assert "0.02, is the smallest of those that the runs recorded (0.02, 0.03)." in protocol()["margin_note"]


def test_reports_of_earlier_versions_recorded_no_margin(make):
    make("normal", "resnet50", "resnet18", 0, lambda report: report["settings"].pop("margin"))
    assert protocol()["margin_note"] == "The margin of non-inferiority, 0.01, was not recorded by the runs."


def test_a_started_run_cannot_change_its_margin(script):
    from conftest import PAIR, TINY
    assert script("distill", [*PAIR, *TINY, "--max-steps", "1"])[0] == 0
    code, out = script("distill", [*PAIR, *TINY, "--max-steps", "1", "--margin", "0.05"])
    assert code == 2 and "margin: 0.01 -> 0.05" in out


def test_power_is_the_share_of_simulated_studies_that_find_the_effect():
    parts = power.Components(patient=0.1, seed=0.0001, both=0.1, discordant=1.0)
    random = np.random.default_rng(0)
    for seeds, patients in ((3, 100), (5, 300)):
        found = 0
        for _ in range(2000):
            gaps = 0.05 + np.sqrt(parts.patient) * random.standard_normal(patients)
            gaps = gaps + np.sqrt(parts.seed) * random.standard_normal((seeds, 1)) + np.sqrt(parts.both) * random.standard_normal(
                (seeds, patients))
            own = statistics.estimate(statistics.compare(gaps, np.zeros_like(gaps), np.arange(patients)))
            found += own.p_two_sided() < 0.05 and own.center > 0
        assert power.power(parts, 0.05, seeds, patients) == pytest.approx(found / 2000, abs=0.06)


def test_components_are_those_of_the_model():
    random = np.random.default_rng(1)
    pilots = []
    for _ in range(200):
        gaps = 0.3 * random.standard_normal(150) + 0.02 * random.standard_normal((4, 1)) + 0.2 * random.standard_normal((4, 150))
        pilots.append(statistics.compare(gaps, np.zeros_like(gaps), np.arange(150)))
    found = power.components(pilots)
    assert found.patient == pytest.approx(0.09, rel=0.1) and found.both == pytest.approx(0.04, rel=0.05)
    assert found.seed == pytest.approx(0.0004, rel=0.2)


def test_the_power_counts_studies_in_which_too_few_patients_differ():
    few = power.Components(patient=0.03, seed=0.0, both=0.03, discordant=0.05)
    everywhere = few._replace(discordant=1.0)
    chance = stats.binom.sf(9, 200, 0.05)
    assert power.power(few, 0.1, 3, 200) == pytest.approx(chance * power.power(everywhere, 0.1, 3, 200))
    assert power.power(everywhere, 0.1, 3, 9) == 0.0


def test_the_added_patients_are_no_variance_of_the_pilot():
    right = np.random.default_rng(2).random((3, 60)) < 0.5
    pilot = statistics.compare(right, right, np.arange(60))
    assert power.components([pilot]) == pytest.approx((0, 0, 0, 0), abs=1e-12)


def test_the_power_of_a_study_grows_with_seeds_patients_and_the_effect(make, script):
    study(make)
    for file in Path("runs").rglob("predictions.csv"):
        rewrite(file.parent, lambda number, row: row | {"patient": f"p{number}"})
    code, out = script("evaluate", ["--power", "runs"])
    found = json.loads(Path("runs/power.json").read_text())["studies"]
    assert code == 0 and [one["mode"] for one in found] == ["normal", "defective", "self"] and "power.md" in out
    rows = {(row["patients"], row["seeds"], row["comparisons"]): row["power"] for row in found[0]["rows"]}
    patients = found[0]["patients"]
    assert rows[8 * patients, 10, 1]["0.05"] > rows[patients, 10, 1]["0.05"] > rows[patients, 3, 1]["0.05"] > rows[patients, 3, 4]["0.05"]
    assert rows[patients, 3, 1]["0.05"] > rows[patients, 3, 1]["0.01"] > 0
    assert f"| {8 * patients} | 10 | 4 |" in Path("runs/power.md").read_text()


def test_power_without_two_seeds_says_what_to_run(make):
    make("alone", "", "resnet18", 0)
    make("normal", "resnet50", "resnet18", 0)
    with pytest.raises(Problem, match="run them with --seed 0 and --seed 1"):
        power.write_power(Path("runs"))


def test_views_of_a_study_whose_patient_is_unknown_are_not_independent():
    paths = np.array(["a", "b", "c", "d", "e"])
    test = Predictions(paths, patients=np.array(["p", "p", "c", "d", "e"]), studies=np.array(["1", "2", "s", "s", "e"]),
                       labels=np.zeros(5, int), teacher=np.zeros(5, int), logits=np.zeros((5, 2)))
    assert test.clusters.tolist() == ["p", "p", "study s", "study s", "e"]
