"""Settings come from defaults, a file and flags, in this order; each mistake is one clear line."""

import json
import re

import pytest

from kd.config import parsing
from kd.config.evaluate_settings import EvaluateSettings
from kd.config.settings import DistillSettings, TeacherSettings
from kd.system.errors import Problem


def test_flags_beat_the_file_and_the_file_beats_defaults(tmp_path):
    (tmp_path / "a.toml").write_text('epochs = 7\nlr = 1\nmode = "reverse"\n')
    [settings] = parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml"), "--lr", "0.5"])
    assert (settings.training.epochs, settings.training.lr, settings.distillation.mode) == (7, 0.5, "reverse")
    assert settings.training.batch_size == 16 and settings.data.split == "patient"


def test_settings_survive_a_round_trip_through_json_and_dry_run(tmp_path, capsys):
    [settings] = parsing.parse(DistillSettings, ["--clip-norm", "1.5", "--no-augment", "--tag", "x", "--max-steps", "3"])
    (tmp_path / "settings.json").write_text(json.dumps(parsing.flat(settings)))
    assert parsing.parse(DistillSettings, ["--config", str(tmp_path / "settings.json")]) == [settings]
    assert parsing.parse(DistillSettings, ["--config", str(tmp_path / "settings.json"), "--dry-run"]) == []
    (tmp_path / "dry.toml").write_text(capsys.readouterr().out)
    assert parsing.parse(DistillSettings, ["--config", str(tmp_path / "dry.toml")]) == [settings]


def test_the_projects_own_configs_serve_both_scripts():
    from conftest import ROOT
    for kind in (TeacherSettings, DistillSettings):
        [thesis] = parsing.parse(kind, ["--config", str(ROOT / "configs" / "thesis.toml")])
        assert parsing.flat(thesis) == parsing.flat(kind()) | {"split": "thesis"}
        assert parsing.parse(kind, ["--config", str(ROOT / "configs" / "demo.toml")])[0].data.dataset == "synthetic"


def test_lists_give_every_pair_in_turn(tmp_path, capsys):
    argv = ["--teacher", "resnet50", "vgg11", "--student", "resnet18", "resnet34"]
    pairs = [(settings.distillation.teacher, settings.distillation.student) for settings in parsing.parse(DistillSettings, argv)]
    assert pairs == [("resnet50", "resnet18"), ("resnet50", "resnet34"), ("vgg11", "resnet18"), ("vgg11", "resnet34")]
    assert parsing.parse(DistillSettings, [*argv, "--dry-run"]) == []
    (tmp_path / "dry.toml").write_text(capsys.readouterr().out)
    assert 'teacher = ["resnet50", "vgg11"]' in (tmp_path / "dry.toml").read_text()
    assert parsing.parse(DistillSettings, ["--config", str(tmp_path / "dry.toml")]) == parsing.parse(DistillSettings, argv)
    one = parsing.parse(DistillSettings, ["--config", str(tmp_path / "dry.toml"), "--teacher", "vgg11", "--student", "resnet34"])
    assert one == parsing.parse(DistillSettings, argv)[3:]


def test_no_two_sections_share_a_key():
    for kind in (TeacherSettings, DistillSettings, EvaluateSettings):
        assert len(parsing.flat(kind())) == sum(len(parsing.fields(section.type)) for section in parsing.fields(kind))


@pytest.mark.parametrize("kind, first", [(TeacherSettings, "--model"), (DistillSettings, "--teacher"), (EvaluateSettings, "RUN")])
def test_help_lists_every_flag_once_and_the_common_ones_first(kind, first, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        parsing.parse(kind, ["--help"], from_file=kind is not EvaluateSettings)
    out = capsys.readouterr().out
    entries = [line.split()[0].rstrip(",") for line in out.splitlines() if re.match(r"  (-|[A-Z])", line)]
    names = {"RUN" if key == "runs" else "--" + key.replace("_", "-") for key in parsing.flat(kind())}
    assert entries[0] == first and len(set(entries)) == len(entries)
    assert set(entries) == names | ({"-h"} if kind is EvaluateSettings else {"-h", "--config", "--dry-run"})
    assert entries.index("-h") <= 15 and all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.case(20)
@pytest.mark.parametrize("argv, message", [
    (["--temperature", "0"], "--temperature 0 is not valid: it must be above 0"),
    (["--temperature", "nan"], "--temperature nan"), (["--temperature", "inf"], "must be at most 1000"),
    (["--lr", "inf"], "must be finite"),
    (["--alpha", "2"], "--alpha 2 is not valid: it must be at most 1"), (["--alpha", "-0.1"], "at least 0"),
    (["--lr", "0"], "must be above 0"), (["--epochs", "0"], "at least 1"), (["--batch-size", "1.5"], "must be a whole number"),
    (["--mode", "normel"], "Did you mean 'normal'"), (["--temprature", "4"], "Did you mean '--temperature'"),
    (["--temp", "4"], "Unknown flag '--temp'"), (["--config", "absent.toml"], "no such file"), (["--epochs"], "See --help")])
def test_a_wrong_flag_is_one_clear_problem(argv, message):
    with pytest.raises(Problem) as caught:
        parsing.parse(DistillSettings, argv)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == 2


@pytest.mark.case(20)
@pytest.mark.parametrize("text, message", [
    ("epoch = 3", "Unknown key 'epoch' in .*Did you mean 'epochs'"), ("[data]\nsplit = 'given'", "Unknown key 'data'"),
    ("epochs = 'three'", "must be a whole number"), ("epochs = true", "must be a whole number"), ("pretrained = 1", "must be true or false"),
    ("epochs = ", "not valid TOML"), ("alpha = nan", "at least 0|finite"), ("split = 'random'", "must be one of patient"),
    ("student = []", "student = \\[\\] in .*the list is empty"), ("mode = ['normal']", "must be plain text"),
    ("student = [3]", "student = 3 in .*must be plain text")])
def test_a_wrong_file_is_reported_with_file_and_key(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(Problem, match=message) as caught:
        parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml")])
    assert "a.toml" in str(caught.value)
