"""Adam and AdamW for weights in channels_last order."""

import torch

ROWS_LAST = (0, 2, 3, 1)  # [O, C, H, W] in channels_last order is [O, H, W, C] without gaps


class _InPlace:
    """Part of an optimizer of torch that updates weights in channels_last order in place on a CPU.

    torch's fused kernel for CPUs first copies tensors whose elements are not in the order of their
    dimensions, and copies the results back. For VGG11 this takes half of the update's time. Here
    the kernel gets views in which they are in order. It works element by element, so the results do
    not change.
    """

    def _init_group(self, group, params, grads, *moments_and_steps):
        """Collect the tensors of a group; torch's Adam fills the lists and updates what is in them.

        The lists are, by torch's names: params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs and
        state_steps.
        """
        is_complex = super()._init_group(group, params, grads, *moments_and_steps)
        for number, weight in enumerate(params):
            if weight.device.type == "cpu" and weight.ndim == 4 and not weight.is_contiguous():
                for tensors in (params, grads, *moments_and_steps[:2]):
                    tensors[number] = tensors[number].detach().permute(ROWS_LAST)
        return is_complex


class Adam(_InPlace, torch.optim.Adam):
    """torch's Adam (Kingma, Ba 2015, arXiv:1412.6980), with weight decay as an L2 penalty."""


class AdamW(_InPlace, torch.optim.AdamW):
    """torch's Adam with decoupled weight decay (Loshchilov, Hutter 2019, arXiv:1711.05101).

    The decay multiplies each weight by 1 - lr * weight_decay. As in torch, it applies to all
    parameters, also to biases and to those of normalisation layers.
    """


OPTIMIZERS = {"adam": Adam, "adamw": AdamW}  # by the value of --optimizer
