"""Tables of ensembles, born-again chains and given teachers: which runs belong to which cell."""

import json
import shlex
from pathlib import Path

import pytest

from kd.config.layout import RunPaths, finished_below, out_of
from kd.reports import report as reports
from kd.studies import cells, tables


def setting(**values):
    return lambda report: report["settings"].update(values)


def protocol():
    [found] = tables.write_tables(Path("runs"), 0.01)["protocols"]
    return found


def test_no_command_trains_a_generation_or_a_given_teacher_alone(make):
    make("self", "g", "resnet18", 0, setting(generations=2))
    make("normal", "resnet34", "resnet18", 0, setting(teacher_checkpoint=["x.pt"]))
    commands = [command for table in protocol()["tables"] for command in table["missing"]]
    assert commands and not any("generation1" in command or "--model resnet34" in command for command in commands)


def test_runs_of_a_tag_are_counted_with_their_own_kind(make):
    make("alone", "", "resnet18", 0)
    tagged = reports.read(make("alone", "", "resnet18", 0, setting(tag="x"), "runs/set/tagged/alone/seed0"))
    for role in ("random", "normal"):
        make(role, "resnet34", "resnet18", 0)
        make(role, "resnet34", "resnet18", 1, setting(tag="x"))
    make("random", "resnet34", "resnet18", 0, setting(tag="x"), "runs/set/tagged/random/seed0")
    found = protocol()
    assert [row["n"] for table in found["tables"] if table["mode"] == "random" for row in table["teachers"]] == [1, 2]
    [alone] = [row for one in found["overviews"] if one["tag"] == "x" for row in one["rows"] if row["mode"] == "alone"]
    assert alone["test"]["mean"] == pytest.approx(tagged["results"]["best"]["test_accuracy"])


def test_settings_of_an_ensembles_members_are_compared(make):
    make("alone", "", "resnet34", 0)
    make("alone", "", "resnet50", 0, setting(lr=0.5))
    make("normal", "resnet34+resnet50", "resnet18", 0)
    [table] = protocol()["tables"]
    assert any(text.startswith("lr: 0.001, 0.5") for text in table["recipes"])


def test_a_mean_counts_zeros_and_is_not_taken_over_some_of_the_values():
    found = cells.means({"train": [None, 0.5, 0.0], "valid": [None, None, None], "test": [0.0, 0.0, 0.3]}, 3)
    assert found["train"] is None and found["valid"] is None and found["test"]["mean"] == pytest.approx(0.1)


def test_two_defective_teachers_give_no_comparison(make):
    for teacher in ("resnet34", "resnet50"):
        make("defective", teacher, "resnet18", 0)
    make("alone", "", "resnet18", 0)
    make("random", "resnet34", "resnet18", 0)
    [found] = protocol()["overviews"]
    assert all(row["defective_minus"] is None for row in found["rows"])


def test_a_run_whose_predictions_contradict_its_teachers_accuracy_is_excluded(make):
    def better(report):
        report["teacher"]["test_accuracy"] += 0.01
    make("alone", "", "resnet18", 0)
    make("random", "resnet34", "resnet18", 0, better)
    [left] = tables.write_tables(Path("runs"), 0.01)["left_out"]
    assert "differ in accuracy" in left


def test_the_card_of_an_ensemble_sums_up_its_members(script):
    import json
    import shutil

    from conftest import DATA, TINY
    words = ["--teacher", "kdwide+kdtiny", "--student", "kdtiny", *TINY, "--mode", "normal", "--max-steps", "1"]
    assert script("distill", words)[0] == 0
    folder = DATA / "normal/kdwide+kdtiny-kdtiny/seed0"

    def card():
        assert script("evaluate", ["--card", folder])[0] == 0
        return json.loads((folder / "card.json").read_text())["teacher"]
    both, members = card(), reports.read(folder)["teacher"]["members"]
    assert both["parameters"] == sum(one["parameters"] for one in members) and both["ece"] is None
    assert both["file_bytes"] == sum((DATA.parent / one["source"] / "model.pt").stat().st_size for one in members)
    shutil.rmtree(DATA.parent / members[1]["source"])
    assert card()["file_bytes"] is None


def test_a_checkpoint_that_a_mode_does_not_use_is_no_teacher(make):
    make("normal", "resnet34", "resnet18", 0)
    make("random", "resnet34", "resnet18", 0, setting(teacher_checkpoint=["x.pt"]))
    [table] = [one for one in protocol()["tables"] if one["mode"] == "normal"]
    assert any("train_teacher.py" in command and "--model resnet34" in command for command in table["missing"])


def test_a_setting_that_no_run_uses_is_no_difference(make):
    for seed, weights in ((0, []), (1, [2.0])):
        make("normal", "resnet34", "resnet18", seed, setting(teacher_weights=weights, dkd_beta=1.0 + seed))
    assert protocol()["tables"][0]["recipes"] == []


def test_the_layout_knows_the_files_and_the_levels_of_a_run(make):
    folder = make("normal", "resnet34", "resnet18", 0)
    make("alone", "", "resnet18", 0).joinpath("report.json").unlink()
    assert finished_below(Path("runs")) == [folder] and RunPaths(folder).finished
    assert out_of(folder) == Path("runs") and out_of(folder.resolve()) == Path("runs").resolve()
    assert (RunPaths(folder).evaluation, RunPaths(folder).card) == (folder / "evaluation.json", folder / "card.json")


def commands_of(tag):
    """Return the words of the commands for the missing runs of a tag's table."""
    [table] = [one for one in protocol()["tables"] if one["tag"] == tag]
    return [shlex.split(command) for command in table["missing"]]


@pytest.mark.parametrize("ended", [None, "stopped", "failed"])
def test_missing_runs_of_a_tag_get_its_settings_whatever_became_of_its_runs(make, script, ended):
    make("alone", "", "resnet18", 0)
    make("alone", "", "resnet34", 0)
    for seed in (0, 1):
        make("normal", "resnet34", "resnet18", seed)
    own = make("normal", "resnet34", "resnet18", 0, setting(tag="long", epochs=60, temperature=7.0), "runs/set/normal-long/x/seed0")
    if ended:
        (own / "report.json").unlink()
        (own / "ended.json").write_text(json.dumps({"ended": ended, "message": "x.", "step": None, "code": 2, "time": None}))
    found = commands_of("long")
    new = [words for words in found if "--seed" in words]
    assert [words[1] for words in new] == ["train_teacher.py", "train_teacher.py", "distill.py"] and len(found) == 3 + bool(ended)
    for words in new:  # a teacher, a baseline and a student of seed 1
        code, out = script(words[1].removesuffix(".py"), [*words[2:], "--dry-run"])
        assert code == 0 and "epochs = 60" in out and 'tag = "long"' in out and "seed = 1" in out
        assert words[1] == "train_teacher.py" or "temperature = [7.0]" in out
    for words in commands_of(""):
        code, out = script(words[1].removesuffix(".py"), [*words[2:], "--dry-run"])
        assert code == 0 and "epochs = 60" not in out and "tag" not in words


def test_a_finished_run_of_a_tag_is_followed_rather_than_an_unfinished_one(make):
    for name in ("resnet18", "resnet34"):
        make("alone", "", name, 0)
    whole = make("normal", "resnet34", "resnet50", 0, setting(tag="t"), "runs/set/normal-t/a/seed0")
    other = make("normal", "resnet34", "resnet18", 0, setting(tag="t"), "runs/set/normal-t/b/seed0")
    (other / "report.json").unlink()
    make("alone", "", "resnet18", 1)
    [new] = [words for words in commands_of("t") if words[1] == "distill.py" and "resnet18" in words and "--seed" in words]
    assert new[new.index("--config") + 1] == str(whole / "settings.json")


@pytest.mark.parametrize("parts, kept", [(["crop", "mirror"], ["mirror"]), (["crop"], [])])
def test_a_baseline_switches_off_only_the_parts_that_its_views_have(make, script, parts, kept):
    make("fixmatch", "", "kdtiny", 0, setting(augment="light", augment_without=parts, tag="t"))
    [words] = commands_of("t")
    code, out = script("train_teacher", [*words[2:], "--dry-run"])
    assert code == 0 and f"augment_without = {json.dumps(kept)}" in out, out
