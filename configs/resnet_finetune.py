"""A few images of your own, from weights of ImageNet: ResNet-18 with a new head, all else frozen. Not measured.

    python -m train.convert --from torchvision:resnet18 resnet18-f37072fd.pth --workdir runs/resnet18
    python -m train.main --config configs/resnet_finetune.py --data FOLDER

FOLDER holds a folder of images for each class. torchvision publishes the file of weights at https://download.pytorch.org/models/; reading
it needs torch. Another network: --config.model.name=resnet50 --config.init_from=runs/resnet50. To train all layers, gently:
--config.frozen="()" --config.optim.lr=1e-4.
"""

from ml_collections import ConfigDict

from dilax import weights
from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.images import SUFFIXES


def get_config(data: str = "") -> ConfigDict:
    config = default_config("resnet_finetune")
    config.data.name = "folder"
    config.data.image_size = 224
    config.data.mean, config.data.std = weights.IMAGENET_MEAN, weights.IMAGENET_STD
    config.model = ConfigDict(model_config("resnet18"))
    config.init_from = "runs/resnet18"
    config.head_reset = True
    config.frozen = ("^(?!head/)",)
    config.augment.flip = True
    config.augment.scale = 0.2
    config.optim.lr = 3e-3
    if data:
        config.data.dir = data
        own_data.scale_to_labelled(config, user_path(data), sorted(SUFFIXES), most_steps=2000)
    return config
