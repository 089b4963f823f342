"""Generate the fixture of tests/test_detectors.py: `python tests/golden/make_detectors.py`. Requires torch and torchvision.

detectors.npz holds the names and shapes of the state dicts of torchvision's published detectors and, for small networks of the same classes
with the weights of `foreign.random_state`, an image, the raw outputs of the heads in float64, and what torchvision detects with them.
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
detection: Any = importlib.import_module("torchvision.models.detection")
image_list: Any = importlib.import_module("torchvision.models.detection.image_list")
pyramid: Any = importlib.import_module("torchvision.ops.feature_pyramid_network")
nn = torch.nn

CLASSES, FEATURES, WIDTHS = 3, 32, (4, 6, 8, 10)
SIZE = (64, 160)  # multiples of 32, as torchvision pads images
NAMES = ("retinanet_resnet50_fpn", "fcos_resnet50_fpn")


class Backbone(nn.Module):
    """A ResNet of few channels, and a pyramid of few channels."""

    def __init__(self) -> None:
        super().__init__()
        net = models.resnet.ResNet(models.resnet.Bottleneck, (1, 1, 1, 1))
        net.inplanes = WIDTHS[0]
        net.conv1, net.bn1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0])
        for i, width in enumerate(WIDTHS):
            setattr(net, f"layer{i + 1}", net._make_layer(models.resnet.Bottleneck, width, 1, 1 if i == 0 else 2))
        layers = {f"layer{i}": str(i) for i in (2, 3, 4)}
        self.body = models._utils.IntermediateLayerGetter(net, layers)
        self.fpn = pyramid.FeaturePyramidNetwork([4 * w for w in WIDTHS[1:]], FEATURES, pyramid.LastLevelP6P7(FEATURES, FEATURES))
        self.out_channels = FEATURES

    def forward(self, x: Any) -> Any:
        return self.fpn(self.body(x))


def small(name: str) -> Any:
    kind = detection.RetinaNet if name.startswith("retinanet") else detection.FCOS
    if kind is detection.FCOS:
        return kind(Backbone(), CLASSES)
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    return kind(Backbone(), CLASSES, anchor_generator=detection.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5))


def run(net: Any, x: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the raw outputs of the heads, and the detections."""
    image = torch.tensor(np.moveaxis(x, -1, 1), dtype=torch.float64)
    maps = list(net.backbone(image).values())
    raw = net.head(maps)
    anchors = net.anchor_generator(image_list.ImageList(image, [SIZE]), maps)
    counts = [one.shape[2] * one.shape[3] * net.anchor_generator.num_anchors_per_location()[0] for one in maps]
    split = {name: list(output.split(counts, 1)) for name, output in raw.items()}
    return raw, net.postprocess_detections(split, [list(anchors[0].split(counts))], [SIZE])[0]


def main() -> None:
    shapes_of = lambda net: {name: list(value.shape) for name, value in net.state_dict().items()}  # noqa: E731
    about: dict[str, Any] = {"published": {}, "small": {}}
    arrays = {"x": np.random.default_rng(0).normal(0.2, 1, (1, *SIZE, 3)).astype(np.float32)}
    for seed, name in enumerate(NAMES):
        made = getattr(detection, name)(weights=None, weights_backbone=None)
        # The published files are of networks with frozen statistics, which do not count batches.
        about["published"][f"torchvision:{name}"] = {key: shape for key, shape in shapes_of(made).items() if "num_batches" not in key}
        net = small(name)
        shapes = shapes_of(net)
        net.load_state_dict({key: torch.tensor(value) for key, value in random_state(shapes, seed).items()})
        with torch.no_grad():
            raw, found = run(net.double().eval(), arrays["x"])
        about["small"][name] = {"shapes": shapes, "seed": seed}
        arrays |= {f"{name}.{key}": value.numpy()[0].astype(np.float32) for key, value in raw.items()}
        arrays |= {f"{name}.{key}": value.numpy().astype(np.float32) for key, value in found.items()}
    path = Path(__file__).parent / "detectors.npz"
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    main()
