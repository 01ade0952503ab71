"""Compare the precisions in which small networks can be trained on a CPU.

Run by hand, on an idle machine:

    python tests/benchmarks/precision.py [--networks NAME ...] [--sizes 96 224] [--json FILE]

For each network and image size, one step (forward pass, backward pass, Adam) on a batch that stays
in memory is timed in four ways, which take turns step by step:

    float32   --amp off
    bf16      every layer under autocast, as torch does it by itself
    mixed     --amp bf16: the layers of kd/system/cpu_layers.py in float32, the others in bf16
    auto      --amp auto, which is one of the others

`--forward` times passes without gradients instead, as a teacher's are: in float32, in bf16, and in
bf16 with depthwise convolutions in float32, which this program does not do. The figures are medians
over the turns, with the smallest and the largest value. Ratios are computed within each turn.
"""

import argparse
import json
import platform
import time
from pathlib import Path

from participants import in_turns, ratios, spread  # first: it sets up the allocator and the path

import torch  # isort: skip
from torch.nn import functional  # isort: skip

from kd import models
from kd.system import cpu_layers
from kd.system.devices import Precision
from kd.training.precision import training_precision

NETWORKS = (
    "mobilenetv3_small_100",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "convnext_atto",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "ghostnet_100",
    "regnetx_002",
    "resnet10t",
    "repvgg_a0",
    "fastvit_t8",
    "mobilevit_xxs",
    "vit_tiny_patch16_224",
    "resnet18",
    "vgg11",
)
CPU, FLOAT, HALF = torch.device("cpu"), Precision("cpu", "off"), Precision("cpu", "bf16")
CLASSES = tuple("abcdefg")
FIXED_SIZE = {"vit_tiny_patch16_224": 224}


def build(name):
    network = models.build(name, CLASSES)
    network.module.to(memory_format=torch.channels_last)
    return network


class Timed:
    """Something that is called again and again; the first two calls are not counted."""

    calls = 0

    def block(self, calls):
        """Return the seconds per call."""
        while self.calls < 2:
            self.call()
            self.calls += 1
        begun = time.perf_counter()
        for _ in range(calls):
            self.call()
        return (time.perf_counter() - begun) / calls


class Step(Timed):
    """Training steps of a network in one precision, on one batch."""

    def __init__(self, name, images, choose, adapted=True):
        self.network = build(name)
        if adapted:
            self.network.to(CPU)
        self.precision = choose(self.network)
        self.images, self.labels = images, torch.arange(len(images)) % len(CLASSES)
        self.network.module.train()
        weights = self.network.module.parameters()
        self.optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)

    def call(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            logits = self.network(self.images)
        functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()


class Pass(Timed):
    """Forward passes of a network without gradients, in one precision, on one batch."""

    def __init__(self, name, images, precision, depthwise_in_float32=False):
        self.network, self.images, self.precision = build(name), images, precision
        self.network.module.eval()
        if depthwise_in_float32:
            for module in filter(cpu_layers.is_depthwise, self.network.module.modules()):
                module.forward = _in_float32(module.forward)

    def call(self):
        with torch.inference_mode(), self.precision.autocast():
            self.network(self.images)


def _in_float32(forward):
    def call(features):
        with torch.autocast("cpu", enabled=False):
            return forward(features.float())
    return call


def training_steps(name, images):
    def auto(network):
        return training_precision("auto", network, images)

    return {
        "float32": Step(name, images, lambda network: FLOAT),
        "bf16": Step(name, images, lambda network: HALF, adapted=False),
        "mixed": Step(name, images, lambda network: HALF),
        "auto": Step(name, images, auto),
    }


def forward_passes(name, images):
    return {
        "float32": Pass(name, images, FLOAT),
        "bf16": Pass(name, images, HALF),
        "mixed": Pass(name, images, HALF, depthwise_in_float32=True),
    }


def measure(name, size, options):
    images = torch.rand(options.batch_size, 3, size, size)
    participants = (forward_passes if options.forward else training_steps)(name, images)
    seconds = in_turns({key: (one, 1) for key, one in participants.items()}, options.turns)
    found = {"ms": {key: spread(values, 1000) for key, values in seconds.items()}}
    pairs = [("mixed", "float32"), ("mixed", "bf16")]
    if not options.forward:
        found["precision of auto"] = participants["auto"].precision.words
        pairs += [("auto", "bf16"), ("auto", "float32")]
    found["ratios"] = ratios(seconds, pairs)
    return found


def show(name, size, found):
    times = "  ".join(
        f"{key} {one['median']:.0f} ({one['min']:.0f} to {one['max']:.0f})"
        for key, one in found["ms"].items()
    )
    relative = "  ".join(
        f"{key} {one['median']:.2f} ({one['min']:.2f} to {one['max']:.2f})"
        for key, one in found["ratios"].items()
    )
    print(f"{name} {size} px, ms: {times}", flush=True)
    print(f"    {found.get('precision of auto', '')}  {relative}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[96, 224])
    parser.add_argument("--json", type=Path, default=Path("precision.json"))
    parser.add_argument("--forward", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name, default in (("batch-size", 16), ("turns", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = platform.processor() or platform.machine()
    machine = f"{name}, {options.threads} threads, torch {torch.__version__}"
    found = {"machine": machine, "batch size": options.batch_size, "turns": options.turns}
    for name in options.networks:
        for size in options.sizes:
            if size == FIXED_SIZE.get(name, size):
                found[f"{name} {size}"] = measure(name, size, options)
                show(name, size, found[f"{name} {size}"])
                options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
