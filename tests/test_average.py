"""The moving average of the weights (--ema) is what is judged and delivered, and it is resumed exactly."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import DATA, PAIR, RUN, TINY, same, weights
from test_loop import (
    CPU,
    FLOAT,
    distillation,
    fresh,
    panel_of,
    resumed_from_every_step,
    train,
    two_phases,
)
from test_loop import views as views  # a fixture
from test_ranks import plain, team
from test_ranks import trained as trained_by_ranks

from kd import models
from kd.config.settings import Training
from kd.data.readers import synthetic
from kd.data.views import Views
from kd.knowledge import KNOWLEDGE
from kd.loop import AccuracyWatch, predict
from kd.reports import report as reports
from kd.runs.folder import RunFolder
from kd.system import checkpoint, ranks
from kd.system.errors import DIVERGED, Problem
from kd.teachers.outputs import ObservedJointTeacher, ObservedNetwork
from kd.training import regressors
from kd.training.average import ExponentialAverage
from kd.training.objectives import Distillation, Knowledge
from kd.training.state import State

AVERAGED = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", warmup=0.3, seed=3, ema=0.7)


def by_hand(start, snapshots, decay):
    """Return the average in float64 of the weights after each step; integers are those after the last."""
    average = {key: value.double() for key, value in start.items()}
    for n, snapshot in enumerate(snapshots):
        d = min(decay, (1 + n) / (10 + n))
        average = {key: d * average[key] + (1 - d) * value.double() if value.is_floating_point() else value.double()
                   for key, value in snapshot.items()}
    return average


def near(found, expected):
    return found.keys() == expected.keys() and all(
        torch.allclose(found[key].double(), expected[key], rtol=1e-5, atol=1e-6) for key in expected)


@pytest.mark.parametrize("decay", [0.05, 0.3, 0.999])
def test_the_average_is_that_of_the_formula_and_training_does_not_see_it(views, decay):
    ends = {}
    for ema in (None, decay):
        state, seen = fresh(training := Training(epochs=3, batch_size=12, lr=3e-3, seed=3, ema=ema)), []
        start = copy.deepcopy(state.network.module.state_dict())
        train(state, views, training, after_step=lambda s: seen.append(copy.deepcopy(s.network.module.state_dict())))
        ends[ema] = state
    raw, averaged = ends[None], ends[decay]
    assert same(raw.network.module.state_dict(), averaged.network.module.state_dict())
    average = averaged.judged.module.state_dict()
    assert near(average, by_hand(start, seen, decay)) and not near(average, {k: v.double() for k, v in seen[-1].items()})
    assert average["bn.num_batches_tracked"] == 12
    assert raw.judged is raw.network and raw.state_dict()["average"] == {}


def test_validation_and_the_best_weights_are_those_of_the_average(views):
    rows, logits = [], []

    def after_epoch(state, row):
        rows.append(row)
        logits.append(predict(state.judged, views[1]))

    state = train(fresh(AVERAGED), views, AVERAGED, after_epoch=after_epoch)
    labels = views[1].labels.numpy()
    assert [row["valid_accuracy"] for row in rows] == [(own.argmax(1) == labels).mean() for own in logits]
    assert np.array_equal(state.best_logits, logits[state.progress.best["epoch"] - 1])
    assert not np.array_equal(logits[-1], predict(state.network, views[1]))
    own, kept = copy.deepcopy(state.judged.module.state_dict()), copy.deepcopy(state.network.module.state_dict())
    state.progress.best = state.progress.best | {"steps": -1}  # as if an earlier epoch were the best
    with state.best_in_network():
        assert same(state.judged.module.state_dict(), state.best_weights)
    assert same(state.judged.module.state_dict(), own) and same(state.network.module.state_dict(), kept)


@pytest.mark.case(1)
@pytest.mark.parametrize("phases", [1, 2])
@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_resuming_from_every_step_ends_in_the_same_average_bit_for_bit(views, amp, phases, optimizer):
    training = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", warmup=0.3, seed=3, ema=0.7,
                        optimizer=optimizer, weight_decay=0.1)
    teach = panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), FLOAT)
    options = {"teacher": teach, "objective": distillation()}
    if phases == 2:
        options = {"phases": two_phases(views, training, teach)}
    start = Training(seed=77, ema=0.7, optimizer=optimizer)
    whole, snapshots = resumed_from_every_step(views, training, start, amp, **options)
    without_it = fresh(training, amp)
    start = fresh(training, amp).state_dict()["average"]
    without_it.load_state_dict(copy.deepcopy(snapshots[5]) | {"average": copy.deepcopy(start)})
    train(without_it, views, training, **options)
    assert not same(without_it.state_dict(), whole.state_dict())


def test_the_next_phase_starts_from_the_average_with_an_average_of_its_own(views):
    first, second = two_phases(views, AVERAGED, panel_of(models.build("kdwide", synthetic.CLASSES), FLOAT))
    raw, averages = [], []

    def after_step(state):
        raw.append(copy.deepcopy(state.network.module.state_dict()))
        averages.append(copy.deepcopy(state.judged.module.state_dict()))

    state = fresh(AVERAGED)
    train(state, views, AVERAGED, phases=[first, second], after_step=after_step)
    assert near(averages[-1], by_hand(averages[first.end - 1], raw[first.end:], 0.7))
    assert not near(averages[-1], by_hand(raw[first.end - 1], raw[first.end:], 0.7))
    # The second phase alone, from the averaged weights of the first, takes the same steps.
    again = fresh(AVERAGED)
    for classifier in (again.network, again.judged):
        classifier.module.load_state_dict(averages[first.end - 1])
    again.progress.total, again.progress.epoch, again.progress.phase = first.end, 2, 1
    train(again, views, AVERAGED, phases=[first, second])
    assert same(again.network.module.state_dict(), raw[-1]) and same(again.judged.module.state_dict(), averages[-1])


def test_projectors_are_trained_but_not_averaged(views):
    wide = models.build("kdwide", synthetic.CLASSES, seed=9)
    teach = ObservedJointTeacher([ObservedNetwork(wide, FLOAT, ("bn",))], [1.0], CPU)
    ends = []
    for ema in (None, 0.7):
        training, projectors = Training(epochs=2, batch_size=12, lr=3e-3, seed=3, ema=ema), regressors.build({"hint": KNOWLEDGE["hint"]}, [(8, 12)], 3)
        knowledge = Knowledge({"kd": 1.0, "hint": 2.0}, (4.0,), regressors=projectors)
        state = State(models.build("kdtiny", synthetic.CLASSES, seed=3), training, FLOAT, projectors)
        train(state, views, training, teacher=teach, objective=Distillation(knowledge, 0.5), layers=("bn",))
        ends.append(state.state_dict())
    assert same(ends[0]["helper"], ends[1]["helper"]) and ends[1]["average"].keys() == ends[1]["weights"].keys()


def test_a_copied_network_runs_on_its_own_weights():
    """Layers whose `forward` is replaced on a CPU must not refer to the network in training."""
    for name in ("mobilenetv3_small_050", "vgg11", "resnet18"):
        network = models.build(name, ("a", "b"), seed=1).to(CPU)
        average = ExponentialAverage(network, 0.9).network
        network.module.eval(), average.module.eval()
        images = torch.rand(2, 3, 32, 32)
        with torch.no_grad():
            before = network(images)
            assert torch.equal(average(images), before)
            for value in network.module.parameters():
                value.zero_()
            assert torch.equal(average(images), before) and not torch.equal(network(images), before)
        for own, value in zip(average.module.parameters(), network.module.parameters(), strict=True):
            assert own.stride() == value.stride() and own.data_ptr() != value.data_ptr()


def test_a_compiled_network_is_averaged_without_its_compilation(views):
    state = fresh(AVERAGED)
    state.network.compiled = state.network.module  # as `compile` replaces it, on a device that it does not know
    train(state, views, AVERAGED)
    assert state.judged.compiled is None and same(
        state.state_dict(), train(fresh(AVERAGED), views, AVERAGED).state_dict())


def test_a_watch_sees_the_average(views):
    state = fresh(Training(seed=3, ema=0.7))
    with torch.no_grad():
        for classifier, label in ((state.network, 0), (state.judged, 1)):  # the outputs of each are one class
            classifier.module.fc.weight.zero_()
            classifier.module.fc.bias.copy_(torch.eye(7)[label])
    labels, seen = views[1].labels.numpy(), views[1]
    only = Views(seen.store, seen.rows[labels == 1], synthetic.read(112, 0).labels, batch_size=64, device=CPU)
    state.progress.total = 8
    assert AccuracyWatch(only, only, 0.5, 8, 99)(state) and state.progress.looks == [[8, 1.0]]
    assert predict(state.network, only).argmax(1).max() == 0


@pytest.mark.case(19)
def test_an_average_that_is_not_finite_is_neither_saved_nor_judged(views):
    state = train(fresh(AVERAGED), views, AVERAGED)
    with torch.no_grad():
        state.judged.module.fc.weight[0, 0] = float("inf")
    with pytest.raises(Problem, match="weights are not finite after step 12"):
        state.state_dict()
    with pytest.raises(Problem, match="validation logits") as caught:
        state = fresh(AVERAGED)
        with torch.no_grad():
            state.judged.module.fc.bias[0] = float("nan")
        train(state, views, AVERAGED)
    assert caught.value.code == DIVERGED


def test_ranks_have_the_average_of_one_process(monkeypatch):
    import test_ranks
    monkeypatch.setattr(test_ranks, "Training", lambda **more: Training(ema=0.6, **more))
    alone = trained_by_ranks(plain()).judged.module.state_dict()

    def work():
        state = trained_by_ranks(plain())
        other = trained_by_ranks(models.build("kdtiny", synthetic.CLASSES, seed=1), steps=7)
        torch.save([state.judged.module.state_dict(), other.judged.module.state_dict(), other.best_weights,
                    other.progress.history], f"rank{ranks.rank()}.pt")
    assert [member.code for member in team(2, work)] == [0, 0]
    first, second = (torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second) and first[1]["bn.num_batches_tracked"] == 7
    assert max((alone[key] - value).abs().max() for key, value in first[0].items()) < 1e-10


SHORT = [*PAIR, "--mode", "normal", "--ema", "0.9"]


def test_a_run_delivers_the_average_of_teacher_and_student(script):
    code, out = script("distill", [*SHORT, "--optimizer", "adamw", "--weight-decay", "0.1", "--warmup", "0.2"])
    assert code == 0 and "not used" not in out
    report = reports.read(RUN)
    assert report["settings"]["ema"] == 0.9 and report["teacher"]["members"][0]["differences"] == []
    assert reports.read(DATA / "teacher/kdwide/seed0")["settings"]["ema"] == 0.9
    averaged = weights(RUN)
    assert script("evaluate", [RUN])[1].count("(reproduced)") == 1
    raw = [word for word in SHORT if word not in ("--ema", "0.9")]
    script("distill", [*raw, "--tag", "raw", "--optimizer", "adamw", "--weight-decay", "0.1", "--warmup", "0.2"])
    assert not same(averaged, weights(DATA / "normal-raw/kdwide-kdtiny/seed0"))


@pytest.mark.case(6)
@pytest.mark.parametrize("mode", ["normal", "unlabeled"])
def test_a_run_that_is_stopped_after_every_step_delivers_the_same_average(script, mode):
    words = [*PAIR, "--mode", mode, "--ema", "0.9", "--warmup", "0.2"]
    assert script("distill", words)[0] == 0
    for _ in range(40):
        code, _ = script("distill", [*words, "--out", "stopped", "--max-minutes", "0"])
        if code == 0:
            break
    whole, stopped = DATA / mode / "kdwide-kdtiny/seed0", "stopped/synthetic-patient-32"
    assert code == 0 and same(weights(whole), weights(type(whole)(stopped) / mode / "kdwide-kdtiny/seed0"))


def test_a_run_that_an_earlier_version_began_continues_exactly(script):
    words = [*PAIR, "--mode", "normal", "--save-every-minutes", "0"]
    assert script("distill", words)[0] == 0
    whole = weights(RUN)
    code = script("distill", [*words, "--tag", "old"])[0]
    folder = DATA / "normal-old/kdwide-kdtiny/seed0"
    for file in folder.iterdir():
        file.unlink()
    for _ in range(4):
        code, _ = script("distill", [*words, "--tag", "old", "--max-minutes", "0"])
    assert code == 143
    settings = json.loads((folder / "settings.json").read_text())
    for key in ("warmup", "optimizer", "ema"):
        del settings[key]
    (folder / "settings.json").write_text(json.dumps(settings))
    for file in folder.glob("resume*.pt"):
        content = checkpoint.load(file)
        assert content["state"].pop("average") == {}
        checkpoint.save(file, content)
    code, out = script("distill", [*words, "--tag", "old", "--ema", "0.9"])
    assert code == 2 and "ema: null -> 0.9" in out
    code, out = script("distill", [*words, "--tag", "old"])
    assert code == 0 and "continuing from step 4" in out and same(weights(folder), whole)


@pytest.mark.case(1)
def test_a_saved_average_that_does_not_fit_is_refused(views):
    saved = fresh(AVERAGED).state_dict()
    for training, state in ((Training(seed=3), saved), (AVERAGED, saved | {"average": {}})):
        with pytest.raises(Problem, match="does not fit this run"):
            fresh(training).load_state_dict(copy.deepcopy(state))


def test_the_average_needs_disk_space(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("", (), {"free": 48_000})())
    folder.check_space(1000)
    folder.check_space(800, averages=1)
    with pytest.raises(Problem, match="are free"):
        folder.check_space(1000, averages=1)


@pytest.mark.case(21)
@pytest.mark.parametrize("words", [["--ema", "1"], ["--ema", "0"], ["--warmup", "0.6"], ["--warmup", "-0.1"], ["--optimizer", "sgd"]])
def test_values_out_of_range_are_refused(script, words):
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, *words])
    assert code == 2 and words[0] in out


def test_adamw_without_a_decay_gets_a_note(script):
    for more, count in (([], 1), (["--weight-decay", "0.01", "--tag", "w"], 0)):
        out = script("train_teacher", ["--model", "kdtiny", *TINY, "--epochs", "1", "--optimizer", "adamw", *more])[1]
        assert out.count("equals adam without a weight decay") == count
