"""Your own images with boxes, as annotation tools export them: Pascal VOC's .xml files, or .json files of COCO. Not measured.

    python -m train.main --config configs/my_boxes.py --data FOLDER
    python -m train.predict --workdir runs/my_boxes new.jpg

FOLDER holds JPEGImages/ and Annotations/ with an .xml file for each image; or train/ and test/ with a .json file each beside its images, or
one such file with all images. Image size, batch and epochs follow from the files; the classes are those of the boxes.
"""

from ml_collections import ConfigDict

from dilax.files import user_path
from train import own_data
from train.config import default_config, model_config
from train.data.box_sets import count_training
from train.data.readers import voc


def get_config(data: str = "") -> ConfigDict:
    config = default_config("my_boxes", task="detection")
    config.data.name = "voc_xml"
    config.data.image_shape = (320, 320)
    config.model = ConfigDict(model_config("separable_detector"))
    config.augment.flip = True
    config.augment.scale = 0.3
    config.augment.colour = 0.2
    config.optim.lr = 2e-3
    config.optim.clip_norm = 5.0
    config.optim.ema_decay = 0.99
    if data:
        config.data.dir = data
        folder = user_path(data)
        if folder.is_dir() and not (folder / voc.ANNOTATIONS).is_dir():
            config.data.name = "coco_json"
        examples, own_validation = count_training(config.data)
        own_data.scale_to(config, examples, own_validation=own_validation, largest_batch=4, fewest_steps=1000)
        config.data.image_shape = own_data.image_shape(folder, longest=320, unit=16)
    return config
