"""Your own images and masks: folders images/ and masks/ with files of the same names. Not measured.

    python -m train.main --config configs/my_masks.py --data FOLDER
    python -m train.predict --workdir runs/my_masks new.jpg

Image size, batch, epochs and the values of the classes follow from the files. Names for the classes:
--config.data.class_names="('a', 'b')".
"""

from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.readers.files import list_files
from train.data.readers.images import SUFFIXES
from train.data.splits import divided


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_masks", task="segmentation")
    config.data.name = "folder"
    config.data.image_size = 256
    layers = dict(features=(16, 32, 64, 64, 64, 64, 64), strides=(2, 1, 2, 1, 1, 1, 1), dilations=(1, 1, 1, 2, 4, 8, 1))
    config.model = ConfigDict(model_config("dilated_fcn", **layers, separable=True, dropout=0.1))
    config.augment.flip = True
    config.augment.scale = 0.3
    config.augment.colour = 0.2
    config.segmentation.loss = "cross_entropy+dice"
    config.optim.lr = 3e-3
    if data:
        config.data.dir = data
        folder = user_path(data)
        parts = divided(folder)
        masks = (parts["train"] if parts else folder) / "masks"
        if not masks.is_dir():
            raise UserError(f"there is no folder {masks}; put the images into a folder images/ and their masks into masks/.")
        own_data.scale_to_files(config, len(list_files(masks, SUFFIXES)), parts, largest_batch=8)
        config.data.image_size = own_data.image_side(folder, longer=True, limits=(8, 256))
        config.data.mask_values = own_data.mask_values(masks, config.segmentation.ignored_label)
    return config
