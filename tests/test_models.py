"""Networks: names, published dropout and weights from files.

Weights that cannot be downloaded are reported clearly.
"""

import time

import pytest
import safetensors.torch
import timm
import torch

from kd import models
from kd.system import hub
from kd.system.devices import Precision
from kd.system.errors import Problem

CLASSES = tuple("abcdefg")


def test_the_names_of_the_thesis_mean_the_networks_with_those_weights():
    assert models.architecture_of("seresnet101") == "legacy_seresnet101.in1k"
    assert models.architecture_of("seresnet50.a1_in1k") == "seresnet50.a1_in1k"
    assert all(timm.get_pretrained_cfg(name).url or timm.get_pretrained_cfg(name).hf_hub_id
               for name in models.ARCHITECTURES.values())


def test_for_an_unknown_name_the_nearest_ones_are_suggested():
    with pytest.raises(Problem, match="Did you mean resnet1"):
        models.architecture_of("resnet1")


def test_dropout_is_as_published_unless_it_is_set():
    def rates(network):
        return {module.p for module in network.module.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates(models.build("vgg11", CLASSES)) == {0.5}
    assert rates(models.build("vgg11", CLASSES, drop_rate=0.1)) == {0.1}
    assert models.build("seresnet50", CLASSES).module.drop_rate == 0.2


def test_the_seed_fixes_the_weights():
    first, again, other = (models.build("resnet18", CLASSES, seed=seed).module.state_dict()["fc.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_for_other_classes_keep_the_backbone(tmp_path, suffix):
    source = timm.create_model("resnet18", num_classes=10).state_dict()
    file = tmp_path / f"weights{suffix}"
    torch.save(source, file) if suffix == ".pt" else safetensors.torch.save_file(source, file)
    state = models.build("resnet18", CLASSES, weights=str(file)).module.state_dict()
    assert torch.equal(state["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"]) and len(state["fc.bias"]) == 7


@pytest.mark.case(11)
@pytest.mark.parametrize("change, message", [
    (lambda s: {k: v for k, v in s.items() if "layer4" not in k}, "missing: layer4"),
    (lambda s: s | {"extra": torch.zeros(1)}, "unknown: extra"),
    (lambda s: s | {"conv1.weight": torch.zeros(64, 2, 7, 7)}, "conv1.weight: file has .64, 2, 7, 7."),
    (lambda s: {"epoch": 3}, "not a state_dict")])
def test_weights_that_do_not_fit_are_refused(tmp_path, change, message):
    torch.save(change(timm.create_model("resnet18", num_classes=7).state_dict()), tmp_path / "weights.pt")
    with pytest.raises(Problem, match=message) as caught:
        models.build("resnet18", CLASSES, weights=str(tmp_path / "weights.pt"))
    assert caught.value.code == 4


@pytest.mark.case(29)
@pytest.mark.parametrize("name", ["resnet18", "seresnet50"])
def test_pretrained_weights_out_of_reach_are_reported_soon(monkeypatch, tmp_path, name):
    monkeypatch.setattr(hub, "_answers", lambda address: time.sleep(60))  # like a connection that never answers
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(hub.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    begun = time.monotonic()
    with pytest.raises(Problem, match="cannot be downloaded from http.*Use --weights FILE or --no-pretrained"):
        models.build(name, CLASSES, pretrained=True)
    assert time.monotonic() - begun < 30  # waiting for an answer would have taken 60 s


def test_an_unknown_set_of_weights_is_reported():
    with pytest.raises(Problem, match="no weights 'nosuch'.*tv_in1k"):
        models.architecture_of("resnet18.nosuch")


def test_a_batch_that_a_network_cannot_take_is_reported_and_a_trial_leaves_no_trace():
    network = models.build("resnet18", CLASSES)
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    assert models.try_batch(network, torch.rand(2, 3, 32, 32), Precision("cpu", "bf16")).logits.shape == (2, 7)
    assert all(torch.equal(before[key], value) for key, value in network.module.state_dict().items())
    with pytest.raises(Problem, match="resnet18.*cannot be trained with batch size 1 and image size 32"):
        models.try_batch(network, torch.rand(1, 3, 32, 32), Precision("cpu", "off"))


def test_images_are_normalised_as_the_weights_expect():
    network = models.build("resnet18", CLASSES)
    seen = []
    network.module = lambda images: seen.append(images) or images
    network(torch.full((1, 3, 2, 2), 0.485))
    assert seen[0][0, 0].abs().max() < 1e-6 and seen[0][0, 1, 0, 0] == pytest.approx((0.485 - 0.456) / 0.224)


def test_only_training_calls_what_is_compiled(monkeypatch):
    """torch's own compiled network, whose truth value is an error for most networks."""
    options, runs, real = [], [], torch.compile

    def backend(graph, inputs):
        return lambda *values: runs.append(len(values)) or graph(*values)

    def compiled(module, **given):
        options.append(given)
        return real(module, backend=backend, dynamic=False)

    monkeypatch.setattr(torch, "compile", compiled)
    network = models.build("kdtiny", ("a", "b"), drop_rate=0.0)
    network.compile()
    images = torch.rand(4, 3, 32, 32)
    network.module.train()
    trained = network(images)
    assert len(runs) == 1 and options == [{"mode": "reduce-overhead", "dynamic": False}]
    network.module.eval()
    network(images)
    assert len(runs) == 1
    network.module.train()
    network.compiled = None
    assert torch.equal(network(images), trained)


@pytest.mark.parametrize("name", ["resnet18", "seresnet50", "mobilenetv3_small_100", "vit_tiny_patch16_224", "kdtiny"])
def test_no_random_weights_are_drawn_for_a_network_that_is_loaded(name):
    """Its weights are all in the file, so that nothing of the uninitialised memory is left."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    empty = models.build(name, CLASSES, seed=5, empty=True)
    assert torch.equal(torch.get_rng_state(), before)
    full = models.build(name, CLASSES, seed=5)
    assert not torch.equal(torch.get_rng_state(), before)
    models.load_state(empty.module, full.module.state_dict(), "file", name)
    expected = [*full.module.named_parameters(), *full.module.named_buffers()]
    found = [*empty.module.named_parameters(), *empty.module.named_buffers()]
    assert [key for key, _ in found] == [key for key, _ in expected]
    assert all(torch.equal(value, right) for (_, value), (_, right) in zip(found, expected))
