"""Generate another fixture of tests/test_convert.py: `python tests/golden/make_backbones.py`. Requires torch, torchvision and timm.

backbones.npz holds, in the form of networks.npz, the names and shapes of the state dicts of backbones and, for small networks with the
weights of `foreign.random_state`, the outputs of torch for one image. The small networks are the classes of torchvision and timm with
fewer channels and blocks.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from foreign import random_state

torch: Any = importlib.import_module("torch")
models: Any = importlib.import_module("torchvision.models")
timm_resnet: Any = importlib.import_module("timm.models.resnet")

CLASSES = 5


def mobilenet_v3() -> Any:
    """One block of each kind: not expanded, with ReLU and the hard SiLU, with and without a gate, with a shortcut."""
    rows = (  # channels in, taps, inner channels, channels out, gate, activation, stride
        (8, 3, 8, 8, False, "RE", 1),
        (8, 3, 16, 16, False, "RE", 2),
        (16, 5, 24, 16, True, "RE", 2),
        (16, 5, 40, 16, True, "RE", 1),
        (16, 3, 32, 24, False, "HS", 2),
        (24, 5, 72, 24, True, "HS", 2),
        (24, 5, 40, 24, True, "HS", 1),
    )
    blocks = [models.mobilenetv3.InvertedResidualConfig(*row, 1, 1.0) for row in rows]
    net = models.MobileNetV3(blocks, last_channel=16, num_classes=CLASSES)
    assert {norm.eps for norm in net.modules() if isinstance(norm, torch.nn.BatchNorm2d)} == {0.001}
    return net


def efficientnet() -> Any:
    """All seven stages, with two blocks in some of them."""
    rows = (  # expansion, taps, stride, channels in, channels out, blocks
        (1, 3, 1, 8, 8, 1),
        (3, 3, 2, 8, 8, 2),
        (3, 5, 2, 8, 16, 1),
        (3, 3, 2, 16, 16, 1),
        (3, 5, 1, 16, 24, 1),
        (3, 5, 2, 24, 24, 2),
        (3, 3, 1, 24, 32, 1),
    )
    blocks = [models.efficientnet.MBConvConfig(*row) for row in rows]
    return models.EfficientNet(blocks, dropout=0.2, last_channel=40, num_classes=CLASSES)


def small() -> Any:
    """Yield (source, kind, network) for a small network of every kind."""
    yield "torchvision:mobilenet_v3_large", "mobilenet_v3", mobilenet_v3()
    yield "torchvision:efficientnet_b0", "efficientnet", efficientnet()
    yield "torchvision:densenet121", "densenet", models.DenseNet(4, (2, 1, 2, 2), 8, 2, num_classes=CLASSES)
    # The stem of timm's networks always has 64 channels, and its hidden units are multiples of 8.
    options: Any = dict(layers=(1, 1, 1, 2), channels=(64, 32, 32, 32), num_classes=CLASSES, block_args={"attn_layer": "se"})
    yield "timm:seresnet50", "seresnet", timm_resnet.ResNet(timm_resnet.Bottleneck, **options)


def published() -> Any:
    """Yield (source, network) for every supported source."""
    for name in ("mobilenet_v3_large", "efficientnet_b0", "densenet121"):
        yield f"torchvision:{name}", getattr(models, name)()
    yield "timm:seresnet50", timm_resnet.seresnet50()


def shapes_of(net: Any) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in net.state_dict().items()}


def main() -> None:
    about: dict[str, Any] = {"published": {source: shapes_of(net) for source, net in published()}, "small": []}
    arrays = {"x": np.random.default_rng(0).normal(0.2, 1, (1, 43, 58, 3)).astype(np.float32)}
    image = torch.tensor(np.moveaxis(arrays["x"], -1, 1), dtype=torch.float64)
    for seed, (source, kind, net) in enumerate(small()):
        shapes = shapes_of(net)
        net.load_state_dict({name: torch.tensor(value) for name, value in random_state(shapes, seed).items()})
        with torch.no_grad():
            arrays[f"y{seed}"] = net.double().eval()(image).numpy().astype(np.float32)
        about["small"].append({"source": source, "kind": kind, "output_stride": 32, "seed": seed, "shapes": shapes})
    path = Path(__file__).parent / "backbones.npz"
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    main()
