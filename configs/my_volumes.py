"""Your own volumes and masks, NIfTI files: folders images/ and labels/ with files of the same names. Not measured.

    python -m train.main --config configs/my_volumes.py --data FOLDER
    python -m train.predict --workdir runs/my_volumes new.nii.gz

Patches, batch and epochs follow from the files. Names for the classes: --config.data.class_names="('background', 'tumour')"; limits of the
intensities of CT: --config.data.intensities="(-100, 300)". Reading NIfTI files requires nibabel.
"""

from ml_collections import ConfigDict

from dilax.errors import UserError
from dilax.files import user_path
from dilax.volumes import SUFFIXES
from train import own_data
from train.config import default_config, model_config
from train.data.readers.files import list_files
from train.data.splits import divided


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_volumes", task="segmentation")
    config.data.name = "volumes"
    config.model = ConfigDict(model_config("meshnet", features=16))
    config.augment.rotate = 10.0
    config.augment.scale = 0.1
    config.augment.colour = 0.1
    config.augment.noise = 0.02
    config.segmentation.loss = "cross_entropy+dice"
    config.optim.lr = 1e-2
    config.optim.ema_decay = 0.99
    if data:
        config.data.dir = data
        folder = user_path(data)
        parts = divided(folder)
        volumes = (parts["train"] if parts else folder) / "images"
        if not volumes.is_dir():
            raise UserError(f"there is no folder {volumes}; put the volumes into a folder images/ and their masks into labels/.")
        own_data.scale_to_files(config, len(list_files(volumes, SUFFIXES)), parts, largest_batch=2)
        config.augment.crop = own_data.patch_size(volumes, limits=(8, 64))
    return config
