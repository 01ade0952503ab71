"""The precision of training on a CPU: which networks and layers stay in float32, and that nothing else changes."""

import copy
import functools

import pytest
import torch
from conftest import PAIR, RUN, TINY, same
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from kd import models
from kd.config.settings import Training
from kd.data.readers import synthetic
from kd.data.views import Batch
from kd.reports import report as reports
from kd.runs.active import save
from kd.system import cpu_layers
from kd.system.cpu_layers import adapt_to_cpu, arithmetic_intensity
from kd.system.devices import Precision, pick_precision
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.teachers.outputs import LiveNetwork
from kd.training.precision import training_precision
from kd.training.state import State

CPU, FLOAT, HALF = torch.device("cpu"), Precision("cpu", "off"), Precision("cpu", "bf16")
DEPTHWISE = "bf16, depthwise convolutions in float32"


@pytest.fixture
def with_bf16(monkeypatch):
    """A processor that computes in bf16, whatever this one can do."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)


def network(name, size=64, seed=0):
    options = {"img_size": size} if name.startswith("vit_") else {}
    torch.manual_seed(seed)
    module = models.timm.create_model(name, num_classes=7, **options)
    mean, std = torch.full((1, 3, 1, 1), 0.5), torch.full((1, 3, 1, 1), 0.2)
    return models.Classifier(name, name, synthetic.CLASSES, module, mean, std)


def gradients(one, images, precision):
    """Return the gradients of all weights for one batch in training mode, without dropout."""
    one.module.train()
    with precision.autocast():
        logits = one(images)
    functional.cross_entropy(logits.float(), torch.arange(len(images))).backward()
    found = {key: weight.grad.clone() for key, weight in one.module.named_parameters()}
    one.module.zero_grad()
    return found


@pytest.mark.parametrize("name, size, words", [
    ("resnet18", 32, "bf16"), ("seresnet50", 32, "bf16"), ("repvgg_a0", 32, "bf16"),
    ("mobilenetv3_small_100", 64, "float32"), ("mobilenetv3_small_100", 224, "float32"), ("ghostnet_100", 64, "float32"),
    ("mobilenetv3_large_100", 96, DEPTHWISE), ("tf_efficientnet_lite0", 64, DEPTHWISE), ("efficientnet_b0", 64, DEPTHWISE),
    ("convnext_atto", 64, DEPTHWISE), ("vit_tiny_patch16_224", 32, "bf16, attention in float32"),
    ("mobilevit_xxs", 64, "bf16, depthwise convolutions and attention in float32")])
def test_auto_follows_the_architecture_and_the_words_name_what_stays_in_float32(with_bf16, name, size, words):
    images = torch.rand(1, 3, size, size)
    assert training_precision("auto", network(name, size), images).words == words
    explicit = training_precision("bf16", network(name, size), images).words
    assert explicit == (DEPTHWISE if words == "float32" else words)
    assert training_precision("off", network(name, size), images).words == "float32"


def test_without_bf16_auto_is_float32_for_every_network(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert training_precision("auto", network("resnet18"), torch.rand(1, 3, 32, 32)) == FLOAT


def test_the_intensity_counts_each_dense_layer_once_and_leaves_the_network_as_it_was():
    dense, light = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
    whole = nn.Sequential(dense, nn.BatchNorm2d(8), light, nn.Flatten(), nn.Linear(8 * 16, 5))
    before = copy.deepcopy(whole.state_dict())
    found = arithmetic_intensity(whole.train(), torch.rand(1, 3, 4, 4))
    assert found == (8 * 16 * 27 + 5 * 128) / ((3 + 8) * 16 + 128 + 5)
    assert whole.training and whole[1].training and same(before, whole.state_dict())
    assert not any(module._forward_hooks for module in whole.modules())
    assert arithmetic_intensity(nn.ReLU(), torch.rand(1, 3, 4, 4)) == 0


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto", "vit_tiny_patch16_224"])
def test_float32_and_passes_without_gradients_do_not_change_by_a_bit(name):
    """Evaluation, training with --amp off, and a teacher's bf16."""
    torch.set_num_threads(1)
    plain, adapted, images = network(name), network(name).to(CPU), torch.rand(4, 3, 64, 64)
    plain.module.to(memory_format=torch.channels_last)
    assert list(plain.module.state_dict()) == list(adapted.module.state_dict())
    changed = [module for module in adapted.module.modules() if "forward" in vars(module)]
    assert changed and not any("forward" in vars(module) for module in plain.module.modules())
    assert same(gradients(plain, images, FLOAT), gradients(adapted, images, FLOAT))
    assert same(plain.module.state_dict(), adapted.module.state_dict())
    for one in (plain, adapted):
        one.module.eval()
    with torch.no_grad(), HALF.autocast():
        assert torch.equal(plain(images), adapted(images))


def test_a_depthwise_convolution_has_the_gradient_of_float32():
    """Its input is exact in bf16, so that both gradients can be compared bit for bit."""
    layer = nn.Conv2d(24, 24, 5, stride=2, padding=2, groups=24, bias=False)
    other, adapted = copy.deepcopy(layer), nn.Sequential(layer)
    adapt_to_cpu(adapted)
    images = torch.randn(4, 24, 12, 12).bfloat16().float()
    with HALF.autocast():
        found = adapted(images.bfloat16())
    expected = other(images)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    found.sum().backward(), expected.sum().backward()
    assert torch.equal(layer.weight.grad, other.weight.grad)
    with HALF.autocast(), torch.no_grad():
        assert adapted(images).dtype == torch.bfloat16


class AttentionDtypes(TorchDispatchMode):
    """Records the dtype of the queries of each attention."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function) and "backward" not in str(function):
            self.found.append(args[0].dtype)
        return function(*args, **(kwargs or {}))


def test_attention_runs_in_float32_where_a_gradient_is_needed_and_nothing_else_does():
    one, linear = network("vit_tiny_patch16_224").to(CPU), []
    for block in one.module.blocks:
        block.attn.proj.register_forward_hook(lambda module, inputs, output: linear.append(output.dtype))
    images, layers = torch.rand(2, 3, 64, 64), len(one.module.blocks)
    with AttentionDtypes() as dtypes:
        gradients(one, images, HALF)
    assert dtypes.found == [torch.float32] * layers and linear == [torch.bfloat16] * layers
    with AttentionDtypes() as dtypes:
        LiveNetwork(one, HALF)(Batch(images, None, torch.arange(2), 0))
    assert dtypes.found == [torch.bfloat16] * layers


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilevit_xxs"])
def test_the_gradients_of_the_mixture_are_close_to_those_of_float32(name):
    """As close as those of bf16 everywhere: nothing is lost by the layers that stay in float32."""
    images = torch.rand(4, 3, 64, 64)
    exact = gradients(network(name), images, FLOAT)
    everywhere = gradients(network(name), images, HALF)
    mixture = gradients(network(name).to(CPU), images, HALF)

    def distance(found):
        total = sum(((found[key] - exact[key]) ** 2).sum() for key in exact)
        return (total / sum((value**2).sum() for value in exact.values())).sqrt()

    assert 0 < distance(mixture) < 1.2 * distance(everywhere)


STRIDED = [(channels, stride, size) for channels in (1, 3, 4, 8, 15) for stride in (2, 3) for size in (31, 64)]


@pytest.mark.parametrize("channels, stride, size", STRIDED)
@pytest.mark.parametrize("precision", [FLOAT, HALF], ids=["float32", "bf16"])
def test_a_strided_point_convolution_of_few_channels_has_the_right_gradient(channels, stride, size, precision):
    """With oneDNN's own kernel, its gradient is wrong or the process dies."""
    layer = nn.Conv2d(channels, 48, 1, stride=stride).to(memory_format=torch.channels_last)
    images = torch.randn(16, channels, size, size).bfloat16().float().contiguous(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()
    adapt_to_cpu(layer)
    assert "forward" in vars(layer)
    weights = torch.randn(48, 1, 1).bfloat16().float()
    with precision.autocast():
        found = layer(images)
    (found.float() * weights).sum().backward()
    expected = exact(images.double())
    (expected * weights.double()).sum().backward()
    close = functools.partial(torch.testing.assert_close, check_dtype=False, rtol=1e-4 if precision == FLOAT else 3e-2)
    scale = expected.abs().max().item()
    close(found, expected, atol=scale * (1e-5 if precision == FLOAT else 2e-2))
    scale = exact.weight.grad.abs().max().item()
    close(layer.weight.grad, exact.weight.grad, atol=scale * (1e-4 if precision == FLOAT else 2e-2))


@pytest.mark.parametrize("name", ["repvgg_a0", "fastvit_t8", "mobileone_s0"])
def test_networks_with_such_a_convolution_train_in_float32(name):
    one = network(name).to(CPU)
    names = [key for key, module in one.module.named_modules()
             if "forward" in vars(module) and getattr(module, "kernel_size", 0) == (1, 1)]
    assert names
    images = torch.rand(4, 3, 64, 64)
    state = State(one, Training(), FLOAT)
    for _ in range(2):
        functional.cross_entropy(one(images), torch.arange(4)).backward()
        state.optimizer.step()
        state.optimizer.zero_grad()
    assert all(weight.isfinite().all() for weight in one.module.parameters())


SMALL = [(3, 2, 1, 1), (5, 2, 2, 1), (7, 2, 3, 1), (7, 4, 3, 2), (3, 3, 1, 1), (3, 2, 1, 2), (3, 2, 1, 3), (7, 2, 3, 4)]


@pytest.mark.parametrize("kernel, stride, padding, size", SMALL)
@pytest.mark.parametrize("channels", [(1, 8), (24, 40), (64, 128)])
def test_a_strided_convolution_of_a_tiny_map_has_the_right_gradient_in_bf16(kernel, stride, padding, size, channels):
    """Where its kernel is larger than the map, torch's own gradient is memory that nobody initialised."""
    check_in_bf16(nn.Conv2d(*channels, kernel, stride=stride, padding=padding), 16, size)


@pytest.mark.parametrize("kernel", [2, 4, 8, 16])
@pytest.mark.parametrize("channels", [3, 4, 8, 12, 16, 24, 28, 32])
def test_a_convolution_of_patches_is_right_in_bf16(kernel, channels):
    """torch's own result is wrong for some numbers of channels."""
    check_in_bf16(nn.Conv2d(channels, 40, kernel, stride=kernel), 4, 3 * kernel)


def check_in_bf16(layer, batch, size):
    """Compare output and gradients with float64, three times: uninitialised memory may be zero."""
    layer.to(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()
    adapt_to_cpu(layer)
    for _ in range(3):
        images = torch.randn(batch, layer.in_channels, size, size).bfloat16().float().contiguous(memory_format=torch.channels_last)
        first, second = images.clone().requires_grad_(), images.double().requires_grad_()
        with HALF.autocast():
            found = layer(first)
        with HALF.autocast(), torch.no_grad():
            plain = layer(images)
        expected = exact(second)
        slope = torch.randn(expected.shape).bfloat16().float()
        layer.zero_grad(), exact.zero_grad()
        (found.float() * slope).sum().backward()
        (expected * slope.double()).sum().backward()
        for value, right in ((found, expected), (plain, expected), (first.grad, second.grad), (layer.weight.grad, exact.weight.grad)):
            assert (value.double() - right).abs().max() < 0.02 * right.abs().max()


@pytest.mark.parametrize("kernel, stride, size", [(1, 1, (1, 1)), (1, 2, (1, 1)), (7, 1, (7, 7)), ((2, 3), 1, (2, 3)), (3, 1, (3, 4))])
@pytest.mark.parametrize("channels", [(3, 5), (64, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_whose_kernel_covers_the_map_is_a_product_of_matrices(kernel, stride, size, channels, bias):
    layer = nn.Conv2d(*channels, kernel, stride=stride, bias=bias).to(memory_format=torch.channels_last)
    exact = copy.deepcopy(layer).double()
    adapt_to_cpu(layer)
    first = torch.randn(4, channels[0], *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    second = first.detach().double().requires_grad_()
    found, expected = layer(first), exact(second)
    assert ("Convolution" in str(found.grad_fn)) == (size == (3, 4))
    found.square().sum().backward(), expected.square().sum().backward()
    pairs = [(found, expected), (first.grad, second.grad), (layer.weight.grad, exact.weight.grad)]
    for value, right in pairs + ([(layer.bias.grad, exact.bias.grad)] if bias else []):
        torch.testing.assert_close(value.double(), right, rtol=1e-4, atol=1e-4 * right.abs().max().item())
    assert layer.weight.grad.stride() == layer.weight.stride()


def test_other_convolutions_stay_as_they_are():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1, padding=1), nn.Conv2d(8, 8, 1, groups=4), nn.Conv1d(8, 8, 3, groups=8),
              nn.Linear(3, 4), nn.ConvTranspose2d(8, 8, 3, groups=8)]
    whole = nn.ModuleList(layers)
    adapt_to_cpu(whole)
    assert not any("forward" in vars(layer) for layer in layers)


def test_an_adapted_network_is_adapted_once_and_can_be_copied():
    one = network("mobilenetv3_small_050").to(CPU).to(CPU)
    layer = next(module for module in one.module.modules() if cpu_layers.is_depthwise(module))
    assert layer.forward.args[0].__func__ is nn.Conv2d.forward
    copied, images = copy.deepcopy(one), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for weight in one.module.parameters():
            weight.zero_()
    twin = network("mobilenetv3_small_050").to(CPU)
    assert same(gradients(copied, images, HALF), gradients(twin, images, HALF))


def test_a_network_that_cannot_process_the_images_is_refused_in_one_line(with_bf16):
    with pytest.raises(Problem, match="'maxvit_nano_rw_256' cannot be trained with batch size 2 and image size 48"):
        training_precision("auto", network("maxvit_nano_rw_256"), torch.rand(2, 3, 48, 48))


MOBILE = ["mobilenetv3_small_050" if word == "kdtiny" else word for word in PAIR]


def test_students_of_either_precision_share_the_logits_of_one_teacher(script, capsys, with_bf16, tmp_path):
    """The teacher's precision does not depend on the student's."""
    short = ["--max-steps", "2"]
    other = ["resnet18" if word == "kdtiny" else word for word in PAIR]
    assert script("distill", [*MOBILE, *short])[0] == 0
    files = list((tmp_path / "cache/logits").iterdir())
    assert script("distill", [*other, *short])[0] == 0
    assert list((tmp_path / "cache/logits").iterdir()) == files
    folder = RUN.parents[1]
    found = [reports.read(folder / f"kdwide-{name}/seed0")["clock"]["precision"] for name in ("mobilenetv3_small_050", "resnet18")]
    assert found == ["float32", "bf16"]


def test_a_run_that_began_with_all_layers_in_bf16_does_not_change_silently(script, with_bf16, monkeypatch):
    """As earlier versions of this program trained."""
    words = ["--model", "mobilenetv3_small_050", *TINY, "--amp", "bf16"]
    with monkeypatch.context() as earlier:
        earlier.setattr("kd.runs.run.training_precision", lambda amp, network, images: pick_precision(amp, images.device))
        earlier.setattr("kd.runs.run.fit", _save_and_stop)
        assert "stopped here" in script("train_teacher", words)[1]
    code, text = script("train_teacher", words)
    assert code == BAD_CHECKPOINT and f"its run began with precision bf16, but now it is {DEPTHWISE}" in text


def _save_and_stop(runs):
    save(runs)
    raise Problem("stopped here")
