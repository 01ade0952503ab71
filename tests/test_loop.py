"""The training loop: exact resume from every step, frozen teachers, divergence and stops."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import same

from kd import models
from kd.config.settings import Training
from kd.data.augmentation import Augmentation
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.knowledge import KNOWLEDGE
from kd.loop import AccuracyWatch, Hooks, Phase, fit, predict, set_lr
from kd.system.devices import Precision
from kd.system.errors import DIVERGED, Problem
from kd.teachers.outputs import (
    JointTeacher,
    LiveNetwork,
    ObservedJointTeacher,
    ObservedNetwork,
    no_teacher,
)
from kd.training import regressors
from kd.training.objectives import Distillation, Knowledge, Matching, Supervised
from kd.training.state import Progress, State, upgraded

CPU = torch.device("cpu")
FLOAT = Precision("cpu", "off")


@pytest.fixture
def views():
    """Return train views of 49 images and validation views of 28 images.

    The train views come in batches of 12, with a last one of 13.
    """
    index = synthetic.read(112, 0)
    store = Store(index, "cache", 24, "squash", 0)
    store.ensure(np.arange(112))
    train = Views(store, np.arange(49), index.labels, batch_size=12, device=CPU, seed=3, shuffle=True, augmentation=Augmentation("light"))
    return train, Views(store, np.arange(56, 84), index.labels, batch_size=64, device=CPU)


def panel_of(network, precision):
    """Return a joint teacher that consists of one network."""
    return JointTeacher([LiveNetwork(network, precision)], [1.0], CPU)


def distillation(alpha=0.5):
    return Distillation(Knowledge({"kd": 1.0}, (4.0,)), alpha)


def fresh(training, amp="off", name="kdtiny"):
    return State(models.build(name, synthetic.CLASSES, seed=training.seed), training, Precision("cpu", amp))


def train(state, views, training, **options):
    seen, valid = views
    taught = options.pop("teacher", no_teacher), options.pop("objective", Supervised())
    end = min(training.epochs * seen.steps, training.max_steps or 10**9)
    phases = options.pop("phases", [Phase("train", seen, *taught, 0, end, training.lr, options.pop("layers", ()))])
    fit([state], phases, valid, training, hooks_of(options))
    return state


def hooks_of(calls):
    """Return hooks for the training of a single student: name -> function of its state and of its row."""
    hooks = Hooks()
    for name, call in calls.items():
        setattr(hooks, name, lambda *every, call=call: call(*(one for [one] in every)))
    return hooks


def two_phases(views, training, teacher):
    """Return a phase of seven steps without labels and a phase of five steps with labels.

    The first phase ends inside the second epoch.
    """
    seen, _ = views
    pool = Views(seen.store, np.arange(3, 47), None, batch_size=12, device=CPU, seed=3, shuffle=True, augmentation=Augmentation("light"))
    match = Matching(Knowledge({"logit-mse": 1.0}, (1.0,)))
    return [Phase("match", pool, teacher, match, 0, 7, training.lr),
            Phase("finetune", seen, teacher, distillation(), 7, 12, training.lr / 3)]


def resumed_from_every_step(views, training, start, amp="off", **options):
    """Train to the end, and again from the state after each step, which must end in the same state bit for bit.

    `start` are the settings of the state that each state is loaded into. Returns (the state at the end, the states after the steps).
    """
    snapshots = []
    whole = train(fresh(training, amp), views, training, **options,
                  after_step=lambda state: snapshots.append(copy.deepcopy(state.state_dict())))
    assert len(snapshots) == 12
    for snapshot in snapshots:
        torch.manual_seed(12345)  # the generator of a new process may hold anything
        resumed = fresh(start, amp)
        resumed.load_state_dict(copy.deepcopy(snapshot))
        train(resumed, views, training, **options)
        assert same(resumed.state_dict(), whole.state_dict())
        assert same(resumed.judged.module.state_dict(), whole.judged.module.state_dict())
    return whole, snapshots


@pytest.mark.case(1)
@pytest.mark.parametrize("phases", [1, 2])
@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_resuming_from_every_step_ends_in_the_same_state_bit_for_bit(views, amp, phases):
    training = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", seed=3)
    torch.manual_seed(1)
    teach = panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), Precision("cpu", amp))
    options = {"teacher": teach, "objective": distillation()}
    if phases == 2:
        options = {"phases": two_phases(views, training, teach)}
    whole, _ = resumed_from_every_step(views, training, Training(seed=77), amp, **options)
    assert whole.progress.ended == "epochs" and whole.progress.phase == phases - 1


@pytest.mark.case(1)
@pytest.mark.parametrize("phases", [1, 2])
def test_strong_and_mixed_views_resume_from_every_step(views, phases):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    how = {"batch_size": 12, "device": CPU, "seed": 3, "shuffle": True, "augmentation": Augmentation("strong", ("mirror",), 0.7)}
    seen, valid = views
    mixed = Views(seen.store, np.arange(49), seen.store.index.labels, classes=7, **how), valid
    teach = panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), FLOAT)
    options = {"teacher": teach, "objective": distillation()}
    if phases == 2:
        match, finetune = two_phases(mixed, training, teach)
        pool = Views(seen.store, np.arange(3, 47), None, **how)
        options = {"phases": [dataclasses.replace(match, views=pool), finetune]}
    resumed_from_every_step(mixed, training, Training(seed=77), **options)


@pytest.mark.case(1)
@pytest.mark.parametrize("kind", [name for name, kind in KNOWLEDGE.items() if kind.regressor])
def test_a_kind_resumes_only_with_its_regressor(views, kind):
    training = Training(epochs=2, batch_size=12, lr=3e-3, seed=3, clip_norm=1.0)
    wide = models.build("kdwide", synthetic.CLASSES, seed=9)
    teach = ObservedJointTeacher([ObservedNetwork(wide, FLOAT, ("bn",))], [1.0], CPU)

    def hinted(seed):
        trained = regressors.build({kind: KNOWLEDGE[kind]}, [(8, 12)], seed)
        knowledge = Knowledge({"kd": 1.0, kind: 2.0}, (4.0,), regressors=trained)
        state = State(models.build("kdtiny", synthetic.CLASSES, seed=seed), training, FLOAT, trained)
        return state, {"teacher": teach, "objective": Distillation(knowledge, 0.5), "layers": ("bn",)}

    state, options = hinted(3)
    start, snapshots = copy.deepcopy(state.state_dict()), []
    train(state, views, training, **options, after_step=lambda s: snapshots.append(copy.deepcopy(s.state_dict())))
    assert not any(same(value, state.state_dict()["helper"][key]) for key, value in start["helper"].items()) and not wide.module.training
    for snapshot in snapshots:
        resumed, options = hinted(77)
        resumed.load_state_dict(copy.deepcopy(snapshot))
        train(resumed, views, training, **options)
        assert same(resumed.state_dict(), state.state_dict())
    if kind == "hint":  # an earlier version saved its projectors without the name of the kind
        earlier = {key.removeprefix("hint."): value for key, value in snapshots[3]["helper"].items()}
        assert earlier.keys() == {"weights.0"} and same(upgraded(snapshots[3] | {"helper": earlier}), snapshots[3])
    assert same(upgraded(snapshots[3]), snapshots[3])
    without_it, options = hinted(77)
    without_it.load_state_dict(snapshots[3] | {"helper": start["helper"]})
    train(without_it, views, training, **options)
    assert not same(without_it.state_dict()["weights"], state.state_dict()["weights"])


@pytest.mark.case(1)
def test_an_early_best_epoch_survives_a_resume(views):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    snapshots = []
    whole = train(fresh(training), views, training, after_step=lambda s: snapshots.append(copy.deepcopy(s.state_dict())))
    late = copy.deepcopy(snapshots[-2])
    late["progress"]["best"]["valid_accuracy"] = 1.1  # no later epoch can be better
    resumed = fresh(training)
    resumed.load_state_dict(late)
    kept = copy.deepcopy(late["best_weights"])
    train(resumed, views, training)
    assert resumed.progress.best["epoch"] == late["progress"]["best"]["epoch"] and same(resumed.best_weights, kept)
    assert whole.progress.best["valid_accuracy"] == max(row["valid_accuracy"] for row in whole.progress.history)


# Every item of the saved state. The test resets each item to its value at the start of a new run.
ITEMS = ["parameters", "buffers", "optimizer", "scaler", "best_weights",
         *(f"progress.{entry.name}" for entry in dataclasses.fields(Progress))]


def without(snapshot, item, start):
    """Return a copy of a saved state in which one item has its value from the start."""
    state = copy.deepcopy(snapshot)
    if item.startswith("progress."):
        key = item.removeprefix("progress.")
        state["progress"][key] = start["progress"][key]
    elif item in ("parameters", "buffers"):
        names = dict(models.build("kdtiny", synthetic.CLASSES).module.named_parameters())
        for key in state["weights"]:
            if (key in names) == (item == "parameters"):
                state["weights"][key] = start["weights"][key]
    else:
        state[item] = start[item]
    return state


def test_the_items_cover_the_complete_state():
    state = fresh(Training()).state_dict()
    # tests/test_average.py drops the average and tests/test_moving_teacher.py the teacher, which are empty here.
    assert {item.partition(".")[0] for item in ITEMS} == (state.keys() - {"weights", "helper", "average", "teacher"}) | {"parameters", "buffers"}


@pytest.mark.case(1)
@pytest.mark.parametrize("item", ITEMS)
def test_dropping_any_item_of_the_saved_state_is_noticed(views, item):
    training = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", seed=3)
    # A run that a watch stops keeps its last weights, whichever epoch was best. The best epoch only
    # matters in a run without a watch.
    stops = item not in ("progress.best", "best_weights")

    def watch(state):
        if state.progress.total % 2 == 0:
            state.progress.looks.append([state.progress.total, 0.25])
        return stops and state.progress.total == 10

    def run_from(snapshot):
        state = fresh(training, "fp16")
        several = {}
        if item == "progress.phase":
            teacher = panel_of(models.build("kdwide", synthetic.CLASSES), FLOAT)
            several["phases"] = two_phases(views, training, teacher)
        if snapshot is not None:
            state.load_state_dict(copy.deepcopy(snapshot))
        snapshots = []
        train(state, views, training, **several, should_stop=watch,
              after_step=lambda s: snapshots.append(copy.deepcopy(s.state_dict())))
        return copy.deepcopy(state.state_dict()), snapshots

    start = copy.deepcopy(fresh(training, "fp16").state_dict())
    end, snapshots = run_from(None)
    # The saved state is from inside the second epoch. For items that are set only at the end, it is
    # from the step that stops or from the end itself. For the phase, it is from the second phase.
    moments = {"progress.stopped": snapshots[-1], "progress.ended": end, "progress.phase": snapshots[8]}
    moment = moments.get(item, snapshots[5])
    if not stops:
        moment["progress"]["best"]["valid_accuracy"] = 1.1  # no later epoch can be better
    assert same(run_from(moment)[0], run_from(moment)[0])
    try:
        assert not same(run_from(without(moment, item, start))[0], run_from(moment)[0])
    except Problem as problem:  # noticed while loading
        assert "saved together" in str(problem)


@pytest.mark.case(22)
def test_the_teacher_is_unchanged(views):
    training = Training(epochs=1, batch_size=12, seed=3)
    network = models.build("kdwide", synthetic.CLASSES, seed=9)
    before = copy.deepcopy(network.module.state_dict())
    train(fresh(training), views, training, teacher=panel_of(network, Precision("cpu", "off")),
          objective=distillation(0.9))
    assert same(network.module.state_dict(), before) and not network.module.training


def test_the_teacher_changes_what_is_learned(views):
    training = Training(epochs=1, batch_size=12, seed=3)
    teach = panel_of(models.build("kdwide", synthetic.CLASSES, seed=9), Precision("cpu", "off"))
    alone = train(fresh(training), views, training)
    taught = train(fresh(training), views, training, teacher=teach, objective=distillation())
    assert not same(alone.network.module.state_dict(), taught.network.module.state_dict())


def test_the_student_is_in_training_mode_at_every_step(views):
    training, modes = Training(epochs=2, batch_size=12, seed=3), []

    def objective(student, teacher, labels):
        modes.append(state.network.module.training)
        return Supervised()(student, teacher, labels)

    state = fresh(training)
    train(state, views, training, objective=objective)
    assert modes == [True] * 8


@pytest.mark.case(19)
@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_divergence_stops_before_a_weight_changes(views, poison):
    training, seen = Training(epochs=1, batch_size=12, lr=0.02, seed=3), {}

    def objective(student, teacher, labels):
        terms = Supervised()(student, teacher, labels)
        if state.progress.total == 2:
            seen.update(copy.deepcopy(state.network.module.state_dict()))
            if poison == "loss":
                terms["loss"] = terms["loss"] * float("nan")
            else:
                student.logits.register_hook(lambda gradient: gradient * float("inf"))
        return terms

    state = fresh(training)
    with pytest.raises(Problem, match="not finite at step 2 .learning rate 0.02") as caught:
        train(state, views, training, objective=objective)
    weights = dict(state.network.module.named_parameters())
    assert caught.value.code == DIVERGED and all(torch.equal(seen[name], value) for name, value in weights.items())


@pytest.mark.case(19)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("layer, value", [("conv", float("nan")), ("fc", float("inf")), ("bn", 1e19)])
def test_a_bad_gradient_of_a_single_layer_is_noticed_before_a_weight_changes(views, clip, layer, value):
    training = Training(epochs=1, batch_size=12, clip_norm=clip, seed=3)
    state = fresh(training)
    before = copy.deepcopy(dict(state.network.module.named_parameters()))
    getattr(state.network.module, layer).weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    with pytest.raises(Problem, match="not finite at step 0 .* The step changed no weight"):
        train(state, views, training)
    assert same(dict(state.network.module.named_parameters()), before)


def test_a_moment_that_overflowed_is_never_saved(views):
    training = Training(epochs=1, batch_size=12, seed=3)
    state = train(fresh(training), views, training)
    next(iter(state.optimizer.state.values()))["exp_avg_sq"][0] = float("inf")
    with pytest.raises(Problem, match="weights are not finite after step 4"):
        state.state_dict()


@pytest.mark.case(19)
def test_a_huge_learning_rate_ends_as_divergence(views):
    training = Training(epochs=4, batch_size=12, lr=1e30, seed=3)
    with pytest.raises(Problem, match="Lower --lr"):
        train(fresh(training), views, training)


@pytest.mark.case(28)
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_prediction_counts_every_slot_once_at_any_batch_size(views, batch):
    network = models.build("kdtiny", synthetic.CLASSES)
    views[1].batch_size = 28
    whole = predict(network, views[1])
    views[1].batch_size = batch
    assert whole.shape == (28, 7) and np.allclose(predict(network, views[1]), whole, atol=1e-5)
    assert network.module.training  # the mode is as before


def test_max_steps_ends_inside_an_epoch(views):
    training = Training(epochs=5, batch_size=12, max_steps=6, seed=3)
    state = train(fresh(training), views, training)
    assert (state.progress.total, state.progress.ended) == (6, "max_steps")
    assert [row["steps"] for row in state.progress.history] == [4, 6]


def test_a_watch_stops_training_at_once(views):
    training = Training(epochs=5, batch_size=12, seed=3)
    state = fresh(training)
    train(state, views, training, should_stop=lambda s: s.progress.total == 5)
    assert (state.progress.total, state.progress.ended, len(state.progress.history)) == (5, "stopped", 2)
    assert state.progress.best is state.progress.history[-1]
    assert same(state.best_weights, state.network.module.state_dict())


def test_stop_at_accuracy_checks_the_subset_first_and_confirms_on_the_whole_split(views):
    training = Training(seed=3)
    state = fresh(training)
    whole = views[1]
    accuracy = (predict(state.network, whole).argmax(1) == whole.labels.numpy()).mean()
    state.progress.total = 8
    assert AccuracyWatch(whole, whole, accuracy - 0.01, 8, 99)(state)
    assert not AccuracyWatch(whole, whole, accuracy, 8, 99)(state)
    assert [look[0] for look in state.progress.looks] == [8, 8]
    state.progress.total, state.progress.step = 9, 5
    assert AccuracyWatch(whole, whole, accuracy - 0.01, 8, 5)(state)  # the end of an epoch of five steps
    assert not AccuracyWatch(whole, whole, accuracy - 0.01, 8, 99)(state) and len(state.progress.looks) == 3


def rates(schedule, warmup, phase, steps):
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    found = [set_lr(optimizer, Training(schedule=schedule, warmup=warmup), phase, step) for step in steps]
    assert optimizer.param_groups[0]["lr"] == found[-1]
    return found


def test_the_learning_rate_is_a_function_of_the_step():
    phase = Phase("train", None, no_teacher, Supervised(), 16, 24, 0.2)
    assert rates("cosine", 0.0, phase, (16, 20)) == [0.2, pytest.approx(0.1)]
    assert rates("constant", 0.0, phase, (16, 23)) == [0.2, 0.2]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_learning_rate_rises_then_follows_the_schedule_over_the_steps_that_remain(schedule):
    phase = Phase("train", None, no_teacher, Supervised(), 16, 36, 0.2)
    found = rates(schedule, 0.2, phase, range(16, 36))
    assert found[:4] == pytest.approx([0.2 * k / 5 for k in (1, 2, 3, 4)])
    after = [0.2 * (1 if schedule == "constant" else (1 + math.cos(math.pi * k / 16)) / 2) for k in range(16)]
    assert found[4:] == pytest.approx(after) and found[4] == 0.2
    assert rates(schedule, 0.2, phase, (30, 17)) == [found[14], found[1]]  # it does not depend on the steps before
    assert rates(schedule, 0.02, phase, range(16, 36)) == rates(schedule, 0.0, phase, range(16, 36))
    short = Phase("train", None, no_teacher, Supervised(), 0, 1, 0.2)
    assert rates(schedule, 0.5, short, [0]) == [0.2]


def test_a_phase_begins_with_the_last_weights_and_an_optimizer_without_memory(views):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    first, second = two_phases(views, training, panel_of(models.build("kdwide", synthetic.CLASSES), FLOAT))
    state, seen = fresh(training), []
    train(state, views, training, phases=[first, second],
          after_step=lambda s: seen.append((s.progress.phase, next(iter(s.optimizer.state.values()))["step"].item())))
    assert seen == [(0, step) for step in range(1, 8)] + [(1, step) for step in range(1, 6)]
    assert [(row["phase"], row["steps"]) for row in state.progress.history] == [
        ("match", 4), ("match", 7), ("finetune", 11), ("finetune", 12)]
    assert "train_accuracy" not in state.progress.history[0] and state.progress.best["phase"] == "finetune"


@pytest.mark.parametrize("keeps, accuracies, best", [
    (True, [0.9, 0.6, 0.6, 0.5], 2),    # an equal epoch is not better; the first epoch is not chosen by labels
    (True, [0.2, 0.6, 0.5, 0.7], 4),
    (False, [0.2, 0.6, 0.3, 0.1], 3),
])
def test_a_phase_may_keep_the_weights_at_its_start_if_no_epoch_is_better(views, monkeypatch, keeps, accuracies, best):
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    match, finetune = two_phases(views, training, panel_of(models.build("kdwide", synthetic.CLASSES), FLOAT))
    monkeypatch.setattr("kd.loop._row", lambda state, phase, logits, labels: {
        "epoch": state.progress.epoch + 1, "phase": phase.name, "steps": state.progress.total,
        "valid_accuracy": accuracies[state.progress.epoch]})
    ends = []
    options = {"phases": [match, dataclasses.replace(finetune, keeps_start=keeps)]}
    state = train(fresh(training), views, training, **options,
                  after_epoch=lambda state, row: ends.append(copy.deepcopy(state.network.module.state_dict())))
    assert state.progress.best["epoch"] == best and same(state.best_weights, ends[best - 1])
    assert [row["epoch"] for row in state.progress.history] == [1, 2, 3, 4]
    whole, _ = resumed_from_every_step(views, training, training, **options)
    assert same(whole.state_dict(), state.state_dict())


def test_a_phase_without_labels_selects_no_epoch_by_labels(views, monkeypatch):
    falling = iter(np.linspace(1, 0, 9))
    monkeypatch.setattr("kd.loop.metrics.accuracy", lambda logits, labels: float(next(falling)))
    training = Training(epochs=3, batch_size=12, lr=3e-3, seed=3)
    match, _ = two_phases(views, training, panel_of(models.build("kdwide", synthetic.CLASSES), FLOAT))
    state = train(fresh(training), views, training, phases=[match])
    assert len(state.progress.history) == 2 and state.progress.best is state.progress.history[-1]
    assert same(state.best_weights, state.network.module.state_dict())


def test_clipping_bounds_the_gradient(views):
    training = Training(epochs=1, batch_size=12, clip_norm=1e-4, seed=3)
    norms = []

    def after_step(state):
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in state.network.module.parameters()]).item())

    train(fresh(training), views, training, after_step=after_step)
    assert max(norms) <= 1.01e-4
