"""Students that are trained at once and teach each other (--mode mutual)."""

import copy
import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA, TINY, same, weights
from faults import in_child
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loop import views as views  # a fixture
from test_ranks import FLOAT, Exact, Plain, team
from torch import nn

from kd import models
from kd.config import parsing
from kd.config.resolve import resolve, resolve_all
from kd.config.settings import DistillSettings, Training
from kd.data.readers import synthetic
from kd.knowledge import KNOWLEDGE
from kd.loop import Hooks, Phase, fit
from kd.methods import DISTIL, MATCH, MODES, PEERS, Mode
from kd.reports import report as reports
from kd.reports.predictions import read_predictions
from kd.system import checkpoint, ranks
from kd.system.errors import Problem
from kd.system.locks import exclusive_lock
from kd.teachers.outputs import by_peers, no_teacher
from kd.training.objectives import Distillation, Knowledge, Supervised
from kd.training.state import State

PAIR = ["--mode", "mutual", "--student", "kdwide+kdtiny", *TINY]
MUTUAL = DATA / "mutual"
FOLDERS = {"kdtiny": MUTUAL / "kdwide-kdtiny/seed0", "kdwide": MUTUAL / "kdtiny-kdwide/seed0"}
FIRST, SECOND = FOLDERS.values()  # sorted by name
LEARNING = Distillation(Knowledge({"kd": 1.0}, (1.0,)), 0.5)


class Wider(Plain):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 9, 5, stride=4), nn.Linear(9, 7)


def networks(count):
    """Return networks in float64 without BatchNorm and dropout, of different sizes and weights."""
    found, scale = [], torch.full((1, 3, 1, 1), 0.5, dtype=torch.float64)
    for number in range(count):
        torch.manual_seed(number)
        module = (Wider if number == 1 else Plain)().double()
        found.append(Exact(f"plain{number}", "plain", synthetic.CLASSES, module, scale, scale))
    return found


def learn(every, views, training, steps=10**9, **options):
    """Train the states at once, with hooks that are given by name, and return them."""
    seen, valid = views
    hooks = Hooks()
    for name, call in options.items():
        setattr(hooks, name, call)
    end = min(training.epochs * seen.steps, steps)
    phase = Phase("distil", seen, no_teacher, LEARNING, 0, end, training.lr, targets=by_peers)
    fit(every, [phase], valid, training, hooks)
    return every


def with_sgd(network, training):
    state = State(network, training, FLOAT)
    state.optimizer = torch.optim.SGD(network.module.parameters(), lr=training.lr)
    return state


def by_hand(modules, views, steps, lr, at_once=True):
    """Take the steps of mutual learning as in the paper, with CE + KL halved, by plain SGD.

    The formulas are written out with probabilities, apart from kd.losses. With at_once=False, each student
    learns from the others as they are after their own updates of the same step.
    """
    modules, batches = copy.deepcopy(modules), list(views.epoch(0))[:steps]
    for batch in batches:
        images = (batch.images.double() - 0.5) / 0.5
        before = [module(images).softmax(1).detach() for module in modules]
        for place, module in enumerate(modules):
            now = before if at_once else [other(images).softmax(1).detach() for other in modules]
            others = [own for number, own in enumerate(now) if number != place]
            target, own = sum(others) / len(others), module(images).softmax(1)
            ce = -own[range(len(own)), batch.labels].log().mean()
            divergence = (target * (target / own).log()).sum(1).mean()
            gradients = torch.autograd.grad((ce + divergence) / 2, list(module.parameters()))
            with torch.no_grad():
                for value, gradient in zip(module.parameters(), gradients):
                    value -= lr * gradient
    return modules


def furthest(first, second):
    return max((own - other).abs().max().item() for own, other in zip(first.parameters(), second.parameters()))


@pytest.mark.parametrize("count", [2, 3])
def test_a_step_is_that_of_the_paper_for_all_students_at_once(views, count):
    training = Training(lr=0.5, batch_size=12, seed=3, schedule="constant")
    start = networks(count)
    modules = [network.module for network in copy.deepcopy(start)]
    states = learn([with_sgd(network, training) for network in start], views, training, steps=3)
    expected = by_hand(modules, views[0], 3, 0.5)
    in_turn = by_hand(modules, views[0], 3, 0.5, at_once=False)
    for state, own, other, before in zip(states, expected, in_turn, modules):
        assert furthest(state.network.module, own) < 1e-12 < 1e-3 < furthest(before, own)
        # The first student of a step has no update before it in either case, but the steps after the first differ.
        assert furthest(own, other) > 1e-6
    assert {state.progress.total for state in states} == {3}


def test_the_order_of_the_students_changes_nothing(views):
    training = Training(lr=0.01, batch_size=12, seed=3, epochs=2)
    ends = []
    for order in ([0, 1, 2], [2, 0, 1]):
        every = networks(3)
        states = learn([State(every[number], training, FLOAT) for number in order], views, training)
        ends.append({state.network.name: state.network.module.state_dict() for state in states})
    for name, first in ends[0].items():  # with three, the sum of two probabilities is in another order
        assert all(torch.allclose(value, ends[1][name][key], atol=1e-12) for key, value in first.items())


def test_students_that_exchange_nothing_are_trained_as_if_alone(views):
    """In the loop, dropout and BatchNorm included, whatever the number of students before one."""
    training, names = Training(epochs=2, batch_size=12, lr=3e-3, seed=3, ema=0.8), ("kdtiny", "kdwide", "kdtiny")
    phase = Phase("train", views[0], no_teacher, Supervised(), 0, 8, training.lr)

    def trained(numbers):
        states = [State(models.build(names[number], synthetic.CLASSES, seed=number), training, FLOAT) for number in numbers]
        fit(states, [phase], views[1], training, Hooks())
        return [state.state_dict() for state in states]

    assert all(same(own, trained([number])[0]) for number, own in enumerate(trained([0, 1, 2])))


def test_all_kinds_of_the_output_can_be_exchanged(script):
    kinds = [name for name, kind in KNOWLEDGE.items() if not kind.inside]
    assert script("distill", [*PAIR, "--knowledge", "+".join(kinds), "--max-steps", "1"])[0] == 0
    for folder in FOLDERS.values():
        [row] = reports.read(folder)["history"]["epochs"]
        expected = 0.5 * row["train_ce"] + 0.5 * sum(KNOWLEDGE[name].weight * row[f"train_{name}"] for name in kinds)
        assert row["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_students_may_exchange_before_they_read_labels(script, monkeypatch):
    monkeypatch.setitem(MODES, "mine", Mode(PEERS, "x", (MATCH, DISTIL), "kd+dist"))
    code, out = script("distill", [*PAIR, "--mode", "mine", "--match-share", "0.5"])
    assert code == 0 and script("distill", ["--list-modes"])[0] == 0
    for folder in FOLDERS.values():
        first, *_, last = reports.read(Path(str(folder).replace("mutual", "mine")))["history"]["epochs"]
        assert first["phase"] == "match" and "train_ce" not in first and {"train_ce", "train_kd", "train_dist"} <= last.keys()


def test_without_weight_on_each_other_the_students_are_networks_alone(script):
    """Nothing else connects them: seeds, dropout, BatchNorm, order, average and best epoch are those of a network alone."""
    more = ["--ema", "0.8", "--clip-norm", "1"]
    assert script("distill", [*PAIR, *more, "--alpha", "0"])[0] == 0
    assert script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, *more])[0] == 0
    for name, folder in FOLDERS.items():
        own, alone = reports.read(folder), reports.read(DATA / f"teacher/{name}/seed0")
        assert same(weights(folder), weights(DATA / f"teacher/{name}/seed0")) and own["results"] == alone["results"]
        for row, other in zip(own["history"]["epochs"], alone["history"]["epochs"], strict=True):
            assert row["train_ce"] == other["train_ce"] and row["valid_nll"] == other["valid_nll"]


@pytest.mark.case(1)
def test_two_students_resume_from_every_step_bit_for_bit(views):
    training = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", seed=3, ema=0.8)

    def fresh(seed):
        found = []
        for number, name in enumerate(("kdtiny", "kdwide")):
            found.append(State(models.build(name, synthetic.CLASSES, seed=seed), training, FLOAT, None, 5 + number))
        return found

    snapshots = []
    whole = learn(fresh(3), views, training,
                  after_step=lambda states: snapshots.append(copy.deepcopy([state.state_dict() for state in states])))
    assert len(snapshots) == 12
    for snapshot in snapshots:
        torch.manual_seed(12345)
        resumed = fresh(77)
        for state, own in zip(resumed, copy.deepcopy(snapshot)):
            state.load_state_dict(own)
        learn(resumed, views, training)
        assert all(same(own.state_dict(), other.state_dict()) for own, other in zip(resumed, whole))


@pytest.mark.case(6)
def test_a_stop_between_two_validations_ends_no_students_epoch(views):
    """The saved states are then both those of the last step."""
    training = Training(epochs=2, batch_size=12, lr=3e-3, seed=3)

    class Stop(Exception):
        pass

    asked, valid = [], views[1]

    def check_stop():
        asked.append(True)
        if len(asked) == 1 + len(list(valid.epoch(0))):  # the first batch of the second student
            raise Stop

    states = [State(models.build(name, synthetic.CLASSES, seed=3), training, FLOAT) for name in ("kdtiny", "kdwide")]
    with pytest.raises(Stop):
        learn(states, views, training, check_stop=check_stop)
    saved = copy.deepcopy([state.state_dict() for state in states])
    assert [one["progress"]["history"] for one in saved] == [[], []] and {one["progress"]["step"] for one in saved} == {4}
    learn(states, views, training)
    whole = [State(models.build(name, synthetic.CLASSES, seed=3), training, FLOAT) for name in ("kdtiny", "kdwide")]
    learn(whole, views, training)
    assert all(same(own.state_dict(), other.state_dict()) for own, other in zip(states, whole))


@pytest.mark.case(19)
def test_divergence_of_one_student_ends_all_and_names_it(views):
    training = Training(epochs=1, batch_size=12, seed=3)
    states = [State(models.build(name, synthetic.CLASSES, seed=3), training, FLOAT) for name in ("kdtiny", "kdwide")]
    states[1].network.module.fc.weight.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
    with pytest.raises(Problem, match="Training of kdwide diverged: .* not finite at step 0") as caught:
        learn(states, views, training)
    assert caught.value.code == 3


# The run folders -------------------------------------------------------------------------------


@pytest.fixture
def done(prepared):
    """Prepare a finished run of two students, and both networks alone."""
    prepared([("distill", PAIR), ("train_teacher", ["--model", "kdtiny", "kdwide", *TINY])])


def result(folder):
    """Return what two runs of a student have in common: the report without the clock and its place, and the weights."""
    report = reports.read(folder)
    del report["clock"]
    for key in ("out", "save_every_minutes", "max_minutes"):
        del report["settings"][key]
    return report, {key: value.tolist() for key, value in weights(folder).items()}


def test_each_student_has_a_folder_and_a_report_like_that_of_a_network_alone(done):
    for name, folder in FOLDERS.items():
        report, alone = reports.read(folder), reports.read(DATA / f"teacher/{name}/seed0")
        [member], other = report["teacher"]["members"], next(key for key in FOLDERS if key != name)
        peer = reports.read(FOLDERS[other])
        assert report["student"]["name"] == name and report["settings"]["student"] == "kdtiny+kdwide"
        assert report["teacher"]["name"] == member["name"] == other and member["weight"] == 1
        assert member["hash"] == peer["student"]["weights_hash"] == report["teacher"]["hash"]
        assert Path("runs") / member["source"] == FOLDERS[other]
        best = peer["results"]["best"]
        assert (member["valid_accuracy"], member["test_accuracy"]) == (best["valid_accuracy"], best["test_accuracy"])
        own, theirs = read_predictions(folder), read_predictions(FOLDERS[other])
        assert np.array_equal(own.teacher, theirs.logits.argmax(1))
        assert report["agreement"]["same_prediction"] == pytest.approx((own.logits.argmax(1) == own.teacher).mean())
        assert report.keys() == alone.keys() and report["data"] == alone["data"]
        row = report["history"]["epochs"][-1]
        assert row["train_loss"] == pytest.approx(0.5 * row["train_ce"] + 0.5 * row["train_kd"], rel=1e-5)
        tags = EventAccumulator(str(folder), {"scalars": 0}).Reload().Tags()["scalars"]
        assert {"train/kd", "epoch/valid_accuracy", "lr"} <= set(tags) or "epoch/valid_accuracy" in tags
        assert {file.name for file in folder.iterdir()} >= {"model.pt", "predictions.csv", "confusion.png", "settings.json"}
    assert not list(MUTUAL.rglob("resume*"))


def test_the_same_students_in_any_order_are_the_same_run(done, script):
    code, out = script("distill", ["--mode", "mutual", "--student", "kdtiny+kdwide", *TINY])
    assert code == 0 and out.count("already finished") == 2 and out.count("results: ") == 2
    code, out = script("distill", ["--config", SECOND / "settings.json"])
    assert code == 0 and out.count("already finished") == 2


def test_lines_of_progress_and_the_summary_name_each_student(script):
    code, out = script("distill", [*PAIR, "--max-steps", "3"])
    assert code == 0
    for name in FOLDERS:
        assert out.count(f"{name}, distil: epoch 1, step 3/3  loss") == 1 and f"training {name} (" in out
    assert "note: --teacher" not in out


def test_three_students_learn_from_the_mean_of_the_others(script):
    assert script("distill", ["--mode", "mutual", "--student", "kdtiny+kdwide+kdtiny", *TINY, "--max-steps", "3"])[0] == 0
    folders = [MUTUAL / f"{peers}/seed0" for peers in (
        "kdtiny-student2+kdwide-kdtiny", "kdtiny-student1+kdwide-kdtiny", "kdtiny-student1+kdtiny-student2-kdwide")]
    logits = []
    for folder in folders:
        with (folder / "predictions.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["part"] == "test"]
        logits.append(torch.tensor([[float(row[f"logit_{name}"]) for name in synthetic.CLASSES] for row in rows]))
    for place, folder in enumerate(folders):
        report, others = reports.read(folder), [number for number in range(3) if number != place]
        members = report["teacher"]["members"]
        assert [member["weight"] for member in members] == [0.5, 0.5] and report["teacher"]["disagreement"] is not None
        assert [Path("runs") / member["source"] for member in members] == [folders[number] for number in others]
        mean = sum(logits[number].double().softmax(1) for number in others)
        assert np.array_equal(read_predictions(folder).teacher, mean.argmax(1).numpy())
    assert not same(weights(folders[0]), weights(folders[1]))
    assert script("evaluate", ["--tables", "runs"])[0] == 0
    assert script("evaluate", ["--card", folders[0]])[0] == 0


def plans(students, *words):
    [settings] = parsing.parse(DistillSettings, ["--mode", "mutual", "--student", students, *words])
    return resolve_all(settings)


def test_a_student_starts_as_the_same_network_alone_and_a_second_one_of_its_name_does_not():
    first, second, third = plans("resnet18+vgg11+resnet18", "--seed", "4")
    assert (first.student, second.student, third.student) == ("resnet18", "resnet18", "vgg11")
    assert [plan.weights_seed for plan in (first, third)] == [plan.dropout_seed for plan in (first, third)] == [4, 4]
    assert second.weights_seed == second.dropout_seed != 4
    assert [plan.folder.parent.name for plan in (first, second, third)] == [
        "resnet18-student2+vgg11-resnet18", "resnet18-student1+vgg11-resnet18", "resnet18-student1+resnet18-student2-vgg11"]
    assert {plan.state_folder for plan in (first, second, third)} == {first.folder}
    starts = {tuple(models.build("kdtiny", ("a", "b"), seed=plan.weights_seed).module.fc.bias.tolist()) for plan in (first, second)}
    assert len(starts) == 2


def test_the_weights_of_the_loss_are_those_of_the_paper_up_to_a_factor():
    for plan in plans("resnet18+vgg11"):
        assert plan.alpha == 0.5 and plan.temperatures == (1.0,) and plan.phases[0].knowledge.weights == {"kd": 1.0}
    assert plans("resnet18+vgg11", "--alpha", "0.3")[0].alpha == 0.3


@pytest.mark.parametrize("words, message", [
    (["--student", "resnet18"], "needs at least two students"), (["--student", "resnet18,vgg11"], "Use --student resnet18+vgg11, or"),
    (["--mode", "normal", "--student", "resnet18+vgg11"], "Use --mode mutual, or one run for each: --student resnet18 vgg11."),
    (["--knowledge", "hint"], "exchange only their outputs"), (["--knowledge", "kd+similarity"], "exchange only their outputs"),
    (["--weights", "x.pt"], "--weights cannot be used with --mode mutual"), (["--compile"], "--compile cannot be used with --mode mutual"),
    (["--student-number", "3"], "--student names 2"), (["--student", "resnet18+resnet1"], "Network 'resnet1' is unknown")])
def test_what_does_not_fit_is_refused_at_once(script, words, message):
    code, out = script("distill", ["--mode", "mutual", "--student", "resnet18+vgg11", *TINY, *words])
    assert code == 2 and message in out.splitlines()[-1] and not Path("runs").exists()


def test_settings_of_teachers_that_exist_before_are_not_used():
    words = ["--teacher", "vgg11", "--teacher-checkpoint", "x.pt", "--teacher-weights", "2", "--generations", "2", "--temperature",
             "9", "--teacher-image-size", "64", "--teacher-labeled-fraction", "0.5", "--no-stored-logits", "--layers", "conv"]
    [settings] = parsing.parse(DistillSettings, ["--mode", "mutual", "--student", "resnet18+vgg11", *words])
    given = {word for word in words if word.startswith("--")} - {"--no-stored-logits"} | {"--stored-logits"}
    assert set(resolve(settings).idle) == given


def test_a_list_of_students_is_a_list_of_runs():
    every = parsing.parse(DistillSettings, ["--mode", "mutual", "--student", "a+b", "c+d"])
    assert [plan.student for settings in every for plan in resolve_all(settings)] == ["a", "b", "c", "d"]
    assert [len(resolve_all(settings)) for settings in parsing.parse(DistillSettings, ["--student", "a", "b"])] == [1, 1]


# Nothing is lost ---------------------------------------------------------------------------------


def call(argv):
    return lambda: __import__("distill").main([str(word) for word in argv])


@pytest.mark.case(1, 8)
def test_stops_save_one_state_of_both_and_the_run_goes_on_exactly(script, prepared):
    prepared([("distill", [*PAIR, "--out", "whole"]), ("train_teacher", ["--model", "kdtiny", *TINY])])
    for step in (1, 2):
        code, out = script("distill", [*PAIR, "--max-minutes", "0"])
        assert code == 143 and f"at step {step}. The state was saved in '{FIRST}'" in out.splitlines()[-1]
    for folder in FOLDERS.values():
        ended = json.loads((folder / "ended.json").read_text())
        assert (ended["ended"], ended["step"]) == ("stopped", 2) and str(FIRST) in ended["message"]
    assert (FIRST / "resume.pt").exists() and not (SECOND / "resume.pt").exists()
    content = checkpoint.load(FIRST / "resume.pt")
    assert {one["progress"]["total"] for one in (content["state"], *content["others"])} == {2}
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and all(f"Run '{folder}' (stopped" in out for folder in FOLDERS.values())
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    assert [command.count("settings.json") for command in table["missing"] if "distill.py" in command] == [1]
    code, out = script("distill", PAIR)
    assert code == 0 and "continuing from step 2 " in out
    for folder in FOLDERS.values():
        assert result(folder) == result("whole" / folder.relative_to("runs")) and not (folder / "ended.json").exists()
    assert not list(MUTUAL.rglob("resume*"))


@pytest.mark.case(2, 25)
@pytest.mark.parametrize("moment", ["first report", "second report", "forgotten"])
def test_a_kill_between_two_reports_loses_nothing(script, prepared, moment):
    prepared([("distill", [*PAIR, "--out", "whole"])])

    def until_killed():
        from kd.runs import finish
        from kd.runs.folder import RunFolder
        write, count = finish.write_json, []

        def die(path, content):
            write(path, content)
            count.append(path)
            if len(count) == (1 if moment == "first report" else 2) and moment != "forgotten":
                os.kill(os.getpid(), signal.SIGKILL)

        finish.write_json = die
        if moment == "forgotten":
            RunFolder.forget = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
        return call(PAIR)()

    assert in_child(until_killed).code == -signal.SIGKILL
    finished = [folder for folder in FOLDERS.values() if (folder / "report.json").exists()]
    assert len(finished) == (1 if moment == "first report" else 2) and (FIRST / "resume.pt").exists()
    before = {folder: (folder / "report.json").read_bytes() for folder in finished}
    code, out = script("distill", PAIR)
    assert code == 0 and ("continuing from step 12 " in out) == (moment == "first report")
    assert all((folder / "report.json").read_bytes() == content for folder, content in before.items())
    for folder in FOLDERS.values():
        assert result(folder) == result("whole" / folder.relative_to("runs"))
        values = EventAccumulator(str(folder), {"scalars": 0}).Reload()
        assert len(values.Scalars("epoch/valid_accuracy")) == 2 and values.Images("confusion")
    assert not list(MUTUAL.rglob("resume*")) and "warning" not in out


@pytest.mark.case(2)
def test_a_student_whose_folder_is_gone_is_trained_again_with_its_peer_which_keeps_its_report(done, script):
    before, lost = (FIRST / "report.json").read_bytes(), result(SECOND)
    for file in SECOND.iterdir():
        file.unlink()
    code, out = script("distill", PAIR)
    assert code == 0 and result(SECOND) == lost and (FIRST / "report.json").read_bytes() == before and "warning" not in out


@pytest.mark.case(11)
@pytest.mark.parametrize("change", [
    lambda content: content.update(others=[]), lambda content: content.update(others=3), lambda content: content.update(others=[3]),
    lambda content: content["others"][0].pop("optimizer"), lambda content: content["others"][0]["progress"].update(total=1),
    lambda content: content["others"].append(content["others"][0]), lambda content: content.update(precision="float32")])
def test_a_state_that_is_not_of_both_students_is_refused(script, prepared, change):
    stopped = ("distill", [*PAIR, "--max-minutes", "0"])
    prepared([stopped, stopped])
    content = checkpoint.load(FIRST / "resume.pt")
    change(content)
    checkpoint.save(FIRST / "resume.pt", content)
    (FIRST / "resume.previous.pt").unlink()
    code, out = script("distill", PAIR)
    assert code == 4 and out.splitlines()[-1].startswith("error: ") and "--tag NAME" in out.splitlines()[-1]


@pytest.mark.case(12)
def test_other_settings_of_either_folder_are_refused_before_anything_is_written(done, script):
    for file in FIRST.iterdir():
        file.unlink()
    code, out = script("distill", [*PAIR, "--lr", "0.5"])
    assert code == 2 and f"Run folder '{SECOND}' holds a run with other settings" in out and "lr: " in out
    assert not (FIRST / "settings.json").exists()


@pytest.mark.case(23)
def test_the_folders_of_all_students_are_locked(script):
    for folder in FOLDERS.values():
        with exclusive_lock(folder):
            code, out = script("distill", PAIR)
        assert code == 75 and str(folder) in out and not list(MUTUAL.rglob("settings.json"))


def test_the_disk_must_have_room_for_all_students(script, monkeypatch):
    sizes = {name: models.parameters(models.build(name, synthetic.CLASSES).module) for name in FOLDERS}
    need = sum(sizes.values()) * 48
    monkeypatch.setattr("kd.runs.folder.shutil.disk_usage", lambda path: type("", (), {"free": need - 1})())
    code, out = script("distill", PAIR)
    assert code == 74 and "too little space" in out
    monkeypatch.setattr("kd.runs.folder.shutil.disk_usage", lambda path: type("", (), {"free": need})())
    assert script("distill", [*PAIR, "--max-steps", "1"])[0] == 0


# Several ranks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_learn_what_one_process_learns(views, count):
    training = Training(lr=1e-3, batch_size=12, epochs=100, seed=3)

    def trained():
        torch.set_num_threads(1)
        every = networks(2)
        states = [State(network, training, FLOAT) for network in every]
        for network in every:
            network.wrap_ddp()
        return learn(states, views, training, steps=20)

    def work():
        torch.save([state.network.module.state_dict() for state in trained()], f"rank{ranks.rank()}.pt")

    alone = [state.network.module.state_dict() for state in trained()]
    assert [member.code for member in team(count, work)] == [0] * count
    found = [torch.load(f"rank{rank}.pt", weights_only=True) for rank in range(count)]
    assert all(same(found[0], other) for other in found[1:])
    for own, expected in zip(found[0], alone):
        assert max((own[key] - value).abs().max() for key, value in expected.items()) < 1e-10


# Studies -----------------------------------------------------------------------------------------


def test_tables_card_and_shift_compare_each_student_with_the_network_alone(done, script):
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    cells = {(cell["student"], cell["teacher"]): cell for cell in table["cells"]}
    for name, folder in FOLDERS.items():
        cell = cells[name, next(other for other in FOLDERS if other != name)]
        own, alone = (read_predictions(place) for place in (folder, DATA / f"teacher/{name}/seed0"))
        gap = (own.logits.argmax(1) == own.labels).mean() - (alone.logits.argmax(1) == alone.labels).mean()
        assert cell["n"] == 1 and cell["minus_alone"]["mean"] == pytest.approx(gap) and cell["minus_teacher"] is not None
    assert table["missing"] == [] and table["mode"] == "mutual"
    assert script("evaluate", [FIRST])[0] == 0
    code, out = script("evaluate", ["--shift", *FOLDERS.values()])
    assert code == 0 and "excluded" not in out and "kdtiny <- kdwide, mutual" in out and "kdwide <- kdtiny, mutual" in out


def test_a_missing_seed_of_several_students_is_one_command(done, script):
    script("train_teacher", ["--model", "kdtiny", *TINY, "--seed", "1"])
    script("evaluate", ["--tables", "runs"])
    [table] = json.loads(Path("runs/tables.json").read_text())["protocols"][0]["tables"]
    commands = [text for text in table["missing"] if "--mode mutual" in text]
    assert len(commands) == 1 and "--student kdtiny+kdwide" in commands[0] and "--seed 1" in commands[0]
    words = commands[0].split()[2:]
    assert script("distill", [*words, "--max-steps", "1"])[0] == 0
    assert (MUTUAL / "kdwide-kdtiny/seed1/report.json").exists() and (MUTUAL / "kdtiny-kdwide/seed1/report.json").exists()
