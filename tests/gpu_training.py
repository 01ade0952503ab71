"""Short trainings on any device, for the tests of GPUs."""

import copy

import numpy as np
import torch

from kd import models
from kd.config.settings import Training
from kd.data.augmentation import Augmentation
from kd.data.readers import synthetic
from kd.data.store import Store
from kd.data.views import Views
from kd.knowledge import KNOWLEDGE
from kd.loop import Hooks, Phase, fit
from kd.system.devices import Precision
from kd.teachers.outputs import (
    JointTeacher,
    LiveNetwork,
    ObservedJointTeacher,
    ObservedNetwork,
    no_teacher,
)
from kd.training import regressors
from kd.training.objectives import Distillation, Knowledge, Supervised
from kd.training.state import State

TRAINING = Training(epochs=3, batch_size=12, lr=3e-3, schedule="cosine", seed=3)
AMPS = ("off", "bf16", "fp16")


def precision_of(device, amp):
    return Precision(device.type, amp)


def make_views(device, size=24, batch_size=12, augmentation=Augmentation("light")):
    """Return train views of 49 images and validation views of 28 images.

    The train views come in batches of 12, with a last one of 13.
    """
    index = synthetic.read(112, 0)
    store = Store(index, "cache", size, "squash", 0)
    store.ensure(np.arange(112))
    train = Views(store, np.arange(49), index.labels, batch_size=batch_size, device=device, seed=3,
                  shuffle=True, augmentation=augmentation, classes=len(synthetic.CLASSES))
    valid = Views(store, np.arange(56, 84), index.labels, batch_size=64, device=device)
    return train, valid


def build(device, name="kdtiny", seed=3, drop_rate=None):
    return models.build(name, synthetic.CLASSES, seed=seed, drop_rate=drop_rate).to(device)


def new_state(device, amp="off", name="kdtiny", training=TRAINING, drop_rate=None, helper=None):
    network = build(device, name, training.seed, drop_rate)
    return State(network, training, precision_of(device, amp), helper)


def use_sgd(state, lr=0.01):
    """Replace Adam.

    Adam divides by the size of the gradient, which turns differences of rounding into differences
    as large as a step. With SGD they stay as small as they are.
    """
    state.optimizer = torch.optim.SGD(state.parameters(), lr=lr)
    return state


def live_teacher(device, amp="off", name="kdwide"):
    """Return a network with random weights as the teacher of every batch."""
    network = LiveNetwork(build(device, name, seed=9), precision_of(device, amp))
    return JointTeacher([network], [1.0], device)


def lesson(device, kind, amp="off"):
    """Return (teacher, objective, layers of the student) that pass on a kind of knowledge."""
    if not KNOWLEDGE[kind].inside:
        knowledge = Knowledge({kind: 1.0}, (4.0,))
        return live_teacher(device, amp), Distillation(knowledge, 0.5), ()
    network = ObservedNetwork(build(device, "kdwide", seed=9), precision_of(device, amp), ("bn",))
    trained = regressors.build({kind: KNOWLEDGE[kind]}, [(8, 12)], 3).to(device)
    knowledge = Knowledge({kind: 1.0}, (4.0,), regressors=trained)
    return ObservedJointTeacher([network], [1.0], device), Distillation(knowledge, 0.5), ("bn",)


def train(state, views, *, training=TRAINING, lr=None, end=None, teacher=no_teacher,
          objective=None, layers=(), after_step=None):
    """Train a state from its own step to the step `end`, by default to the end of its epochs."""
    seen, valid = views
    end = end or training.epochs * seen.steps
    phase = Phase("train", seen, teacher, objective or Supervised(), 0, end, lr or training.lr,
                  layers)
    hooks = Hooks()
    if after_step is not None:
        hooks.after_step = lambda states: after_step(*states)
    fit([state], [phase], valid, training, hooks)
    return state


def snapshot(state):
    """Return a copy of everything that resuming needs."""
    return copy.deepcopy(state.state_dict())


def weights_of(state):
    """Return a copy of the weights and buffers, on the CPU."""
    return models.state_on_cpu(state.network.module)


def parameters_of(state):
    """Return a copy of the weights alone, on the CPU: the means of BatchNorm move much further."""
    own = weights_of(state)
    return {key: own[key] for key, _ in state.network.module.named_parameters()}


def largest_difference(first, second):
    """Return the largest difference of a value in two dictionaries of tensors on the CPU."""
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def change(first, second):
    """Return the norm of the difference of two dictionaries of tensors, without counters."""
    squares = [(first[key].double() - second[key].double()).square().sum() for key in first
               if first[key].is_floating_point()]
    return torch.stack(squares).sum().sqrt().item()
