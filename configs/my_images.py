"""Your own images: a folder for each class, or train/ and test/ with such folders. Not measured.

    python -m train.main --config configs/my_images.py --data FOLDER
    python -m train.predict --workdir runs/my_images new.jpg

Image size, batch and epochs follow from the files. Images are mirrored at random; where left and right matter, as in digits and letters,
add --config.augment.flip=false. For few images per class, configs/resnet_finetune.py starts from published weights.
"""

from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.images import SUFFIXES


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_images")
    config.data.name = "folder"
    config.data.image_size = 64
    config.model = ConfigDict(model_config("separable_cnn", stem_features=32, features=(64, 128, 192), blocks=(1, 1, 1), dropout=0.2))
    config.augment.flip = True
    config.augment.scale = 0.2
    config.optim.lr = 2e-3
    if data:
        config.data.dir = data
        folder = user_path(data)
        own_data.scale_to_labelled(config, folder, sorted(SUFFIXES))
        config.data.image_size = own_data.image_side(folder, longer=False, limits=(8, 96))
    return config
