"""Models by name, such as `create("dilated_cnn", num_classes=10)`; the argument `train` of `__call__(x, *, train)` is always required."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from dilax.errors import UserError, did_you_mean, shown
from dilax.models.bytenet import ByteNet
from dilax.models.cnn import DilatedCNN, SeparableCNN
from dilax.models.conv_tasnet import ConvTasNet
from dilax.models.deeplab import DeepLabV3, DeepLabV3Plus
from dilax.models.densenet import DenseNet
from dilax.models.detector import Detections, Detector, PointDetector
from dilax.models.drn import DRN
from dilax.models.efficientnet import EfficientNet
from dilax.models.fcn import FCN, LRASPP
from dilax.models.fcos import FCOS
from dilax.models.fully_convolutional import DilatedFCN
from dilax.models.gated_dilated_cnn import GatedDilatedCNN
from dilax.models.highres3dnet import HighRes3DNet
from dilax.models.id_cnn import IDCNN
from dilax.models.ircnn import IRCNN
from dilax.models.meshnet import MeshNet
from dilax.models.mobilenet import MobileNetV2
from dilax.models.mobilenet_v3 import MobileNetV3
from dilax.models.ms_tcn import MSTCN
from dilax.models.resnet import ResNet
from dilax.models.retinanet import RetinaNet
from dilax.models.segmenter import Segmenter
from dilax.models.separable_detector import SeparableDetector
from dilax.models.separable_tcn import SeparableTCN
from dilax.models.tcn import TCN
from dilax.models.trident import TridentDetector
from dilax.models.unet import UNet, UNetEncoder
from dilax.models.wavenet import WaveNet
from dilax.models.xception import Xception
from dilax.models.yolof import YOLOF

MODELS: dict[str, Callable[..., nn.Module]] = {
    "bytenet": ByteNet,
    "conv_tasnet": ConvTasNet,
    "densenet121": DenseNet,
    "dilated_cnn": DilatedCNN,
    "dilated_cnn_mnist": DilatedCNN.mnist,
    "dilated_cnn_rgb": DilatedCNN.rgb,
    "dilated_fcn": DilatedFCN,
    "drn_c_26": functools.partial(DRN, architecture="C"),
    "drn_c_42": functools.partial(DRN, architecture="C", blocks=(1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_22": DRN,
    "drn_d_38": functools.partial(DRN, blocks=(1, 1, 3, 4, 6, 3, 1, 1)),
    "drn_d_54": functools.partial(DRN, blocks=(1, 1, 3, 4, 6, 3, 1, 1), bottleneck=True),
    "drn_d_105": functools.partial(DRN, blocks=(1, 1, 3, 4, 23, 3, 1, 1), bottleneck=True),
    "efficientnet_b0": EfficientNet,
    "gated_dilated_cnn": GatedDilatedCNN,
    "highres3dnet": HighRes3DNet,
    "id_cnn": IDCNN,
    "ircnn": IRCNN,
    "meshnet": MeshNet,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_large": MobileNetV3,
    "ms_tcn": MSTCN,
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNet,
    "resnet101": functools.partial(ResNet, blocks=(3, 4, 23, 3)),
    "separable_cnn": SeparableCNN,
    "separable_cnn_single_layer": SeparableCNN.single_layer,
    "separable_ircnn": functools.partial(IRCNN, separable=True),
    "separable_detector": SeparableDetector,
    "separable_tcn": SeparableTCN,
    "seresnet50": functools.partial(ResNet, squeeze_excite=True),
    "tcn": TCN,
    "wavenet": WaveNet,
    "xception": Xception,
    "xception_slim": functools.partial(
        Xception, stem_features=(16, 32), entry_features=(48, 96, 192), middle_blocks=4, exit_features=(192, 256, 256, 320, 320, 384)
    ),
}
DRNS = ("drn_c_26", "drn_c_42", "drn_d_22", "drn_d_38", "drn_d_54", "drn_d_105")
BACKBONES = (
    *DRNS,
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "seresnet50",
    "xception",
    "xception_slim",
)
MODELS |= {
    "deeplabv3_resnet50": DeepLabV3,
    "deeplabv3_resnet101": functools.partial(DeepLabV3, backbone=MODELS["resnet101"]),
    **{f"deeplabv3plus_{name}": functools.partial(DeepLabV3Plus, backbone=MODELS[name]) for name in BACKBONES if name not in DRNS},
    # DRNs are designed for output stride 8; at a coarser one they are different networks.
    **{f"deeplabv3plus_{name}": functools.partial(DeepLabV3Plus, backbone=MODELS[name], output_stride=8) for name in DRNS},
    **{f"{name}_segmenter": functools.partial(Segmenter, backbone=MODELS[name], dropout=0.0) for name in DRNS},
    "fcn_resnet50": FCN,
    "fcn_resnet101": functools.partial(FCN, backbone=MODELS["resnet101"]),
    "fcos_resnet18_fpn": functools.partial(FCOS, backbone=MODELS["resnet18"]),
    "fcos_resnet50_fpn": FCOS,
    "lraspp_mobilenet_v2": functools.partial(LRASPP, backbone=MobileNetV2),
    "retinanet_resnet18_fpn": functools.partial(RetinaNet, backbone=MODELS["resnet18"]),
    "retinanet_resnet50_fpn": RetinaNet,
    "trident_resnet50": TridentDetector,
    "unet_dilated": UNet,
    "yolof_resnet18": functools.partial(YOLOF, backbone=MODELS["resnet18"]),
    "yolof_resnet50": YOLOF,
}

__all__ = [
    "DRN",
    "FCN",
    "FCOS",
    "IDCNN",
    "IRCNN",
    "LRASPP",
    "MODELS",
    "MSTCN",
    "TCN",
    "YOLOF",
    "ByteNet",
    "ConvTasNet",
    "DeepLabV3",
    "DeepLabV3Plus",
    "DenseNet",
    "Detections",
    "Detector",
    "DilatedCNN",
    "DilatedFCN",
    "EfficientNet",
    "GatedDilatedCNN",
    "HighRes3DNet",
    "MeshNet",
    "MobileNetV2",
    "MobileNetV3",
    "PointDetector",
    "ResNet",
    "RetinaNet",
    "Segmenter",
    "SeparableCNN",
    "SeparableDetector",
    "SeparableTCN",
    "TridentDetector",
    "UNet",
    "UNetEncoder",
    "WaveNet",
    "Xception",
    "create",
    "names",
    "output_fields",
    "symbol_fields",
]


_OUTPUTS = ("num_classes", "out_features", "sources", "vocabulary")


def names() -> list[str]:
    """Return the names that `create` knows, sorted."""
    return sorted(MODELS)


def create(name: str, /, **fields: Any) -> nn.Module:
    """Create a model by its name.

    Args:
        name: One of `names()`.
        **fields: Attributes of the model, such as `num_classes`.

    Returns:
        A Flax module whose `__call__` takes `(x, *, train)`.

    Raises:
        UserError: if the name, or a field, is unknown.

    Example:
        >>> create("dilated_cnn", num_classes=10).num_classes
        10
    """
    known = _fields("create", name)
    for field in fields:
        if field not in known:
            raise UserError(f"models.create: {name!r} has no field {field!r}; it has {', '.join(known)}.{did_you_mean(field, known)}")
    return MODELS[name](**fields)


def output_fields(name: str) -> tuple[str, ...]:
    """Return the fields of a model that hold its number of outputs.

    The fields are named after the outputs: `num_classes` for an image, a pixel or a sequence, `out_features` for each step of a sequence,
    `sources` for a mixture, or `vocabulary` if the outputs are logits of the same symbols that the model reads. (With outputs="mixture",
    the number of outputs of a WaveNet is determined by `mixtures` instead.)

    Args:
        name: One of `names()`.

    Raises:
        UserError: if the name is unknown.

    Example:
        >>> output_fields("resnet50"), output_fields("tcn"), output_fields("bytenet")
        (('num_classes',), ('out_features',), ('vocabulary',))
    """
    known = _fields("output_fields", name)
    return next(((field,) for field in _OUTPUTS if field in known), ())


def symbol_fields(name: str) -> tuple[str, ...]:
    """Return the fields of a model that hold the number of symbols of its input; () if it does not take integer codes.

    Args:
        name: One of `names()`.

    Raises:
        UserError: if the name is unknown.

    Example:
        >>> symbol_fields("tcn"), symbol_fields("resnet50")
        (('vocabulary',), ())
    """
    return tuple(field for field in ("vocabulary",) if field in _fields("symbol_fields", name))


def _fields(caller: str, name: str) -> list[str]:
    """Return the fields that a model can be created with."""
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"models.{caller}: unknown model {shown(name)}; dilax.models.names() lists them.{did_you_mean(str(name), MODELS)}")
    return [field for field in inspect.signature(MODELS[name]).parameters if field not in ("parent", "name")]
