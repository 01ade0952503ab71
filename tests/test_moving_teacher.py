"""Teachers that are averages of their student's own weights (--mode mean-teacher and fixmatch)."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from conftest import PAIR, same, weights
from test_half_labelled import halves
from test_loop import CPU, FLOAT, resumed_from_every_step, train
from test_loop import views as views  # a fixture
from test_ranks import Hooks, by_ranks, plain, team

from kd import losses, models
from kd.config import parsing
from kd.config.plan import Follower
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, Training
from kd.data.augmentation import Augmentation
from kd.data.readers import synthetic
from kd.loop import Phase, fit
from kd.models import Outputs
from kd.reports import report as reports
from kd.system import checkpoint, ranks
from kd.system.errors import Problem
from kd.teachers.outputs import JointTeacher, LiveNetwork, OwnImages, TeacherOutputs
from kd.training.average import averages_of
from kd.training.objectives import Distillation, Knowledge, Matching, risen
from kd.training.state import State, upgraded

FEW = Path("runs/synthetic-patient-32-labels0.3")
WORDS = [*PAIR, "--labeled-fraction", "0.3", "--batch-size", "12"]
MODES = ["mean-teacher", "fixmatch"]
LIGHT, STRONG = Augmentation("light"), Augmentation("strong")
SQUARED = Knowledge({"probability-mse": 10.0}, (1.0,))


def plan_of(mode, *words):
    [settings] = parsing.parse(DistillSettings, [*map(str, WORDS), "--mode", mode, *words])
    return resolve(settings)


def pseudo(threshold):
    return Knowledge({"pseudo-label": 1.0}, (1.0,), {"pseudo-label": {"threshold": threshold}})


def followed(training, decay, delivered=False, name="kdtiny"):
    """Return a new state whose network is taught by its average, and the teacher's logits of a batch."""
    network = models.build(name, synthetic.CLASSES, seed=training.seed)
    averages = averages_of(network, training.ema, Follower(decay, delivered))
    return State(network, training, FLOAT, averages=averages), LiveNetwork(averages.teacher.network, FLOAT)


def consistency(views, training, teacher, objective=None, ramp_up=0.0):
    """Return (a phase of half-labelled batches whose teacher sees other views, its batches)."""
    mixed, *_ = halves(views[0].store, range(3, 47), range(49), augmentation=LIGHT)
    mixed.taught = dataclasses.replace(LIGHT, apart=True)
    teacher.own = OwnImages(mixed.over(mixed.store))
    taught = JointTeacher([teacher], [1.0], CPU)
    objective = objective or Distillation(SQUARED, 0.5, labelled_share=mixed.labelled_share)
    return Phase("consistency", mixed, taught, objective, 0, 12, training.lr, ramp_up=ramp_up)


TRAINING = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)


# What the teacher is


def test_a_teacher_of_decay_1_is_the_student_as_it_began_bit_for_bit(views):
    ends = []
    for still in (False, True):
        state, live = followed(TRAINING, 1.0)
        start = copy.deepcopy(state.network.module.state_dict())
        if still:
            live = LiveNetwork(models.build("kdtiny", synthetic.CLASSES, seed=3), FLOAT)
        train(state, views, TRAINING, phases=[consistency(views, TRAINING, live)])
        assert same(dict(live.network.module.named_parameters()), {k: v for k, v in start.items() if k in dict(live.network.module.named_parameters())})
        ends.append(state)
    assert same(ends[0].network.module.state_dict(), ends[1].network.module.state_dict())
    assert not same(start, ends[0].network.module.state_dict())
    assert ends[0].progress.history == ends[1].progress.history


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_a_teacher_of_decay_0_is_the_student_after_each_step_bit_for_bit(views, decay):
    state, live = followed(TRAINING, decay)
    equal = []
    train(state, views, TRAINING, phases=[consistency(views, TRAINING, live)],
          after_step=lambda s: equal.append(same(s.network.module.state_dict(), live.network.module.state_dict())))
    assert set(equal) == {decay == 0} and not live.network.module.training


def test_the_teacher_of_a_step_is_the_average_before_it_and_has_no_gradient(views):
    state, live = followed(TRAINING, 0.0)
    before, seen = [copy.deepcopy(state.network.module.state_dict())], []

    def objective(student, teacher, labels):
        seen.append(copy.deepcopy(live.network.module.state_dict()))
        assert not teacher.logits.requires_grad
        return Distillation(SQUARED, 0.5, labelled_share=0.5)(student, teacher, labels)

    train(state, views, TRAINING, phases=[consistency(views, TRAINING, live, objective)],
          after_step=lambda s: before.append(copy.deepcopy(s.network.module.state_dict())))
    assert len(seen) == 12 and all(same(*pair) for pair in zip(seen, before))
    assert all(value.grad is None for value in live.network.module.parameters())


@pytest.mark.parametrize("delivered, ema", [(True, None), (False, None), (False, 0.7)])
def test_which_average_is_judged(views, delivered, ema):
    training = dataclasses.replace(TRAINING, ema=ema)
    state, live = followed(training, 0.5, delivered)
    train(state, views, training, phases=[consistency(views, training, live)])
    expected = live.network if delivered else state.network
    if ema is None:
        assert state.judged is expected
    else:
        assert state.judged is not live.network and state.judged is not state.network
        assert not same(state.judged.module.state_dict(), live.network.module.state_dict())
    saved = state.state_dict()
    assert bool(saved["teacher"]) != delivered and bool(saved["average"]) == (delivered or ema is not None)


# The weight of the knowledge


def test_the_ramp_has_the_values_of_the_paper_and_is_part_of_the_loss():
    assert [risen(done, 8) for done in (0, 4, 8, 9)] == [math.exp(-5), math.exp(-1.25), 1.0, 1.0]
    assert risen(0, 0) == 1.0 and risen(7, 8) == pytest.approx(math.exp(-5 / 64))
    objective = Distillation(SQUARED, 0.3)
    phase = Phase("consistency", None, None, objective, 16, 56, 0.1, ramp_up=0.2)
    assert [phase.objective_at(step).ramp for step in (16, 20, 24, 55)] == [math.exp(-5), math.exp(-1.25), 1.0, 1.0]
    assert dataclasses.replace(phase, ramp_up=0.0).objective_at(16) is objective
    student, teacher, labels = torch.randn(5, 4), torch.randn(1, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    found = phase.objective_at(20)(Outputs(student), TeacherOutputs(teacher, torch.ones(1)), labels)
    s, t = student.double(), teacher[0].double()
    ce = -s.log_softmax(1)[torch.arange(5), labels].mean()
    squared = (s.softmax(1) - t.softmax(1)).square().sum(1).mean()
    assert found["loss"].item() == pytest.approx((0.7 * ce + 0.3 * math.exp(-1.25) * 10 * squared).item(), rel=1e-6)
    assert found["probability-mse"].item() == pytest.approx(squared.item(), rel=1e-6)


def test_the_ramp_is_a_share_of_the_steps_and_belongs_to_its_mode_only():
    assert [phase.ramp_up for phase in plan_of("mean-teacher").phases] == [0.25]
    assert [phase.ramp_up for phase in plan_of("mean-teacher", "--ramp-up", "0").phases] == [0]
    assert [phase.ramp_up for phase in plan_of("fixmatch", "--ramp-up", "0.5").phases] == [0]


# Pseudo-labels


@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_of_pseudo_labels_is_that_of_the_paper_over_the_images_without_labels(weighted):
    generator = torch.Generator().manual_seed(5)
    student, teacher = torch.randn(7, 4, generator=generator), 3 * torch.randn(7, 4, generator=generator)
    labels, shares = torch.tensor([2, 0, 0, 3]), torch.zeros(7, 4)
    shares[torch.arange(3, 7), labels] = 1
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0]) if weighted else None
    knowledge = dataclasses.replace(pseudo(0.8), class_weights=weights)
    objective = Distillation(knowledge, 0.3, None, 4 / 7, teaches_rest=True)
    found = objective(Outputs(student), TeacherOutputs(teacher[None], torch.ones(1)), shares)
    s, p = student.double(), teacher.double().softmax(1)
    ce = -s[3:].log_softmax(1)[torch.arange(4), labels].mean()
    terms = [-s[row].log_softmax(0)[p[row].argmax()] if p[row].max() >= 0.8 else 0.0 * s[0, 0] for row in range(3)]
    counts = [float(p[row].max() >= 0.8) for row in range(3)]
    assert 0 < sum(counts) < 3
    if weighted:
        terms = [term * (p[row] * weights.double()).sum() for row, term in enumerate(terms)]
    assert found["pseudo-label"].item() == pytest.approx((sum(terms) / 3).item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx((0.7 * ce + 0.3 * sum(terms) / 3).item(), rel=1e-5)
    assert found["pseudo-label-share"].item() == pytest.approx(sum(counts) / 3)


def test_a_threshold_that_no_image_reaches_leaves_the_label_term_alone(views):
    mixed, *_ = halves(views[0].store, range(3, 47), range(49))

    def of_labels(student, teacher, labels):
        ce = losses.cross_entropy(student.logits, labels) / mixed.labelled_share
        return {"loss": 0.5 * ce}

    ends = {}
    for name, objective in (("none", Distillation(pseudo(1.1), 0.5, None, mixed.labelled_share, True)),
                            ("all", Distillation(pseudo(0.0), 0.5, None, mixed.labelled_share, True)),
                            ("labels", of_labels)):
        state, live = followed(TRAINING, 0.0)
        train(state, views, TRAINING, phases=[consistency(views, TRAINING, live, objective)])
        ends[name] = state
    assert same(ends["none"].network.module.state_dict(), ends["labels"].network.module.state_dict())
    assert not same(ends["all"].network.module.state_dict(), ends["labels"].network.module.state_dict())
    shares = {name: [row["train_pseudo-label-share"] for row in ends[name].progress.history] for name in ("none", "all")}
    assert set(shares["none"]) == {0.0} and shares["all"] == pytest.approx([1.0] * 3)


def test_a_still_teacher_gives_pseudo_labels_without_any_label():
    student, teacher = torch.randn(6, 3), 4 * torch.randn(6, 3)
    found = Matching(pseudo(0.9))(Outputs(student), TeacherOutputs(teacher[None], torch.ones(1)), None)
    sure = teacher.double().softmax(1).amax(1) >= 0.9
    each = -student.double().log_softmax(1)[torch.arange(6), teacher.argmax(1)]
    assert found["loss"].item() == pytest.approx((each * sure).mean().item(), rel=1e-5)
    assert found["pseudo-label-share"].item() == pytest.approx(sure.double().mean().item())


# Exact resume, and several ranks


@pytest.mark.case(1)
@pytest.mark.parametrize("decay, delivered, ema, ramp_up", [(0.6, True, None, 0.5), (0.0, False, None, 0.0), (0.6, False, 0.7, 0.5)])
def test_it_resumes_from_every_step(views, monkeypatch, decay, delivered, ema, ramp_up):
    training, current = dataclasses.replace(TRAINING, ema=ema), {}

    def fresh(training, amp="off"):
        state, current["teacher"] = followed(training, decay, delivered)
        return state

    def of_the_newest(batch):
        current["teacher"].own = own
        return current["teacher"](batch)

    fresh(training)
    phase = consistency(views, training, current["teacher"], ramp_up=ramp_up)
    own = current["teacher"].own
    phase = dataclasses.replace(phase, teacher=JointTeacher([of_the_newest], [1.0], CPU))
    monkeypatch.setattr("test_loop.fresh", fresh)
    whole, snapshots = resumed_from_every_step(views, training, dataclasses.replace(training, seed=77), phases=[phase])
    lost = fresh(training)
    start = copy.deepcopy(lost.state_dict())
    key = "average" if delivered else "teacher"
    lost.load_state_dict(copy.deepcopy(snapshots[5]) | {key: start[key]})
    train(lost, views, training, phases=[phase])
    assert not same(lost.state_dict(), whole.state_dict())


def test_a_state_that_an_earlier_version_saved_has_no_teacher(views):
    state = State(models.build("kdtiny", synthetic.CLASSES, seed=1), TRAINING, FLOAT)
    old = {key: value for key, value in state.state_dict().items() if key not in ("average", "teacher")}
    state.load_state_dict(copy.deepcopy(upgraded(old)))
    moving, _ = followed(TRAINING, 0.5)
    with pytest.raises(Problem, match="does not fit this run"):
        moving.load_state_dict(copy.deepcopy(upgraded(old)))


def learned(store, valid, knowledge, teaches_rest, size=12):
    torch.set_num_threads(1)
    mixed, *_ = halves(store, range(40), range(45), size, augmentation=LIGHT)
    mixed.augmentation, mixed.taught = STRONG, LIGHT
    network, training = plain(), Training(lr=1e-3, batch_size=size, epochs=100, seed=3)
    network.module.fc.weight.data *= 30  # otherwise all images have nearly the same probabilities
    averages = averages_of(network, None, Follower(0.5, True))
    state = State(network, training, FLOAT, averages=averages)
    network.wrap_ddp()
    live = LiveNetwork(averages.teacher.network, FLOAT, OwnImages(mixed.over(store)))
    objective = Distillation(knowledge, 0.5, None, mixed.labelled_share, teaches_rest)
    phase = Phase("semi", mixed, JointTeacher([live], [1.0], CPU), objective, 0, 20, 1e-3, ramp_up=0.5)
    fit([state], [phase], valid, training, Hooks())
    return state


@pytest.mark.parametrize("knowledge, rest, size", [(SQUARED, False, 12), (pseudo(0.4), True, 13)])
def test_ranks_have_the_teacher_of_one_process(views, knowledge, rest, size):
    store, valid = views[0].store, views[1]
    alone = learned(store, valid, knowledge, rest, size)

    def work():
        state = learned(store, valid, knowledge, rest, size)
        torch.save([state.network.module.state_dict(), state.teacher.network.module.state_dict(), state.progress.history],
                   f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    found = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert same(*found)
    for own, other in zip((alone.network, alone.teacher.network), found[0]):
        assert max((own.module.state_dict()[key] - value).abs().max() for key, value in other.items()) < 1e-6
    share = [row.get("train_pseudo-label-share") for row in alone.progress.history]
    assert not rest or any(0 < one < 1 for one in share), share


def test_ranks_share_the_running_statistics_of_the_teacher(views):
    def work():
        torch.set_num_threads(1)
        state, live = followed(TRAINING, 0.5)
        state.network.wrap_ddp()
        phase = consistency(views, TRAINING, live)
        seen = []

        def teach(batch):
            seen.append(copy.deepcopy(live.network.module.state_dict()))
            return live(batch)

        phase = dataclasses.replace(phase, teacher=JointTeacher([teach], [1.0], CPU))
        fit([state], [phase], views[1], TRAINING, Hooks())
        torch.save(seen, f"rank{ranks.rank()}.pt")
    members = team(2, work)
    assert [member.code for member in members] == [0, 0], members[0].err
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert len(first) == 12 and same(first, second) and not torch.equal(first[0]["bn.running_mean"], first[-1]["bn.running_mean"])


# Whole commands


def run_of(mode, out="runs", tag=""):
    return Path(out) / FEW.relative_to("runs") / f"{mode}{tag}/itself-kdtiny/seed0"


@pytest.mark.parametrize("mode, more", [("mean-teacher", []), ("mean-teacher", ["--knowledge", "kd+attention"]), ("fixmatch", []),
                                        ("fixmatch", ["--balance", "weights", "--balance-knowledge", "--pseudo-label-threshold", "0.2"]),
                                        ("fixmatch", ["--ema", "0.9"])])
def test_a_run_without_a_teacher_network_leaves_a_complete_report(script, mode, more):
    code, out = script("distill", [*WORDS, "--mode", mode, *more])
    assert code == 0, out
    assert "not used" not in out.replace("--teacher: not used", "") and "no teacher in" not in out
    report = reports.read(run_of(mode))
    teacher, row = report["teacher"], report["history"]["epochs"][-1]
    assert (teacher["name"], teacher["members"], teacher["test_accuracy"], report["agreement"]) == ("itself", [], None, None)
    assert "changes with it" in teacher["gradient_reason"] and any("in every step" in text for text in teacher["remarks"])
    assert any("judged and delivered" in text for text in teacher["remarks"]) == (mode == "mean-teacher")
    assert report["data"]["pool"]["images"] == 140 and not Path("cache/logits").exists()
    if mode == "fixmatch":
        assert 0 <= row["train_pseudo-label-share"] <= 1
        assert row["train_loss"] == pytest.approx(0.5 * row["train_ce"] + 0.5 * row["train_pseudo-label"], rel=1e-4)
    assert script("evaluate", [run_of(mode)])[1].count("(reproduced)") == 1
    assert script("distill", [*WORDS, "--mode", mode, *more])[1].startswith("already finished")


def test_the_average_is_what_mean_teacher_delivers(script):
    for tag, decay in (("-student", "0"), ("-start", "1"), ("", "0.9")):
        words = [*WORDS, "--mode", "mean-teacher", "--max-steps", "3", "--teacher-decay", decay, *(["--tag", tag[1:]] if tag else [])]
        assert script("distill", words)[0] == 0
    start = models.build("kdtiny", synthetic.CLASSES, seed=0).module.state_dict()
    found = {tag: weights(run_of("mean-teacher", tag=tag)) for tag in ("", "-student", "-start")}
    named = dict(models.build("kdtiny", synthetic.CLASSES, seed=0).module.named_parameters())
    assert all(torch.equal(found["-start"][key], start[key]) for key in named)
    assert not any(torch.equal(found[tag][key], start[key]) for key in named for tag in ("", "-student"))
    report = reports.read(run_of("mean-teacher"))
    assert any("--ema 0.9." in text for text in report["teacher"]["remarks"])


@pytest.mark.case(6)
@pytest.mark.parametrize("mode, more", [("mean-teacher", []), ("fixmatch", ["--ema", "0.9"])])
def test_a_run_that_is_stopped_after_every_step_ends_the_same(script, mode, more):
    words = [*WORDS, "--mode", mode, *more, "--max-steps", "5"]
    assert script("distill", words)[0] == 0
    for count in range(20):
        code, out = script("distill", [*words, "--out", "stopped", "--max-minutes", "0"])
        if code == 0:
            break
    stopped = run_of(mode, "stopped")
    assert code == 0 and count > 3 and same(weights(run_of(mode)), weights(stopped))
    assert reports.read(run_of(mode))["history"] == reports.read(stopped)["history"]


def test_a_resume_file_of_another_version_of_the_teacher_is_refused(script):
    words = [*WORDS, "--mode", "fixmatch"]
    for _ in range(3):
        assert script("distill", [*words, "--max-minutes", "0"])[0] == 143
    for file in run_of("fixmatch").glob("resume*.pt"):
        content = checkpoint.load(file)
        assert content["state"].pop("teacher")
        checkpoint.save(file, content)
    code, out = script("distill", words)
    assert code == 4 and "does not fit this run" in out
    code, out = script("distill", [*WORDS, "--mode", "mean-teacher", "--max-steps", "2"])
    assert code == 0
    code, out = script("distill", [*WORDS, "--mode", "mean-teacher", "--max-steps", "2", "--teacher-decay", "0.5"])
    assert code == 2 and "teacher_decay: 0.999 -> 0.5" in out


@pytest.mark.parametrize("mode, words, idle", [
    ("mean-teacher", ["--ema", "0.9", "--generations", "2", "--pseudo-label-threshold", "0.5", "--no-stored-logits"],
     ["--ema", "--generations", "--no-stored-logits", "--pseudo-label-threshold", "--teacher"]),
    ("mean-teacher", ["--teacher-decay", "0.5", "--ramp-up", "0.5", "--augment", "strong"], ["--teacher"]),
    ("fixmatch", ["--teacher-decay", "0.5", "--ramp-up", "0.5", "--augment", "strong", "--ema", "0.9"],
     ["--augment", "--ramp-up", "--teacher", "--teacher-decay"]),
    ("fixmatch", ["--teacher-checkpoint", "x.pt", "--teacher-labeled-fraction", "1", "--teacher-image-size", "48"],
     ["--teacher", "--teacher-checkpoint", "--teacher-image-size", "--teacher-labeled-fraction"]),
    ("unlabeled-only", ["--teacher-decay", "0.5", "--ramp-up", "0.5", "--knowledge", "pseudo-label", "--pseudo-label-threshold", "0.5"],
     ["--ramp-up", "--teacher-decay"])])
def test_flags_of_other_teachers_are_named(mode, words, idle):
    plan = plan_of(mode, *words)
    assert [flag for flag in idle if flag.replace("--no-", "--") not in [one.replace("--no-", "--") for one in plan.idle]] == []
    assert len(plan.idle) == len(idle) and (mode == "unlabeled-only" or (not plan.teachers and plan.teacher_words == ""))


@pytest.mark.parametrize("mode, words, message", [
    ("fixmatch", ["--mixup", "1"], "--mixup 1 cannot be used with --knowledge pseudo-label, which needs the one class"),
    ("fixmatch", ["--knowledge", "similarity"], "only those without labels are taught"),
    ("fixmatch", ["--knowledge", "dkd"], "does not have them for all images"),
    ("mean-teacher", ["--batch-size", "1"], "Increase --batch-size, or use another --mode"),
    ("fixmatch", ["--augment-without", "flip"], "--augment-without"),
    ("normal", ["--augment-without", "crop"], "cannot be used with --augment light, whose parts are mirror, rotation, scale, shift"),
    ("fixmatch", ["--pseudo-label-threshold", "1.5"], "--pseudo-label-threshold")])
def test_what_does_not_fit_is_refused_in_one_line(mode, words, message):
    with pytest.raises(Problem) as caught:
        plan_of(mode, *words)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_parts_of_both_views_can_be_switched_off():
    assert plan_of("fixmatch", "--augment-without", "mirror", "crop", "shift").idle == ("--teacher",)
    assert plan_of("mean-teacher", "--mixup", "0.5").phases[0].half_labelled


def test_the_average_needs_disk_space():
    assert [plan_of(*words).averages for words in (["mean-teacher"], ["fixmatch"], ["fixmatch", "--ema", "0.9"], ["normal", "--ema", "0.9"],
                                                   ["mean-teacher", "--ema", "0.9"], ["normal"])] == [1, 1, 2, 1, 1, 0]


def test_studies_compare_them_with_the_same_network_alone(script):
    assert script("train_teacher", ["--model", "kdtiny", *WORDS[4:], "--max-steps", "4"])[0] == 0
    for mode in MODES:
        assert script("distill", [*WORDS, "--mode", mode, "--max-steps", "4"])[0] == 0
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "mean-teacher minus baseline" in out and "fixmatch minus baseline" in out and "itself" in out
    assert "--model itself" not in out and "train_teacher.py" not in out
    code, out = script("evaluate", ["--card", run_of("fixmatch")])
    assert code == 0 and "student / teacher" not in out and (run_of("fixmatch") / "card.md").exists()
    code, out = script("evaluate", ["--shift", run_of("fixmatch"), run_of("mean-teacher")])
    assert code == 0 and "kdtiny <- itself, fixmatch" in out and "kdtiny (baseline)" in out
    assert script("evaluate", ["--curves", run_of("fixmatch")])[0] == 0


def test_they_are_arms_of_every_pair_of_the_student(script):
    assert script("train_teacher", ["--model", "kdtiny", *WORDS[4:], "--max-steps", "4"])[0] == 0
    for mode in MODES:
        assert script("distill", [*WORDS, "--mode", mode, "--max-steps", "4"])[0] == 0
    code, out = script("evaluate", ["--arms", "runs"])
    [group] = json.loads(Path("runs/arms.json").read_text())["groups"]
    assert code == 0 and (group["teacher"], group["arms"]) == ("itself", ["alone", "mean-teacher", "fixmatch"]), out
    assert [(gap["of"], gap["minus"]) for gap in group["rows"][0]["gaps"]] == [("mean-teacher", "alone"), ("fixmatch", "alone")]
    assert script("distill", [*WORDS, "--mode", "unlabeled-only", "--max-steps", "4"])[0] == 0
    code, out = script("evaluate", ["--arms", "runs"])
    [group] = json.loads(Path("runs/arms.json").read_text())["groups"]
    assert code == 0 and group["teacher"] == "kdwide" and group["arms"][-2:] == ["mean-teacher", "fixmatch"] and "FixMatch" in out
    assert set(group["rows"][0]["cells"]) == {"teacher", "alone", "unlabeled-only", "mean-teacher", "fixmatch"}
    folder = Path("runs/arms.md").read_text()
    assert "--mode itself" not in folder and "KD (labelled)" in folder


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_ranks_leave_one_report(mode, script):
    members = by_ranks(2, [*WORDS, "--mode", mode])
    assert [member.code for member in members] == [0, 0], members[1].err + members[0].err
    assert script("evaluate", [run_of(mode)])[1].count("(reproduced)") == 1
