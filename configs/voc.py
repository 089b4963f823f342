"""PASCAL VOC 2012 (20 classes and background) with DeepLabV3+ on ResNet-50: a recipe for accelerators. Not measured.

    python -m train.main --config configs/voc.py --config.data.dir=VOCdevkit/VOC2012

The set `voc` of TFDS holds boxes but no masks, so this reads the folder of the official archive: ImageSets/Segmentation names 1,464 images
to train on and 1,449 that serve as the test split. For weights of ImageNet, from a run that train.convert made, give
--config.init_from=RUN --config.init_into=backbone with --config.data.mean=0.485,0.456,0.406 --config.data.std=0.229,0.224,0.225.
"""

from ml_collections import ConfigDict

from train.config import check_variant, default_config, model_config

CLASS_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa "
    "train tvmonitor"
)


def get_config(variant: str = "full") -> ConfigDict:
    check_variant(__file__, variant, ("full", "smoke"))
    config = default_config("voc", task="segmentation")
    config.data.name = "folder"
    config.data.dir = "VOCdevkit/VOC2012"
    config.data.image_field = "JPEGImages"
    config.data.mask_field = "SegmentationClass"
    config.data.lists = "ImageSets/Segmentation"
    config.data.class_names = tuple(CLASS_NAMES.split())
    config.data.image_size = 500  # the longer side of every image of VOC, so that none is resampled
    config.data.validation = 0.05
    config.data.memory_mb = 4096
    config.model = ConfigDict(model_config("deeplabv3plus_resnet50", output_stride=16, aux_head=True, dropout=0.1))
    config.batch_size = 16
    config.total_epochs = 100.0
    config.eval_every_epochs = 5.0
    config.dtype = "bfloat16"
    config.augment.crop = (513, 513)
    config.augment.scale = 1.0
    config.augment.flip = True
    config.augment.colour = 0.3
    config.optim.name = "sgd"
    config.optim.lr = 0.05
    config.optim.warmup_epochs = 3.0
    config.optim.weight_decay = 1e-4
    config.optim.ema_decay = 0.999
    if variant == "smoke":
        config.name = "voc_smoke"
        config.model = ConfigDict(model_config("dilated_fcn", features=(16, 32, 32), strides=(2, 2, 2), dilations=(1, 1, 2)))
        config.batch_size = 8
        config.total_epochs = 0.02
        config.dtype = "float32"
        config.augment.crop = (129, 129)
    return config
