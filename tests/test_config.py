"""Settings: defaults, file, flags, in this order; one clear line for each mistake."""

import json

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


def test_settings_survive_a_round_through_json_and_through_dry_run(tmp_path, capsys):
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


@pytest.mark.case(20)
@pytest.mark.parametrize("argv, message", [
    (["--temperature", "0"], "temperature '0' in --temperature: must be above 0"),
    (["--temperature", "nan"], "temperature 'nan'"), (["--temperature", "inf"], "must be at most 1000"),
    (["--lr", "inf"], "must be finite"),
    (["--alpha", "2"], "alpha '2' in --alpha: must be at most 1"), (["--alpha", "-0.1"], "at least 0"),
    (["--lr", "0"], "must be above 0"), (["--epochs", "0"], "at least 1"), (["--batch-size", "1.5"], "not a whole number"),
    (["--mode", "normel"], "did you mean 'normal'"), (["--temprature", "4"], "did you mean '--temperature'"),
    (["--temp", "4"], "unknown flag '--temp'"), (["--config", "absent.toml"], "no such file"), (["--epochs"], "see --help")])
def test_a_mistaken_flag_is_one_clear_problem(argv, message):
    with pytest.raises(Problem) as caught:
        parsing.parse(DistillSettings, argv)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.value.code == 2


@pytest.mark.case(20)
@pytest.mark.parametrize("text, message", [
    ("epoch = 3", "unknown key 'epoch' in .*did you mean 'epochs'"), ("[data]\nsplit = 'given'", "unknown key 'data'"),
    ("epochs = 'three'", "not a whole number"), ("epochs = true", "not a whole number"), ("pretrained = 1", "not true or false"),
    ("epochs = ", "not valid TOML"), ("alpha = nan", "at least 0|finite"), ("split = 'random'", "not one of patient"),
    ("student = []", "student '\\[\\]' in .*an empty list"), ("mode = ['normal']", "not one of|not text"),
    ("student = [3]", "student '3' in .*not text")])
def test_a_mistaken_file_names_file_and_key(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(Problem, match=message) as caught:
        parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml")])
    assert "a.toml" in str(caught.value)
