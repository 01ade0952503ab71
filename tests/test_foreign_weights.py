"""Checkpoints of other programs: understood, or refused in one line that says what was found.

Also teachers that are no better than chance, and networks from the hub or from a folder.
"""

import argparse
import json
import shutil
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from conftest import PAIR, RUN, TINY
from torch import nn

from kd import models
from kd.config.layout import run_path
from kd.reports import report as reports
from kd.system import checkpoint, hub, hub_networks, timm_layouts, weights
from kd.system.errors import Problem
from kd.teachers import chance
from kd.teachers.model_file import load_any

CLASSES = ("healthy", "ill", "unclear")
SYNTHETIC = 7  # classes of the synthetic data set


def randomized(network):
    """Return a network in evaluation mode whose BatchNorm statistics are not those of a new one."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def sources():
    """sources(name) -> (a network, images, its logits); each is made once."""
    made = {}

    def get(name, side=48):
        if name not in made:
            network = randomized(timm.create_model(name, num_classes=3))
            images = torch.randn(2, 3, side, side)
            with torch.no_grad():
                made[name] = network, images, network(images)
        return made[name]
    return get


def loaded(content, name, file="weights.pt"):
    """Save the content, load it as a teacher's file and return (the network in evaluation mode, its notes)."""
    if content is not None:
        torch.save(content, file)
    network = load_any(Path(file), name, CLASSES).network
    return network.module.eval(), "; ".join(network.notes)


def below(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def other(state):
    """Return other weights of the same shapes."""
    return {key: value + 1 for key, value in state.items()}


def without_counts(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def profiled(state):
    names = {key.rpartition(".")[0] for key in state}
    return state | {f"{name}.total_ops": torch.zeros(1) for name in names} | {"total_params": torch.zeros(1)}


def averaged(state):
    return {"n_averaged": torch.tensor(3)} | below("module.", state)


LIGHTNING = {"epoch": 3, "pytorch-lightning_version": "2.2", "callbacks": {"stop": {"best": torch.tensor(0.9)}},
             "hyper_parameters": {"folder": Path("x"), "lr": 0.1}, "optimizer_states": [{"state": {0: {"m": torch.zeros(2)}}}]}
METRICS = {"valid_accuracy.tp": torch.zeros(3), "criterion.weight": torch.ones(3)}
TIMM = {"epoch": 3, "arch": "x", "optimizer": {"state": {0: {"m": torch.zeros(3)}}}, "version": 2, "metric": np.float64(91.2),
        "args": argparse.Namespace(model="x"), "history": np.zeros(3), "amp_scaler": {"scale": 1.0}}

# (kind of file: its content for a state, what the note says; "" for no note)
KINDS = {
    "as it is": (lambda s: s, ""),
    "ddp": (lambda s: below("module.", s), "the prefix 'module.' was removed"),
    "compiled": (lambda s: below("_orig_mod.", s), "'_orig_mod.'"),
    "compiled, ddp": (lambda s: below("module._orig_mod.", s), "'module._orig_mod.'"),
    "ddp, compiled": (lambda s: below("_orig_mod.module.", s), "'_orig_mod.module.'"),
    "any name": (lambda s: below("my.own.net.", s), "'my.own.net.'"),
    "lightning": (lambda s: LIGHTNING | {"state_dict": below("model.", s) | METRICS},
                  "'model.' was removed from the names; 2 other tensors are not used (valid_accuracy.tp, criterion.weight)"),
    "lightning of a compiled network": (lambda s: LIGHTNING | {"state_dict": below("net._orig_mod.", s)}, "'net._orig_mod.'"),
    "student beside another network": (lambda s: {"state_dict": below("student.", s) | below("teacher.", {"fc.weight": torch.zeros(9, 9)})},
                                       "'student.' was removed"),
    "one network under two names": (lambda s: below("model.", s) | below("loss.net.", s), "'model.' was removed"),
    "moving average": (averaged, "1 other tensor is not used (n_averaged)"),
    "DataParallel inside": (lambda s: {k.replace("blocks.", "blocks.module.", 1): v for k, v in s.items()}, "'module.' was removed inside"),
    "timm": (lambda s: TIMM | {"state_dict": s}, ""),
    "timm, averaged": (lambda s: TIMM | {"state_dict": other(s), "state_dict_ema": below("module.", s)},
                       "the averaged weights in 'state_dict_ema.module.' are used, not those in 'state_dict'"),
    "torchvision, averaged": (lambda s: {"model": other(s), "model_ema": averaged(s), "args": argparse.Namespace()}, "averaged weights in 'model_ema"),
    "params_ema": (lambda s: {"params": other(s), "params_ema": s}, "averaged weights in 'params_ema' are used, not those in 'params'"),
    "ema in ema": (lambda s: {"model": other(s), "ema": {"state_dict": s, "decay": 0.99}}, "averaged weights in 'ema.state_dict'"),
    **{f"{name}": (lambda s, name=name: {name: s, "best": np.float32(0.5)}, f"the weights in '{name}' are used")
       for name in ("model", "model_state_dict", "params")},
    "before torch 0.4.1": (without_counts, ""),
    "profiled": (profiled, ""),
}


def check(content, name, sources, note):
    _, images, expected = sources(name, 224 if name.startswith("vit") else 48)
    network, notes = loaded(content, name)
    with torch.no_grad():
        assert torch.allclose(network(images), expected, atol=1e-6)
    assert note in notes if note else not notes, notes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_checkpoint_gives_the_logits_of_its_network(kind, sources):
    change, note = KINDS[kind]
    check(change(sources("mobilenetv3_small_100")[0].state_dict()), "mobilenetv3_small_100", sources, note)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "kdtiny"])
def test_other_networks_are_understood_as_well(name, sources):
    state = sources(name, 224 if name.startswith("vit") else 48)[0].state_dict()
    for kind in ("compiled, ddp", "lightning", "timm, averaged"):
        change, note = KINDS[kind]
        check(change(state), name, sources, note)


def test_prefixes_are_removed_from_safetensors_and_old_files(sources):
    network, images, expected = sources("mobilenetv3_small_100")
    safetensors.torch.save_file(below("model.", network.state_dict()), "weights.safetensors")
    torch.save(below("module.", network.state_dict()), "old.pt", _use_new_zipfile_serialization=False)
    for file in ("weights.safetensors", "old.pt"):
        found, notes = loaded(None, "mobilenetv3_small_100", file)
        with torch.no_grad():
            assert torch.equal(found(images), expected) and "was removed from the names" in notes


@pytest.mark.parametrize("theirs, ours, note", [
    ("resnet18", "resnet18", ""), ("densenet121", "densenet121", ""),
    ("regnet_y_400mf", "regnety_004", "timm converted the names (stem.0.weight to stem.conv.weight)")])
def test_networks_of_torchvision_give_their_logits(theirs, ours, note):
    source, images = randomized(getattr(torchvision.models, theirs)(num_classes=3)), torch.randn(1, 3, 64, 64)
    found, notes = loaded({"model": below("module.", source.state_dict()), "args": argparse.Namespace()}, ours)
    with torch.no_grad():
        assert torch.allclose(found(images), source(images), atol=1e-6) and note in notes


def test_torchvisions_vgg11_is_converted_by_timm():
    """Without files: it has half a gigabyte of weights."""
    with timm_layouts.without_drawing():
        source = torchvision.models.vgg11(num_classes=3, init_weights=False).eval()
    with torch.no_grad():
        for value in source.parameters():  # faster than random numbers
            value.copy_((torch.arange(value.numel(), dtype=torch.float32) % 97 - 48).view_as(value) / (48 * max(1, value[0].numel()) ** 0.5))
    module = models.build("vgg11", CLASSES, empty=True).module
    state, notes = weights.fitted(module, {"state_dict": source.state_dict()}, Path("vgg11.pth"), "vgg11.tv_in1k")
    module.load_state_dict(state)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = source(images)
        assert expected.abs().max() > 1e-3 and torch.allclose(module.eval()(images), expected, rtol=1e-4)
    assert notes == ["timm converted the names (classifier.0.weight to pre_logits.fc1.weight)"]


def test_weights_of_another_image_size_are_resampled_by_timm_and_this_is_said(sources):
    state = dict(sources("vit_tiny_patch16_224", 224)[0].state_dict())
    state["pos_embed"] = torch.randn(1, 1 + 8 * 8, 192)
    _, notes = loaded(state, "vit_tiny_patch16_224")
    assert "timm converted the weights (pos_embed: (1, 65, 192) to (1, 197, 192))" in notes


def test_a_grey_network_has_the_same_logits_for_three_equal_channels():
    name = "mobilenetv3_small_100"
    source, grey = randomized(timm.create_model(name, num_classes=3, in_chans=1)), torch.randn(2, 1, 48, 48)
    found, notes = loaded(below("module.", source.state_dict()), name)
    with torch.no_grad():
        assert torch.allclose(found(grey.expand(-1, 3, -1, -1)), source(grey), atol=1e-6)
        images = torch.rand(2, 1, 48, 48)
        whole = load_any(Path("weights.pt"), name, CLASSES).network
        whole.module.eval()
        mean, std = notes.rpartition("(grey - ")[2].partition(") / ")[::2]
        assert torch.allclose(whole(images.expand(-1, 3, -1, -1)), source((images - float(mean)) / float(std)), atol=1e-2)
    assert "for grey images was spread over three channels" in notes


def test_a_grey_layer_that_standardizes_its_weights_is_not_spread():
    class Net(nn.Module):
        pretrained_cfg = {"first_conv": "conv", "mean": (0.5,) * 3, "std": (0.5,) * 3}

        def __init__(self, layer):
            super().__init__()
            self.conv = layer
    for layer, fits in ((nn.Conv2d, True), (timm.layers.StdConv2d, False)):
        fit = timm_layouts.adapted(Net(layer(3, 4, 3)), Net(layer(1, 4, 3)).state_dict())
        assert (fit is not None) == fits


def test_another_programs_weights_start_a_student_with_a_new_classifier(script):
    """--weights FILE, too; the note is printed once, although a missing teacher is trained first."""
    state = timm.create_model("kdtiny", num_classes=10).state_dict()
    torch.save(LIGHTNING | {"state_dict": below("model.", state) | METRICS}, "lightning.ckpt")
    found = models.build("kdtiny", CLASSES, weights="lightning.ckpt").module.state_dict()
    assert torch.equal(found["conv.weight"], state["conv.weight"]) and len(found["fc.bias"]) == 3
    code, out = script("distill", [*PAIR, "--mode", "normal", "--weights", "lightning.ckpt", "--max-steps", "4"])
    assert code == 0 and out.count("note: Student kdtiny: weights 'lightning.ckpt': the prefix 'model.' was removed") == 1, out


REFUSED = {
    "two networks": (lambda s: below("model.", s) | below("ema_model.", other(s)), "more than once, below 'model.' and 'ema_model.', and they differ"),
    "two dictionaries": (lambda s: {"student": s, "teacher": other(s)}, "below 'student' and 'teacher'"),
    "a layer too many": (lambda s: below("model.", s | {"extra.weight": torch.zeros(2)}), "unknown: extra.weight.* below 'model.'"),
    "a layer too few": (lambda s: below("model.", {k: v for k, v in s.items() if k != "bn.weight"}), "missing: bn.weight"),
    "another program": (lambda s: {"features.0.0.weight": torch.zeros(9, 9), "classifier.3.bias": torch.zeros(5)},
                        r"2 tensors in the layout of torchvision \(features.0.0.weight, classifier.3.bias; the last is classifier.3.bias \(5,\)\)"
                        r".* the network has 9 \(conv.weight"),
    "no weights": (lambda s: {"epoch": 3, "args": argparse.Namespace()}, "is not a state_dict .* it contains epoch, args"),
    "another class": (lambda s: {"state_dict": s, "best": torch.optim.AdamW}, r"namely torch.optim.adamw.AdamW, which is not loaded .*state_dict\(\)"),
    "a whole network": (lambda s: torchvision.models.squeezenet1_0(), r"namely torchvision.models.squeezenet.SqueezeNet, .*network.state_dict\(\)"),
    "one output": (lambda s: below("module.", timm.create_model("kdtiny", num_classes=1).state_dict()), "has 1 class, but the data set has 3"),
    "many outputs": (lambda s: {"model": timm.create_model("kdtiny", num_classes=1000).state_dict()}, "has 1000 classes, but the data set has 3"),
    "another network": (lambda s: below("model.", timm.create_model("kdwide", num_classes=3).state_dict()), "different shapes: conv.weight"),
}


@pytest.mark.case(11)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_understood_is_refused_in_one_line(kind):
    change, message = REFUSED[kind]
    with pytest.raises(Problem, match=message) as caught:
        loaded(change(timm.create_model("kdtiny", num_classes=3).state_dict()), "kdtiny")
    assert caught.value.code == 4 and "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.case(11)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_other_kinds_of_files_are_named():
    network = timm.create_model("kdtiny", num_classes=3).eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 16, 16)), "script.pt")
    np.savez("jax.npz", a=np.zeros(3))
    Path("empty.pt").write_bytes(b"")
    for file, words in (("script.pt", "TorchScript program"), ("jax.npz", "a file of NumPy, not of PyTorch"),
                        ("empty.pt", "is damaged, or it is not a checkpoint")):
        with pytest.raises(Problem, match=words) as caught:
            loaded(None, "kdtiny", file)
        assert "\n" not in str(caught.value)


def test_nothing_beside_the_weights_is_created():
    """The classes that are allowed are replaced, so that none of the file's objects exists."""
    torch.save({"args": argparse.Namespace(a=np.float64(1)), "path": Path("x"), "list": [np.zeros(2)], "w": torch.ones(1)}, "a.pt")
    content = checkpoint.load(Path("a.pt"), foreign=True)
    assert all(type(content[key]) is checkpoint.Ignored for key in ("args", "path")) and type(content["list"][0]) is checkpoint.Ignored
    with pytest.raises(Problem, match="namely argparse.Namespace"):
        checkpoint.load(Path("a.pt"))
    assert torch.equal(content["w"], torch.ones(1))


@pytest.mark.case(11)
def test_a_lack_of_memory_is_not_called_damage(monkeypatch):
    torch.save({"a": torch.ones(1)}, "a.pt")

    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(Problem, match="too little memory for the file"):
        checkpoint.load(Path("a.pt"))


@pytest.mark.case(11)
def test_a_flipped_method_of_compression_is_damage():
    """zipfile then fails with zlib's own error."""
    torch.save({"a": torch.arange(99.0)}, "a.pt")
    whole = bytearray(Path("a.pt").read_bytes())
    with zipfile.ZipFile("a.pt") as file:
        entries = file.start_dir
    whole[entries + 10] = 8  # of the first entry: "deflated"
    Path("a.pt").write_bytes(whole)
    with pytest.raises(Problem, match="is damaged"):
        checkpoint.load(Path("a.pt"))


def test_the_filter_of_timm_is_found_without_a_download_and_timm_is_left_as_it_was():
    before = timm.models._builder.load_pretrained, torch.get_rng_state()
    assert timm_layouts.timm_filter("regnety_004").__name__ == "_filter_fn"
    assert timm_layouts.timm_filter("resnet18.tv_in1k") is None and timm_layouts.timm_filter("kdtiny") is None
    assert timm.models._builder.load_pretrained is before[0] and torch.equal(torch.get_rng_state(), before[1])


# Teachers at chance


def answers(predicted, count=3):
    return np.eye(count)[predicted]


def judged(predicted, labels, count=3, images_of_a_patient=1, about=None):
    """Return the warning about a teacher that predicts this."""
    index = SimpleNamespace(classes=tuple("abcdefgh"[:count]), labels=np.array(labels), unit=lambda row: f"p{row // images_of_a_patient}")
    dataset = SimpleNamespace(index=index, splits=SimpleNamespace(valid=np.arange(len(labels))))
    member = SimpleNamespace(name="net", source="file.pt", trained=SimpleNamespace(about=about))
    return chance.warning(member, answers(np.array(predicted), count), dataset)


def test_another_order_of_the_classes_is_named():
    labels = np.arange(90) % 3
    text = judged((labels + 1) % 3, labels)
    assert "accuracy 0.0000, but 1.0000 if its outputs are taken in another order (0 = c, 1 = a, 2 = b)" in text
    assert "The data set's order is 0 = a, 1 = b, 2 = c." in text
    swapped = np.array([0, 1, 2, 4, 3])[np.arange(200) % 5]  # above chance as it is
    assert "0.6000, but 1.0000 if its outputs are taken in another order (3 = e, 4 = d)" in judged(swapped, np.arange(200) % 5, 5)


@pytest.mark.parametrize("predicted, labels, count, warned", [
    ([0] * 100, [0] * 60 + [1] * 40, 2, True),  # always the most common class
    ([1] * 100, [0] * 60 + [1] * 40, 2, True),  # or the other one
    ([0, 1] * 50, [0, 0, 1, 1] * 25, 2, True),  # independent of the labels
    ([0] * 52 + [1] * 48, [0] * 50 + [1] * 50, 2, False),
    ([0, 1] * 4 + [0, 1, 1, 0], [0, 1] * 6, 2, False),  # ten of twelve are right: small, but not a chance level
    ([0] * 85 + [1] * 15, [0] * 95 + [1] * 5, 2, False)])  # finds the rare class, although its accuracy is below 95 %
def test_a_teacher_at_chance_is_named_and_a_useful_one_is_not(predicted, labels, count, warned):
    text = judged(predicted, labels, count)
    assert ("is not shown to be better than chance" in text) == warned, text
    assert not warned or "Its outputs are taken as 0 = a, 1 = b" in text


def test_images_of_a_patient_count_once():
    labels = np.repeat(np.arange(100) % 2, 10)
    predicted = np.where(np.arange(1000) % 50 < 27, labels, 1 - labels)  # 54 % are right
    assert not judged(predicted, labels, 2) and "not shown to be better than chance" in judged(predicted, labels, 2, images_of_a_patient=10)


def test_random_predictions_seldom_look_like_another_order():
    random = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        count, images = int(random.integers(2, 8)), int(random.integers(8, 200))
        labels = random.integers(0, count, images)
        text = judged(random.integers(0, count, images), labels, count)
        found += "another order" in text
    assert found <= 1


def test_a_poor_teacher_is_warned_about_before_the_student_starts_but_not_one_that_is_meant_to_be_poor(script):
    torch.manual_seed(0)
    state = timm.create_model("kdwide", num_classes=SYNTHETIC).state_dict()
    state["fc.weight"].zero_()
    state["fc.bias"] = torch.arange(float(SYNTHETIC))
    torch.save(state, "other.pt")
    code, out = script("distill", [*PAIR, "--mode", "normal", "--teacher-checkpoint", "other.pt", "--max-steps", "2"])
    remarks = reports.read(RUN)["teacher"]["remarks"]
    assert code == 0 and "warning: Teacher kdwide (other.pt) is not shown to be better than chance" in out.partition("training kdtiny")[0], out
    assert any("is not shown to be better than chance" in text for text in remarks)
    code, out = script("distill", [*PAIR, "--mode", "random", "--max-steps", "2"])
    assert code == 0 and "warning: Teacher" not in out, out


# Networks from the hub or from a folder


def folder_of_timm(folder, name="kdtiny", count=10, **more):
    """Write a network as timm's save_for_hf does, and return its state."""
    state = timm.create_model(name, num_classes=count).state_dict()
    Path(folder).mkdir(parents=True)
    safetensors.torch.save_file(state, Path(folder) / "model.safetensors")
    config = {"architecture": name, "num_classes": count, "pretrained_cfg": {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.2, 0.2]}}
    (Path(folder) / "config.json").write_text(json.dumps(config | more))
    return state


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """hub_cache(repository) writes a network as if it had been downloaded, and returns its state."""
    hub_networks.architecture_in.cache_clear()
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_answers", lambda address: time.sleep(60))  # out of reach
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 0.2)

    def write(repository, name):
        place = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        state = folder_of_timm(place / "snapshots/1234", name)
        (place / "refs").mkdir()
        (place / "refs/main").write_text("1234")
        return state
    yield write
    hub_networks.architecture_in.cache_clear()


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
def test_a_network_of_the_hub_starts_from_its_weights(hub_cache, prefix):
    state = hub_cache("someone/net.v1", "mobilenetv3_small_050")
    name = f"{prefix}someone/net.v1"
    models.require_weights(name)
    network = models.build(name, CLASSES, pretrained=True)
    assert network.architecture == "mobilenetv3_small_050" and network.name == name
    assert torch.equal(network.module.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
    assert network.mean.flatten().tolist() == pytest.approx([0.3, 0.4, 0.5]) and len(network.module.classifier.bias) == 3


@pytest.mark.case(29)
def test_a_hub_out_of_reach_is_reported_soon_in_one_line(hub_cache, script):
    for name in ("hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/nosuch@v2"):
        begun = time.monotonic()
        code, out = script("train_teacher", ["--model", name, *TINY])
        assert code == 2 and f"Network '{name}' cannot be downloaded from https://huggingface.co/timm/" in out.splitlines()[-1], out
        assert time.monotonic() - begun < 20
    with pytest.raises(Problem, match="are hf-hub:OWNER/NAME"):
        models.architecture_of("timm/resnet18")
    with pytest.raises(Problem, match="is incomplete"):
        models.architecture_of("hf-hub:")


def test_a_network_of_a_folder_is_trained_taught_and_read_after_the_folder_is_gone(script):
    hub_networks.architecture_in.cache_clear()
    folder_of_timm("my/net")
    own = [flag for flag in TINY if flag != "--no-pretrained"]
    flags = ["--teacher", "local-dir:my/net", "--student", "kdtiny", "--mode", "normal", "--max-steps", "2"]
    code, out = script("distill", [*flags, *TINY])
    run = Path("runs/synthetic-patient-32/normal/local-dir_my_net-kdtiny/seed0")
    assert code == 0 and run.is_dir() and Path("runs/synthetic-patient-32/teacher/local-dir_my_net/seed0/model.pt").is_file(), out
    code, out = script("train_teacher", ["--model", "local-dir:my/net", "--tag", "weights", "--max-steps", "2", *own])
    assert code == 0, out
    shutil.rmtree("my")
    hub_networks.architecture_in.cache_clear()
    assert script("evaluate", ["runs/synthetic-patient-32/teacher/local-dir_my_net/seed0"])[0] == 0
    code, out = script("evaluate", ["--tables", "runs"])
    assert code == 0 and "local-dir:my/net" in out, out


@pytest.mark.parametrize("more, words", [
    ({"architecture": "nosuch"}, "architecture 'nosuch', which timm does not have"),
    ({"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, "another network than timm's"),
    ({"model_args": {"in_chans": 1}}, "another network than timm's mobilenetv3_small_050"),
    ({"model_args": {"global_pool": "max"}}, "another network than timm's mobilenetv3_small_050")])
def test_a_folder_that_cannot_be_used_is_refused(more, words):
    hub_networks.architecture_in.cache_clear()
    folder_of_timm("net", "mobilenetv3_small_050", **more)
    with pytest.raises(Problem, match=words):
        models.build("local-dir:net", CLASSES)
    with pytest.raises(Problem, match="cannot be used .*no-folder"):
        models.architecture_of("local-dir:no-folder")


def test_names_of_networks_become_names_of_folders():
    path = run_path("runs", "data", "normal", "", "hf-hub:timm/resnet18.a1_in1k-vgg11+resnet18", 0)
    assert path == Path("runs/data/normal/hf-hub_timm_resnet18.a1_in1k-vgg11+resnet18/seed0")
