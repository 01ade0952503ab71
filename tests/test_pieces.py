"""Pieces of the general model, each on its own.

These tests find errors that runs of complete commands would not reveal.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR
from torch import nn

from kd import feature_losses, losses, models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, Training
from kd.methods import DISTIL, MODES, TRAINED, Mode, ModePhase
from kd.models import Outputs
from kd.reports import report as reports
from kd.runs import phases
from kd.system.devices import Precision
from kd.system.errors import Problem
from kd.teachers.cache import TeacherCache
from kd.teachers.ensemble import Ensemble, Teacher
from kd.teachers.introduction import disagreement
from kd.teachers.model_file import Trained
from kd.teachers.outputs import TeacherOutputs
from kd.training import objectives, regressors
from kd.training.objectives import Distillation, Knowledge, Matching
from kd.training.state import State

CPU, FLOAT = torch.device("cpu"), Precision("cpu", "off")
SHORT = [*PAIR, "--epochs", "1"]


def settings_of(*words):
    return parsing.parse(DistillSettings, list(words))[0]


def panel_of(*names, words=()):
    members = [Teacher(name, Trained(models.build(name, tuple("abcde"), seed=k), None, name), "", [])
               for k, name in enumerate(names)]
    plan = resolve(settings_of("--mode", "normal", "--teacher", "+".join(names), *words))
    return Ensemble(plan, members, 5, CPU, TeacherCache())


def test_every_teacher_and_layer_has_its_own_projector_and_each_teacher_its_weight():
    torch.manual_seed(0)
    own, others = ([torch.randn(2, c, 4, 4) for c in widths] for widths in ((3, 4), (2, 5, 6, 7)))
    projectors = regressors.Projectors([(3, 2), (4, 5), (3, 6), (4, 7)], 0)
    taught = TeacherOutputs(torch.zeros(2, 2, 5), torch.tensor([0.75, 0.25]), (tuple(others[:2]), tuple(others[2:])))
    knowledge = Knowledge({"hint": 1.0}, (4.0,), regressors=nn.ModuleDict({"hint": projectors}))
    got = knowledge.terms(Outputs(torch.zeros(2, 5), tuple(own)), taught, None)["hint"].item()
    each = [feature_losses.hint(projectors(own[k % 2], k), others[k]).item() for k in range(4)]
    assert got == pytest.approx(0.75 * (each[0] + each[1]) / 2 + 0.25 * (each[2] + each[3]) / 2, rel=1e-5)


def test_unsoftened_losses_ignore_the_temperature_and_dkd_uses_its_beta():
    torch.manual_seed(0)
    student, labels = Outputs(torch.randn(6, 5)), torch.arange(6) % 5
    taught = TeacherOutputs(3 * torch.randn(2, 6, 5), torch.tensor([0.5, 0.5]))
    cold, hot = (Knowledge({"logit-mse": 1.0}, (t,)).terms(student, taught, labels)["logit-mse"] for t in (1.0, 20.0))
    assert cold == hot
    for beta in (1.0, 3.0):
        got = Knowledge({"dkd": 1.0}, (4.0,), {"dkd": {"beta": beta}}).terms(student, taught, labels)["dkd"]
        assert got == losses.dkd(student.logits, taught.at(4.0), labels, 4.0, beta)
    agreement = Matching(Knowledge({"kd": 1.0}, (4.0,)))(student, taught, None)["agreement"]
    assert agreement == (student.logits.argmax(1) == taught.at(1.0).argmax(1)).float().mean()


def test_the_ratio_weighs_classes_as_the_loss_does():
    torch.manual_seed(0)
    student, labels, taught = torch.randn(9, 3), torch.arange(9) % 3, TeacherOutputs(torch.randn(1, 9, 3), torch.ones(1))
    kd, weights = Knowledge({"kd": 1.0}, (4.0,)), torch.tensor([1.0, 5.0, 9.0])
    plain, weighted = (objectives.gradient_ratio(student, taught, labels, Distillation(kd, 0.5, one)) for one in (None, weights))
    assert weighted < 0.9 * plain


def test_without_a_loss_of_labels_each_of_several_kinds_keeps_its_weight(script):
    assert script("distill", [*SHORT, "--mode", "unlabeled-only", "--knowledge", "kd+logit-mse"])[0] == 0
    row = reports.read(DATA / "unlabeled-only/kdwide-kdtiny/seed0")["history"]["epochs"][-1]
    assert row["train_loss"] == pytest.approx(row["train_kd"] + 0.15 * row["train_logit-mse"], rel=1e-5)


def test_knowledge_weights_do_not_apply_to_a_phase_with_its_own_knowledge(script):
    words = ["--mode", "unlabeled", "--finetune", "kd", "--knowledge-weights", "500", "--clip-norm", "0.01"]
    assert script("distill", [*SHORT, *words])[0] == 0
    row = reports.read(DATA / "unlabeled/kdwide-kdtiny/seed0")["history"]["epochs"][-1]
    assert row["train_loss"] == pytest.approx(0.5 * row["train_ce"] + 0.5 * row["train_kd"], rel=1e-5)


def test_the_last_stages_are_paired_and_each_network_is_read_at_its_named_layers():
    class Deep(nn.Module):
        feature_info = [{"module": name} for name in "abcdef"]
    two = panel_of("kdwide", "kdtiny")
    deep = models.Classifier("deep", "deep", ("a", "b"), Deep(), torch.zeros(1), torch.ones(1))
    assert deep.stages() == tuple("cdef") and two.layers(deep, []) == [("f",), ("bn",), ("bn",)]
    assert two.layers(deep, ["x:y", "u:v:w", "z"]) == [("x", "u", "z"), ("y", "v", "z"), ("y", "w", "z")]
    images = torch.rand(2, 3, 32, 32)
    got = two.on(SimpleNamespace(teachers_see_them=True), FLOAT, [("bn",), ("conv",)])(SimpleNamespace(images=images))
    wide, tiny = (member.trained.network.outputs(images, (layer,)) for member, layer in zip(two.members, ("bn", "conv")))
    assert torch.equal(got.features[0][0], wide.features[0]) and torch.equal(got.features[1][0], tiny.features[0])
    assert torch.equal(got.logits, torch.stack([wide.logits, tiny.logits]))


def test_a_network_without_stages_or_maps_is_reported():
    network = models.build("kdtiny", ("a", "b"))
    network.module.feature_info = []
    with pytest.raises(Problem, match="has no named stages"):
        network.stages()

    class Two(nn.Module):
        def forward(self, images):
            return images, images
    network.module.conv = nn.Sequential(Two(), nn.ModuleList())
    network.module.forward = lambda images: network.module.conv[0](images)[0]
    with pytest.raises(Problem, match="does not return a feature map"):
        network.outputs(torch.zeros(1, 3, 8, 8), ("conv.0",))


def test_maps_with_channels_last_are_permuted():
    class Last(nn.Module):
        output_fmt = "NHWC"

        def __init__(self):
            super().__init__()
            self.maps, self.rows = nn.Identity(), nn.Identity()

        def forward(self, images):
            return self.rows(self.maps(images.permute(0, 2, 3, 1)).mean((1, 2)))
    network = models.Classifier("last", "last", ("a", "b", "c"), Last(), torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    images = torch.rand(2, 3, 4, 5)
    maps, rows = network.outputs(images, ("maps", "rows")).features
    assert torch.equal(maps, images) and rows.shape == (2, 3)


def test_trying_a_teacher_does_not_change_it():
    one = panel_of("kdwide")
    before = {key: value.clone() for key, value in one.members[0].trained.network.module.state_dict().items()}
    one.try_images(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(before[key], value) for key, value in one.members[0].trained.network.module.state_dict().items())


def test_disagreement_is_over_all_pairs_and_weights_enter_the_hash_of_an_ensemble():
    assert disagreement(np.array([[0, 0], [0, 1], [0, 2]])) == pytest.approx(1 / 2)
    assert disagreement(np.array([[0, 0], [0, 0], [0, 2]])) == pytest.approx(1 / 3)
    equal, unequal = (panel_of("kdwide", "kdtiny", words=["--teacher-weights", *words]).hash for words in (("1", "1"), ("1", "2")))
    assert equal != unequal and equal == panel_of("kdwide", "kdtiny").hash


def test_rows_that_match_on_labelled_images_read_no_labels_and_list_unused_settings(monkeypatch):
    monkeypatch.setitem(MODES, "mine", Mode(TRAINED, "x", (ModePhase("m", "train", "match", "dkd"), DISTIL)))
    settings = parsing.replace(settings_of("--knowledge", "kd"), mode="mine")
    with pytest.raises(Problem, match="needs labels, but phase 'm' reads none"):
        resolve(settings)
    monkeypatch.setitem(MODES, "mine", Mode(TRAINED, "x", (ModePhase("d", "train", "distil", "kd"),)))
    plan = resolve(parsing.replace(settings_of("--knowledge", "hint", "--knowledge-weights", "2"), mode="mine"))
    assert plan.idle == ("--knowledge", "--knowledge-weights")


def test_cautions_appear_only_where_they_apply():
    for kind in ("pkt", "rkd"):
        [text, _] = phases.cautions(resolve(settings_of("--mode", "normal", "--knowledge", kind, "--batch-size", "15")), 7)
        assert text.startswith(f"{kind}: only the 15 images of a step are compared")
    words = ["--mode", "normal", "--knowledge", "similarity", "--batch-size"]
    assert [text.split(":")[0] for text in phases.cautions(resolve(settings_of(*words, "4")), 7)] == ["similarity", "similarity"]
    assert phases.cautions(resolve(settings_of(*words, "16", "--no-stored-logits")), 7) == []
    assert phases.cautions(resolve(settings_of("--mode", "normal", "--knowledge", "kd", "--batch-size", "4")), 7) == []


def test_knowledge_is_weighted_only_with_weighted_labels_and_kinds_that_cannot_be_are_named():
    words = ["--mode", "normal", "--balance-knowledge", "--knowledge"]
    plan = resolve(settings_of(*words, "kd+dist", "--balance", "weights"))
    [text] = [text for text in phases.cautions(plan, 7) if "--balance-knowledge" in text]
    assert plan.weighs_knowledge and plan.idle == () and text.startswith("dist: it compares the images")
    for more in (["kd+dist"], ["kd", "--balance", "draw"], ["dist+pkt", "--balance", "weights"]):
        plan = resolve(settings_of(*words, *more))
        assert not plan.weighs_knowledge and plan.idle == ("--balance-knowledge",)
    plan = resolve(settings_of("--mode", "normal", "--balance", "weights"))
    assert not plan.weighs_knowledge and not plan.teachers[0].plan.weighs_knowledge


def test_a_compiled_network_gives_no_feature_maps():
    with pytest.raises(Problem, match="does not expose its feature maps"):
        resolve(settings_of("--mode", "normal", "--knowledge", "hint", "--compile"))
    resolve(settings_of("--mode", "normal", "--compile"))


@pytest.mark.parametrize("steps, share, others, ends", [(6, 0.01, 1, [1, 6]), (6, 0.99, 2, [4, 5, 6]), (6, 0.99, 1, [5, 6]),
                                                        (10, 0.5, 2, [5, 7, 10]), (7, 0.8, 0, [7])])
def test_every_phase_has_a_step(steps, share, others, ends):
    assert phases.phase_ends(steps, 1 + others, share) == ends


def test_projectors_are_drawn_by_the_runs_seed(monkeypatch, script):
    drawn, real = [], regressors.Projectors
    monkeypatch.setattr(regressors, "Projectors", lambda pairs, seed: drawn.append(seed) or real(pairs, seed))
    assert script("distill", [*SHORT, "--mode", "random", "--knowledge", "hint", "--max-steps", "1", "--seed", "5"])[0] == 0
    assert drawn == [5]


def test_a_session_keeps_only_the_teachers_in_use_and_their_stores():
    cache, (one, other) = TeacherCache(), (Trained(object(), {"name": "net"}, "") for _ in range(2))
    cache._loaded = {(Path("a"), None): one, (Path("b"), None): other}
    cache.stores = {"a": SimpleNamespace(network=one.network), "b": SimpleNamespace(network=other.network)}
    cache.keep([other])
    assert list(cache._loaded.values()) == [other] and list(cache.stores) == ["b"]


def test_find_teachers_releases_the_others(monkeypatch, script):
    kept = []
    monkeypatch.setattr(TeacherCache, "keep", lambda cache, wanted: kept.append(len(wanted)))
    assert script("distill", [*SHORT, "--mode", "random", "--max-steps", "1"])[0] == 0 and kept == [1]


def test_a_helper_is_checked_and_clipped_like_the_network(script):
    helper = regressors.Projectors([(8, 12)], 0)
    state = State(models.build("kdtiny", ("a", "b")), Training(), FLOAT, helper)
    assert {id(value) for value in helper.parameters()} <= {id(value) for value in state.parameters()}
    with torch.no_grad():
        helper.weights[0][0] = float("nan")
    with pytest.raises(Problem, match="not finite"):
        state.divergence.check_weights((state.network.module, state.helper), 1)
    with pytest.raises(Problem, match="not finite"):
        state.state_dict()


@pytest.mark.parametrize("text, message", [("knowledge = ['kd', 'hint']", "must not be a list. .* as in 'kd.hint'"),
                                           ("temperature = []", "the list is empty"), ("temperature = 'none'", "must be a number")])
def test_lists_that_a_file_must_not_contain(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(Problem, match=message):
        parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml")])


def test_a_single_value_is_a_list_of_one_and_none_clears_a_list(tmp_path):
    (tmp_path / "a.toml").write_text("temperature = 3\nteacher_checkpoint = 'x.pt'\nteacher_weights = [1, 2]\nlayers = 'conv'\n")
    [settings] = parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml"), "--teacher-weights", "none"])
    assert (settings.distillation.temperature, settings.distillation.teacher_checkpoint) == ([3.0], ["x.pt"])
    assert settings.distillation.teacher_weights == [] and settings.transfer.layers == ["conv"]
    [settings] = parsing.parse(DistillSettings, ["--config", str(tmp_path / "a.toml"), "--layers", "none", "--knowledge", "none"])
    assert settings.transfer.layers == [] and settings.transfer.knowledge is None


def test_the_gradient_of_projectors_is_clipped_with_that_of_the_network(monkeypatch, script):
    counts, real = set(), nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda values, most: counts.add(len(values)) or real(values, most))
    words = ["--mode", "random", "--knowledge", "hint", "--clip-norm", "1", "--max-steps", "1"]
    assert script("distill", [*SHORT, *words])[0] == 0 and counts == {6 + 1}
