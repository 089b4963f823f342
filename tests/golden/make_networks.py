"""Generate the fixture of tests/test_convert.py: `python tests/golden/make_networks.py`. Requires torch and torchvision.

networks.npz holds the names and shapes of the state dicts of all published networks and, for small networks with the weights of
`foreign.random_state`, the outputs of torch for one image at every output stride. The small networks of torchvision are its own classes
with fewer channels. DRN, for which there is no package, is built here with the parameter names of its authors.
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
nn, resnet, fcn, deeplabv3 = torch.nn, models.resnet, models.segmentation.fcn, models.segmentation.deeplabv3

CLASSES = 5
DILATED = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
RATES = {32: (3, 6, 9), 16: (6, 12, 18), 8: (12, 24, 36)}
WIDTHS, BLOCKS = (4, 6, 8, 10), (2, 1, 2, 2)
DRN_WIDTHS, DRN_BLOCKS = (4, 4, 6, 6, 8, 8, 8, 8), (1, 1, 2, 1, 2, 2, 1, 1)


def small_resnet(block: Any, stride: int) -> Any:
    net = resnet.ResNet(block, (1, 1, 1, 1), num_classes=CLASSES, replace_stride_with_dilation=DILATED[stride])
    net.inplanes, net.dilation = WIDTHS[0], 1
    net.conv1, net.bn1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False), nn.BatchNorm2d(WIDTHS[0])
    for i, (width, blocks, dilate) in enumerate(zip(WIDTHS, BLOCKS, (False, *DILATED[stride]))):
        setattr(net, f"layer{i + 1}", net._make_layer(block, width, blocks, 1 if i == 0 else 2, dilate))
    net.fc = nn.Linear(WIDTHS[-1] * block.expansion, CLASSES)
    return net


def on_resnet(kind: Any, head: Any, stride: int) -> Any:
    layers = {"layer4": "out", "layer3": "aux"}
    backbone = models._utils.IntermediateLayerGetter(small_resnet(resnet.Bottleneck, stride), layers)
    return kind(backbone, head, fcn.FCNHead(4 * WIDTHS[2], CLASSES))


class Unit(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 if `wide`, with a residual connection unless `alone`."""

    def __init__(self, channels: int, width: int, stride: int, dilation: int, wide: bool, alone: bool) -> None:
        super().__init__()
        out = 4 * width if wide else width
        three = dict(kernel_size=3, padding=dilation, dilation=dilation, bias=False)
        if wide:
            convs = [nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, width, stride=stride, **three)]
            convs.append(nn.Conv2d(width, out, 1, bias=False))
        else:
            convs = [nn.Conv2d(channels, width, stride=stride, **three), nn.Conv2d(width, width, **three)]
        for i, conv in enumerate(convs, start=1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.out_channels))
        self.depth, self.alone, self.channels = len(convs), alone, out
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Any) -> Any:
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = y.relu() if i < self.depth else y
        if not self.alone:
            y = y + (self.downsample(x) if hasattr(self, "downsample") else x)
        return y.relu()


class DRN(nn.Module):
    def __init__(self, arch: str, widths: Any, blocks: Any, wide: bool, classes: int) -> None:
        super().__init__()
        stem = nn.Conv2d(3, widths[0], 7, padding=3, bias=False), nn.BatchNorm2d(widths[0])
        if arch == "C":
            self.conv1, self.bn1 = stem
            self.relu = nn.ReLU()
        else:
            self.layer0 = nn.Sequential(*stem, nn.ReLU())
        channels = widths[0]
        for level, (stride, dilation) in enumerate(zip((1, 2, 2, 2, 1, 1, 1, 1), (1, 1, 1, 1, 2, 4, 2, 1)), start=1):
            outer, units = level in (1, 2, 7, 8), []
            for i in range(blocks[level - 1]):
                step = stride if i == 0 else 1
                if outer and arch == "D":
                    conv = nn.Conv2d(channels, widths[level - 1], 3, step, dilation, dilation, bias=False)
                    units += [conv, nn.BatchNorm2d(widths[level - 1]), nn.ReLU()]
                    channels = widths[level - 1]
                else:
                    units.append(Unit(channels, widths[level - 1], step, dilation, wide and not outer, level > 6))
                    channels = units[-1].channels
            self.add_module(f"layer{level}", nn.Sequential(*units))
        self.fc = nn.Conv2d(channels, classes, 1)

    def maps(self, x: Any) -> Any:
        for name, module in self.named_children():
            x = x if name == "fc" else module(x)
        return x

    def forward(self, x: Any) -> Any:
        return self.fc(self.maps(x).mean((2, 3), keepdim=True)).flatten(1)


class DRNSegmenter(nn.Module):
    def __init__(self, net: DRN, channels: int, classes: int) -> None:
        super().__init__()
        self.base = nn.Sequential(*(module for name, module in net.named_children() if name != "fc"))
        self.seg = nn.Conv2d(channels, classes, 1)
        self.up = nn.ConvTranspose2d(classes, classes, 16, 8, 4, groups=classes, bias=False)

    def forward(self, x: Any) -> Any:
        ramp = 1 - (torch.arange(16) - 7.5).abs() / 8
        self.up.weight.data[:] = ramp[:, None] * ramp
        return self.up(self.seg(self.base(x)))


PUBLISHED_BLOCKS = {
    "drn_c_26": (1, 1, 2, 2, 2, 2, 1, 1),
    "drn_c_42": (1, 1, 3, 4, 6, 3, 1, 1),
    "drn_d_22": (1, 1, 2, 2, 2, 2, 1, 1),
    "drn_d_38": (1, 1, 3, 4, 6, 3, 1, 1),
    "drn_d_54": (1, 1, 3, 4, 6, 3, 1, 1),
    "drn_d_105": (1, 1, 3, 4, 23, 3, 1, 1),
}


def published() -> Any:
    """Yield (source, network) for every supported source."""
    for name in ("resnet18", "resnet34", "resnet50", "resnet101"):
        yield f"torchvision:{name}", getattr(models, name)()
    for name in ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101"):
        yield f"torchvision:{name}", getattr(models.segmentation, name)(weights=None, weights_backbone=None, aux_loss=True)
    widths = (16, 32, 64, 128, 256, 512, 512, 512)
    for name, blocks in PUBLISHED_BLOCKS.items():

        def make(classes, name=name, blocks=blocks):
            return DRN(name[4].upper(), widths, blocks, name in ("drn_d_54", "drn_d_105"), classes)

        yield f"drn:{name}", make(1000)
        yield f"drn:{name}_segmenter", DRNSegmenter(make(19), 512, 19)


def small() -> Any:
    """Yield (source, kind, output stride, network) for small networks of every kind."""
    yield "torchvision:resnet18", "basic", 32, small_resnet(resnet.BasicBlock, 32)
    for stride in (32, 16, 8):
        yield "torchvision:resnet50", "bottleneck", stride, small_resnet(resnet.Bottleneck, stride)
        head = fcn.FCNHead(4 * WIDTHS[3], CLASSES)
        yield "torchvision:fcn_resnet50", "fcn", stride, on_resnet(fcn.FCN, head, stride)
        head = deeplabv3.DeepLabHead(4 * WIDTHS[3], CLASSES, RATES[stride])
        yield "torchvision:deeplabv3_resnet50", "deeplabv3", stride, on_resnet(deeplabv3.DeepLabV3, head, stride)
    for arch, wide in (("C", False), ("D", False), ("D", True)):
        name = f"drn:drn_{arch.lower()}_{'54' if wide else '22' if arch == 'D' else '26'}"

        def make(arch=arch, wide=wide):
            return DRN(arch, DRN_WIDTHS, DRN_BLOCKS, wide, CLASSES)

        yield name, f"drn {arch}{' wide' if wide else ''}", 8, make()
        yield f"{name}_segmenter", f"drn {arch}{' wide' if wide else ''} segmenter", 8, DRNSegmenter(make(), DRN_WIDTHS[-1], CLASSES)


def shapes_of(net: Any) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in net.state_dict().items()}


def main() -> None:
    about: dict[str, Any] = {"published": {source: shapes_of(net) for source, net in published()}, "small": []}
    arrays = {"x": np.random.default_rng(0).normal(0.2, 1, (1, 48, 72, 3)).astype(np.float32)}
    for seed, (source, kind, stride, net) in enumerate(small()):
        shapes = shapes_of(net)
        net.load_state_dict({name: torch.tensor(value) for name, value in random_state(shapes, seed).items()})
        with torch.no_grad():
            y = net.double().eval()(torch.tensor(np.moveaxis(arrays["x"], -1, 1), dtype=torch.float64))
        output = np.moveaxis((y["out"] if isinstance(y, dict) else y).numpy(), 1, -1)
        # Every seventh pixel is enough, and keeps the file small.
        arrays[f"y{seed}"] = (output if output.ndim == 2 else output[:, 9:-8:7, 9:-8:7]).astype(np.float32)
        about["small"].append({"source": source, "kind": kind, "output_stride": stride, "seed": seed, "shapes": shapes})
    path = Path(__file__).parent / "networks.npz"
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    main()
