"""The table of modes is correct.

Every mode and every kind of knowledge runs, and a new one needs no other code.
"""

import dataclasses
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, ROOT, TINY, weights

from kd import losses, models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings
from kd.data.views import Batch
from kd.knowledge import KNOWLEDGE
from kd.methods import DISTIL, MATCH, MODES, Mode, Origin
from kd.models import Outputs
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.teachers import model_file
from kd.teachers.find import untrained
from kd.teachers.outputs import LabelDistribution
from kd.training import regressors
from kd.training.objectives import Distillation, Knowledge

SHORT = [*PAIR, "--max-steps", "3"]


def fits(mode, kind):
    """Return whether a mode can pass on a kind of knowledge."""
    origin, phases = MODES[mode].teacher, MODES[mode].phases
    blind = origin.network in ("none", "peers") and KNOWLEDGE[kind].location == "stages"
    unlabelled = KNOWLEDGE[kind].labels and any(phase.images != "train" for phase in phases)
    unlabelled |= not KNOWLEDGE[kind].per_image and any(phase.taught == "unlabelled" for phase in phases)
    return not (blind or unlabelled or origin.distribution == "uniform" and kind != "kd")


def reported(pattern):
    [folder] = Path("runs").glob(pattern)
    return reports.read(folder)


def test_the_list_of_modes_equals_the_tables_of_the_readme(script):
    code, out = script("distill", ["--list-modes"])
    readme = (ROOT / "kd/README.md").read_text()
    tables = [part for part in out.split("\n\n") if part.startswith("|")]
    assert code == 0 and len(tables) == 2
    assert all(table in readme for table in tables), "copy the output of distill.py --list-modes into kd/README.md"
    assert all(f"| `{name}` |" in out for name in (*MODES, *KNOWLEDGE)) and not Path("runs").exists()


@pytest.mark.parametrize("mode", ["self", "virtual", "smoothing", "smoothing-0.1", "random"])
def test_every_other_mode_runs_to_a_report(script, mode):
    code, out = script("distill", [*SHORT, "--mode", mode])
    assert code == 0
    report = reported(f"*/{mode}/*/seed0")
    names = [member["name"] for member in report["teacher"]["members"]]
    assert names == {"self": ["kdtiny"], "random": ["kdwide"]}.get(mode, [])
    assert (report["agreement"] is None) == (not names) and (report["teacher"]["test_accuracy"] is None) == (not names)
    row, alpha = report["history"]["epochs"][-1], 0.1 if mode == "smoothing-0.1" else 0.5
    assert row["train_loss"] == pytest.approx((1 - alpha) * row["train_ce"] + alpha * row["train_kd"], rel=1e-5)
    assert script("distill", [*SHORT, "--mode", mode])[1].startswith("already finished")


@pytest.mark.parametrize("kind", KNOWLEDGE)
def test_every_kind_of_knowledge_runs_to_a_report(script, prepared, kind):
    prepared([("train_teacher", ["--model", "kdwide", *TINY, "--max-steps", "3"])])
    code, out = script("distill", [*SHORT, "--mode", "normal", "--knowledge", kind])
    row = reported("*/normal/*/seed0")["history"]["epochs"][-1]
    assert code == 0 and np.isfinite(row[f"train_{kind}"]) and "no teacher in" not in out
    expected = 0.5 * row["train_ce"] + 0.5 * KNOWLEDGE[kind].weight * row[f"train_{kind}"]
    assert row["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_new_mode_is_three_lines_and_trains(script, monkeypatch):
    sloppy = Origin("network trained only until validation accuracy passes 0.05", stop_at=0.05)
    mode = Mode(sloppy, "nowhere", phases=(MATCH, DISTIL), knowledge="dist")
    monkeypatch.setitem(MODES, "sloppy", mode)
    code, out = script("distill", [*PAIR, "--mode", "sloppy"])
    data = "all images without their labels, then labelled images | the same for all"
    assert code == 0 and f"| `sloppy` | {data} |" in script("distill", ["--list-modes"])[1]
    report = reported("*/sloppy/*/seed0")
    assert [(phase["name"], phase["labelled"]) for phase in report["history"]["phases"]] == [("match", False), ("distil", True)]
    assert reports.read(DATA / "teacher/kdwide-defective/seed0")["history"]["ended"] == "stopped"
    assert "train_dist" in report["history"]["epochs"][0]
    assert script("evaluate", ["--tables", "runs"])[0] == 0


def test_a_new_kind_of_knowledge_is_a_function_and_a_row(script, monkeypatch):
    monkeypatch.setattr(losses, "l1", lambda student, teacher: (student - teacher).abs().mean(), raising=False)
    monkeypatch.setitem(KNOWLEDGE, "l1", dataclasses.replace(KNOWLEDGE["logit-mse"], transfer="distance", loss="l1", per_image=False))
    assert script("distill", [*SHORT, "--mode", "normal", "--knowledge", "l1"])[0] == 0
    assert "train_l1" in reported("*/normal/*/seed0")["history"]["epochs"][0]


def test_an_option_of_a_kind_reaches_the_loss_of_that_kind_only(script):
    losses_of = {}
    for tag, words in (("cosine", []), ("wide", ["--pkt-width", "2"]), ("narrow", ["--pkt-width", "0.2"])):
        code, out = script("distill", [*SHORT, "--mode", "random", "--knowledge", "pkt", "--tag", tag, *words])
        report = reported(f"*/random-{tag}/*/seed0")
        losses_of[tag] = report["history"]["epochs"][0]["train_pkt"]
        assert code == 0 and "not used" not in out and report["settings"]["pkt_width"] == (float(words[1]) if words else 0)
    assert len({round(loss, 6) for loss in losses_of.values()}) == 3 and min(losses_of.values()) > 0
    code, out = script("distill", [*SHORT, "--mode", "random", "--pkt-width", "2"])
    assert code == 0 and "note: --pkt-width: not used" in out
    code, out = script("distill", [*SHORT, "--mode", "random", "--knowledge", "pkt", "--pkt-width", "-1"])
    assert code == 2 and "--pkt-width -1 is not valid: it must be at least 0" in out


def test_the_loss_of_every_kind_takes_the_arguments_of_its_row(script):
    for name, kind in KNOWLEDGE.items():
        taken = list(inspect.signature(kind.function()).parameters)[2:]
        said = ["labels"] * kind.labels + ["temperature"] * kind.softens + ["weights"] * kind.per_image
        said += [one.name for one in kind.options if not one.of_regressor]
        assert sorted(taken) == sorted(said), name
        of_regressor = [one.name for one in kind.options if one.of_regressor]
        if kind.regressor:
            taken = list(inspect.signature(getattr(regressors, kind.regressor)).parameters)[2:]
            assert sorted(taken) == sorted(of_regressor), name
        assert kind.regressor or not of_regressor


@pytest.mark.parametrize("mode", ["normal", "unlabeled", "virtual"])
def test_knowledge_is_weighted_by_class_on_request_and_the_teacher_is_shared(script, picture_tree, mode):
    root = picture_tree("hospital", {"a": 40, "b": 12, "c": 8})
    words = ["--teacher", "kdwide", "--student", "kdtiny", *SHORT[4:], "--dataset", "folder", "--data-dir", root, "--mode", mode,
             "--balance", "weights"]
    losses_of = []
    for tag, more in (("labels", []), ("again", []), ("both", ["--balance-knowledge"])):
        code, out = script("distill", [*words, *more, "--tag", tag, "--knowledge", "kd"])
        report = reported(f"*/{mode}-{tag}/*/seed0")
        assert code == 0 and "--balance-knowledge: not used" not in out and "--balance-knowledge, " not in out
        losses_of.append([report["history"]["epochs"][0]["train_kd"], report["student"]["weights_hash"]])
        if mode == "normal":
            assert report["teacher"]["members"][0]["differences"] == []
    assert losses_of[0] == losses_of[1] and losses_of[0][0] != losses_of[2][0] and losses_of[0][1] != losses_of[2][1]


def test_smoothing_is_label_smoothing():
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 7), torch.randint(7, (9,))
    taught = LabelDistribution(7, 1 / 7)(Batch(torch.zeros(9, 3, 4, 4), labels, torch.arange(9), 0))
    [settings] = parsing.parse(DistillSettings, ["--mode", "smoothing", "--temperature", "9"])
    knowledge = Knowledge({"kd": 1.0}, resolve(settings).temperatures)
    gradients = []
    for loss in (lambda z: Distillation(knowledge, 0.3)(Outputs(z), taught, labels)["loss"],
                 lambda z: torch.nn.functional.cross_entropy(z, labels, label_smoothing=0.3)):
        z = logits.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(z), z)[0])
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("mode, words, alpha", [("smoothing", [], 0.5), ("smoothing", ["--alpha", "0.3"], 0.3),
                                                ("smoothing-0.1", [], 0.1), ("smoothing-0.1", ["--alpha", "0.3"], 0.1)])
def test_smoothing_of_both_strengths_is_a_mode_of_its_own(mode, words, alpha):
    [settings] = parsing.parse(DistillSettings, ["--mode", mode, *words])
    plan = resolve(settings)
    assert plan.alpha == alpha and plan.temperatures == (1.0,) and f"/{mode}/" in plan.folder.as_posix()


def test_the_figures_of_a_virtual_teacher_beside_its_published_code_are_as_documented():
    labels, here = torch.tensor([0]), LabelDistribution(7, 0.99)
    taught = here(Batch(torch.zeros(1, 3, 4, 4), labels, torch.arange(1), 0))
    softened = (taught.at(4.0) / 4.0).softmax(1)[0]  # as in losses.kd
    published = (torch.tensor([0.99, *[0.01 / 6] * 6]) / 4).softmax(0)  # softmax of probabilities
    documented = (ROOT / "kd/README.md").read_text()
    for own in (softened, published):
        assert f" {own[0]:.3f}" in documented, own[0]
    assert f"{softened[0] / softened[1]:.1f} times" in documented and f"{published[0] / published[1]:.2f} times" in documented


def test_a_virtual_teacher_has_the_distribution_of_the_paper():
    labels = torch.tensor([2, 0])
    taught = LabelDistribution(4, 0.7)(Batch(torch.zeros(2, 3, 4, 4), labels, torch.arange(2), 0))
    assert torch.allclose(taught.at(1.0).softmax(1), torch.tensor([[0.1, 0.1, 0.7, 0.1], [0.7, 0.1, 0.1, 0.1]]), atol=1e-6)
    with pytest.raises(ValueError, match="a batch with labels"):
        LabelDistribution(4, 0.7)(Batch(torch.zeros(2, 3, 4, 4), None, torch.arange(2), 0))


def test_generations_teach_each_other_and_start_from_other_weights(script):
    code, out = script("distill", [*SHORT, "--mode", "self", "--generations", "3"])
    assert code == 0
    sources = []
    for teacher in ("kdtiny", "kdtiny-generation1", "kdtiny-generation2"):
        [member] = reports.read(DATA / f"self/{teacher}-kdtiny/seed0")["teacher"]["members"]
        sources.append(member["source"])
        assert member["hash"] == reports.read(Path("runs") / member["source"])["student"]["weights_hash"]
    assert sources == [f"synthetic-patient-32/{place}/seed0" for place in
                       ("teacher/kdtiny", "self/kdtiny-kdtiny", "self/kdtiny-generation1-kdtiny")]
    seeds = {resolve(parsing.parse(DistillSettings, ["--mode", "self", "--generations", str(g)])[0]).weights_seed for g in range(1, 9)}
    starts = {tuple(models.build("kdtiny", ("a", "b"), seed=seed).module.fc.bias.tolist()) for seed in {0, *seeds}}
    assert len(starts) == 9
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "comparison of all modes" in out and "--generations 3" not in out


def test_a_long_chain_is_planned_at_once():
    [settings] = parsing.parse(DistillSettings, ["--mode", "self", "--generations", "100", "--tag", "x"])
    plan, names = resolve(settings), []
    while plan.teachers:
        [teacher] = plan.teachers
        plan = teacher.plan
        names.append(plan.folder.parent.name)
    assert len(names) == 100 and names[0] == "resnet18-generation98-resnet18" and names[-2:] == ["resnet18-resnet18", "resnet18"]
    assert teacher.places == (Path("runs/mura-patient-224/teacher-x/resnet18/seed0"), Path("runs/mura-patient-224/teacher/resnet18/seed0"))


def test_an_untrained_network_is_the_same_each_time_and_differs_from_the_students_start():
    plans = [resolve(parsing.parse(DistillSettings, ["--mode", "random", "--teacher", "kdtiny", "--seed", str(seed)])[0])
             for seed in (0, 0, 1)]
    first, again, other = (untrained("kdtiny", plan.teachers[0].seed, ("a", "b")).trained.hash for plan in plans)
    start = model_file.state_hash(models.build("kdtiny", ("a", "b"), seed=0).module.state_dict())
    assert first == again and len({first, other, start}) == 3


def test_an_ensemble_is_reported_with_its_members_and_their_disagreement(script):
    words = ["--teacher", "kdwide+kdtiny", "--student", "kdtiny", *TINY, "--mode", "normal", "--teacher-weights", "3", "1"]
    code, out = script("distill", words)
    report = reports.read(DATA / "normal/kdwide+kdtiny-kdtiny/seed0")
    teacher = report["teacher"]
    assert code == 0 and [(one["name"], one["weight"]) for one in teacher["members"]] == [("kdwide", 0.75), ("kdtiny", 0.25)]
    answers = []
    for one in teacher["members"]:
        own = reports.read(Path("runs") / one["source"])
        assert (one["valid_accuracy"], one["test_accuracy"]) == tuple(
            own["results"]["best"][f"{part}_accuracy"] for part in ("valid", "test"))
        logits = read_predictions(Path("runs") / one["source"]).logits.astype(np.float64)
        odds = np.exp(logits - logits.max(1, keepdims=True))
        answers.append(odds / odds.sum(1, keepdims=True))
    first, second = (found.argmax(1) for found in answers)
    labels = read_predictions(DATA / "normal/kdwide+kdtiny-kdtiny/seed0").labels
    together = (0.75 * answers[0] + 0.25 * answers[1]).argmax(1)
    assert teacher["disagreement"] == pytest.approx((first != second).mean()) and "disagree on" in out
    assert teacher["test_accuracy"] == pytest.approx((together == labels).mean())
    assert np.array_equal(read_predictions(DATA / "normal/kdwide+kdtiny-kdtiny/seed0").teacher, together)
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "kdwide+kdtiny" in out and "--model kdwide+kdtiny" not in out
    assert script("evaluate", ["--card", DATA / "normal/kdwide+kdtiny-kdtiny/seed0"])[0] == 0


def test_an_ensembles_stored_logits_are_those_of_its_members(script):
    script("distill", [*SHORT, "--mode", "normal"])
    script("train_teacher", ["--model", "kdtiny", *TINY, "--max-steps", "3"])
    words = ["--teacher", "kdwide+kdtiny", *SHORT[2:]]
    code, out = script("distill", words)
    [(asked, computed)] = [(int(line.split()[2]), int(line.split()[4])) for line in out.splitlines() if " requested" in line]
    assert code == 0 and 0 < computed < asked  # the logits of kdwide were stored before
    assert script("distill", [*words, "--tag", "live", "--no-stored-logits"])[0] == 0
    runs = [weights(DATA / mode / "kdwide+kdtiny-kdtiny/seed0") for mode in ("normal", "normal-live")]
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


@pytest.fixture
def foreign(script):
    """Train a teacher on other splits of other images, and return its model file.

    The patients have the same names in both data sets.
    """
    words = ["--synthetic-seed", "5", "--split-seed", "1", "--max-steps", "2", "--out", "elsewhere"]
    script("train_teacher", ["--model", "kdwide", *TINY, *words])
    return "elsewhere/synthetic-patient1-32/teacher/kdwide/seed0/model.pt"


def test_a_foreign_teacher_that_has_seen_judged_patients_is_always_refused(script, foreign):
    for more in ([], ["--allow-foreign-teacher"]):
        code, out = script("distill", [*SHORT, "--mode", "normal", "--teacher-checkpoint", foreign, *more])
        assert code == 4 and "patients and" in out.splitlines()[-1]


def test_a_foreign_teacher_that_has_seen_no_judged_patient_can_be_allowed(script, picture_tree):
    roots = [picture_tree(name, {"a": 12, "b": 12}, size=size) for name, size in (("here", (20, 24)), ("there", (24, 20)))]
    script("train_teacher", ["--model", "kdwide", *TINY, "--dataset", "folder", "--data-dir", roots[1]])
    words = [*SHORT, "--mode", "normal", "--dataset", "folder", "--data-dir", roots[0], "--teacher-checkpoint",
             "runs/there-patient-32/teacher/kdwide/seed0/model.pt"]
    code, out = script("distill", words)
    assert code == 4 and "was trained on other data" in out and "--allow-foreign-teacher" in out
    code, out = script("distill", [*words, "--allow-foreign-teacher"])
    assert code == 0 and "data set there instead of here" in out


@pytest.mark.parametrize("words, message", [
    (["--mode", "virtual", "--knowledge", "hint"], "is not a network and has no feature maps"),
    (["--mode", "smoothing", "--knowledge", "dkd"], "label smoothing is kd"),
    (["--mode", "unlabeled", "--knowledge", "dkd"], "needs labels, but phase 'match' reads none"),
    (["--mode", "normal", "--knowledge", "kd+kd"], "names a kind twice"),
    (["--mode", "normal", "--knowledge", "kd+atention"], "Did you mean 'attention'"),
    (["--mode", "normal", "--knowledge", "kd+dkd", "--knowledge-weights", "1"], "--knowledge names 2. Set one value for each"),
    (["--mode", "normal", "--teacher", "kdwide+kdtiny", "--teacher-weights", "1"], "--teacher names 2"),
    (["--mode", "normal", "--teacher", "kdwide+kdtiny", "--teacher-checkpoint", "x.pt"], "--teacher names 2"),
    (["--mode", "normal", "--teacher", "kdwide+kdwide"], "names 'kdwide' twice"),
    (["--mode", "normal", "--teacher", "kdwide+kdwid"], "Network 'kdwid'"),
    (["--mode", "normal", "--knowledge", "hint", "--layers", "con"], "Did you mean conv"),
    (["--mode", "normal", "--knowledge", "hint", "--layers", "bn:bn:bn"], "names 3 modules for 2 networks"),
    (["--mode", "normal", "--knowledge", "attention", "--layers", "fc"], "does not return a feature map [B, C, H, W]"),
    (["--mode", "normal", "--knowledge", "attention", "--student", "resnet18", "--layers", "global_pool.flatten:bn"],
     "does not return a feature map")])
def test_knowledge_that_cannot_be_passed_on_is_refused_before_training(script, words, message):
    code, out = script("distill", [*SHORT, *words])
    assert code == 2 and message in out.splitlines()[-1]


@pytest.mark.parametrize("kind, code", [("dkd", 2), ("dist", 0), ("standardized", 0)])
def test_few_classes_and_small_batches_are_reported(script, picture_tree, kind, code):
    root = picture_tree("two", {"a": 12, "b": 12})
    found, out = script("distill", [*SHORT, "--mode", "normal", "--dataset", "folder", "--data-dir", root, "--batch-size", "4",
                                    "--knowledge", kind])
    assert found == code
    expected = {"dkd": ["needs at least 3 classes, but the data set has 2"], "dist": ["with 2 classes", "dist: only the 4 images of a step"],
                "standardized": ["no logit exceeds 1.00"]}[kind]
    assert all(text in out for text in expected) and (code == 0 or not list(Path("cache").glob("**/*")))


def test_similarity_takes_features_of_any_shape(script):
    assert script("distill", [*SHORT, "--mode", "normal", "--knowledge", "similarity", "--layers", "fc"])[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_with_every_kind_between_both_families(script, mode):
    """Run teachers and students of different width and depth, SE nets and plain nets."""
    codes = {}
    pairs = {("seresnet50", "resnet18"): KNOWLEDGE, ("resnet18", "seresnet50"): KNOWLEDGE, ("resnet18", "vgg11"): ("kd", "hint")}
    common = [*TINY, "--max-steps", "2", "--synthetic-images", "112", "--image-size", "64", "--batch-size", "4"]
    for kind in KNOWLEDGE:
        for teacher, student in (pair for pair, kinds in pairs.items() if kind in kinds and fits(mode, kind)):
            more = ["--stop-at-val-accuracy", "0.05", "--look-every", "1"]
            if mode == "defective":
                script("train_teacher", ["--model", teacher, *common, *more])
            students = f"{student}+{teacher}" if MODES[mode].trains_several else student
            code, out = script("distill", ["--teacher", teacher, "--student", students, *common, "--mode", mode,
                                           "--knowledge", kind, "--tag", kind])
            codes[teacher, student, kind] = code
            print(mode, kind, teacher, student, code, out.splitlines()[-1] if code else "")
            for file in Path("runs").glob(f"*/{mode}-{kind}/*/seed0/model.pt"):  # half a gigabyte for a VGG
                file.unlink()
    assert codes and set(codes.values()) == {0}
