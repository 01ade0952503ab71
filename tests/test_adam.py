"""The optimizer updates weights as torch's Adam does, to the last bit."""

import pytest
import torch

from kd import models
from kd.training.adam import OPTIMIZERS, Adam


def trained(kind, fused, order, steps=4):
    """Return the weights and moments of a small network after some steps; `order` is that of its weights."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 6, 3, groups=2), torch.nn.Conv2d(6, 5, 1),
        torch.nn.Flatten(), torch.nn.Linear(5 * 4 * 4, 3),
    ).to(memory_format=order)
    optimizer = kind(module.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
    for step in range(steps):
        optimizer.zero_grad()
        images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).to(memory_format=order)
        module(images).square().sum().backward()
        optimizer.step()
    moments = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq", "step")]
    return list(module.state_dict().values()), moments


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name, torchs_own", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_weights_and_moments_are_those_of_torchs_own_in_the_same_shapes_and_order(fused, order, name, torchs_own):
    for ours, torchs in zip(trained(OPTIMIZERS[name], fused, order), trained(torchs_own, fused, order), strict=True):
        for one, other in zip(ours, torchs, strict=True):
            assert torch.equal(one, other) and one.stride() == other.stride()


def test_adamw_multiplies_all_parameters_by_one_minus_lr_times_decay():
    values = [torch.full((3,), 2.0), torch.full((2, 3, 2, 2), 2.0).to(memory_format=torch.channels_last)]
    parameters = [torch.nn.Parameter(value) for value in values]
    optimizer = OPTIMIZERS["adamw"](parameters, lr=0.1, weight_decay=0.5, fused=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert all(torch.allclose(parameter, torch.tensor(1.9)) for parameter in parameters)


@pytest.mark.parametrize("ours, torchs", [(Adam, torch.optim.Adam), (OPTIMIZERS["adamw"], torch.optim.AdamW)])
def test_a_gradient_in_another_order_than_its_weight_is_applied_to_the_right_elements(ours, torchs):
    weights = []
    for kind in (ours, torchs):
        weight = torch.nn.Parameter(torch.arange(2.0 * 3 * 4 * 5).view(2, 3, 4, 5).to(memory_format=torch.channels_last))
        weight.grad = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
        assert weight.grad.stride() != weight.stride()
        optimizer = kind([weight], lr=1.0, fused=True)
        for _ in range(3):
            optimizer.step()
        weights.append(weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_kernel_gets_no_tensor_that_it_would_copy(name):
    network = models.build("resnet18", ("a", "b")).to(torch.device("cpu"))
    optimizer = OPTIMIZERS[name](network.module.parameters(), fused=True)
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    lists = [[] for _ in range(6)]
    optimizer._init_group(optimizer.param_groups[0], *lists)
    copied = [tensor.shape for tensors in lists for tensor in tensors if not tensor.is_contiguous()]
    assert not copied
