"""Images with boxes: read from files of VOC, COCO and TFDS, checked, fitted and split."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from dilax.errors import UserError
from train.data.box_sets import BOX_KEYS, open_boxed
from train.data.readers import shapes
from train.data.source import field, gather

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data" / "bccd"
NAMES = ("cup", "dog", "ox")
COLOURS = np.array([[250, 40, 40], [40, 250, 40], [40, 40, 250]], np.uint8)


def load(folder: pathlib.Path | None = None, **changes: Any) -> Any:
    defaults = {name.removeprefix("data."): key.default for name, key in BOX_KEYS.items()}
    config = ConfigDict({**defaults, **dict(name="voc_xml", dir=str(folder or ""), validation=0.25, memory_mb=2048, workers=0)})
    config.update({"download": False, **changes})
    return open_boxed(config, seed=0)


def pictured(seed: int, size: tuple[int, int] = (24, 40), most: int = 3) -> tuple[np.ndarray, list[tuple[str, list[int]]]]:
    """An image that tells its own objects: each is filled with the colour of its class, in columns that do not overlap."""
    rng = np.random.default_rng(seed)
    image, objects, wide = np.full((*size, 3), 90, np.uint8), [], size[1] // most
    for i in range(int(rng.integers(1, most + 1))):
        left, top = i * wide + int(rng.integers(0, 3)), int(rng.integers(0, size[0] // 2))
        right, bottom = left + int(rng.integers(5, wide - 3)), top + int(rng.integers(5, size[0] // 2))
        label = int(rng.integers(0, 3))
        image[top:bottom, left:right] = COLOURS[label]
        objects.append((NAMES[label], [left, top, right, bottom]))
    return image, objects


def xml(objects: Any, size: tuple[int, ...] = (24, 40), difficult: int = -1) -> str:
    """An annotation; that of the object number `difficult` is marked so."""
    parts = [
        f"<object><name>{name}</name><difficult>{int(i == difficult)}</difficult><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin>"
        f"<xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
        for i, (name, box) in enumerate(objects)
    ]
    shape = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation><filename>x</filename>{shape}{''.join(parts)}</annotation>"


def write_voc(folder: pathlib.Path, count: int = 20, lists: dict[str, range] | None = None, **options: Any) -> pathlib.Path:
    for name in ("JPEGImages", "Annotations", *["ImageSets/Main"] * bool(lists)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, objects = pictured(i)
        Image.fromarray(image).save(folder / "JPEGImages" / f"{i:02}.png")
        (folder / "Annotations" / f"{i:02}.xml").write_text(xml(objects, **options))
    for split, part in (lists or {}).items():
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{i:02}\n" for i in part))
    return folder


def coco_of(images: range, categories: tuple[int, ...] = (7, 3, 11)) -> dict[str, Any]:
    """The categories are listed in another order than that of their numbers, which is that of their names."""
    listed = dict(zip(sorted(categories), NAMES))
    annotations = [
        {"image_id": i, "category_id": number, "bbox": [left, top, right - left, bottom - top], "iscrowd": int(i == 1)}
        for i in images
        for name, (left, top, right, bottom) in pictured(i)[1]
        for number in [next(number for number, each in listed.items() if each == name)]
    ]
    entries = [{"id": i, "file_name": f"{i:02}.png", "height": 24, "width": 40} for i in images]
    return {"images": entries, "annotations": annotations, "categories": [{"id": i, "name": listed[i]} for i in categories]}


def write_coco(folder: pathlib.Path, parts: dict[str, tuple[str, range]]) -> pathlib.Path:
    """Write {file: (folder of its images, their numbers)}."""
    for file, (place, images) in parts.items():
        for path in (folder / place, (folder / file).parent):
            path.mkdir(parents=True, exist_ok=True)
        for i in images:
            Image.fromarray(pictured(i)[0]).save(folder / place / f"{i:02}.png")
        (folder / file).write_text(json.dumps(coco_of(images)))
    return folder


def check_records(source: Any, names: tuple[str, ...] = NAMES) -> None:
    """Every box encloses the pixels of its colour, as far as scaling left them pure, and no others."""
    batch = gather(source, np.arange(len(source)))
    assert {name: batch[name].dtype.name for name in batch} == {
        **{"image": "uint8", "boxes": "float32", "classes": "int32"},
        **{"box_mask": "bool", "crowd": "bool"},
    }
    for image, boxes, classes, mask in zip(*(batch[name] for name in ("image", "boxes", "classes", "box_mask"))):
        assert mask.any() and (boxes[~mask] == 0).all() and (classes[~mask] == 0).all()
        covered = np.zeros(image.shape[:2], bool)
        for box, label in zip(boxes[mask], classes[mask]):
            left, top, right, bottom = np.round(box).astype(int)
            inside = image[top:bottom, left:right].astype(int)
            centre = inside[inside.shape[0] // 2, inside.shape[1] // 2]
            assert np.abs(centre - COLOURS[NAMES.index(names[label])]).max() < 60
            covered[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1] = True
        assert np.ptp(image[~covered].astype(int), axis=-1).max(initial=0) < 40, "colour outside of the boxes"


# Layouts


def voc_with_lists(folder: pathlib.Path) -> Any:
    return load(write_voc(folder, lists={"train": range(12), "val": range(12, 16), "test": range(16, 20), "trainval": range(16)}))


def voc_without_test(folder: pathlib.Path) -> Any:
    return load(write_voc(folder, 19, lists={"train": range(15), "val": range(15, 19)}))


def coco_official(folder: pathlib.Path) -> Any:
    files = {
        f"annotations/instances_{name}2017.json": (f"{name}2017", part) for name, part in (("train", range(15)), ("val", range(15, 19)))
    }
    (write_coco(folder, files) / "annotations" / "person_keypoints_train.txt").write_text("not read")
    return load(folder, name="coco_json")


def coco_in_folders(folder: pathlib.Path) -> Any:
    parts = {"train": range(12), "valid": range(12, 16), "test": range(16, 20)}
    return load(write_coco(folder, {f"{name}/_annotations.coco.json": (name, part) for name, part in parts.items()}), name="coco_json")


LAYOUTS = {
    "VOC with lists": (voc_with_lists, (12, 4, 4)),
    "VOC without a test split": (voc_without_test, (11, 4, 4)),
    "VOC without lists": (lambda folder: load(write_voc(folder)), (12, 4, 4)),
    "COCO as published": (coco_official, (11, 4, 4)),
    "COCO in folders": (coco_in_folders, (12, 4, 4)),
    "COCO in one file": (lambda folder: load(write_coco(folder, {"a.json": ("images", range(20))}), name="coco_json"), (12, 4, 4)),
    "made-up shapes": (lambda folder: load(name="shapes"), (120, 24, 24)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_its_boxes(tmp_path, layout):
    read, sizes = LAYOUTS[layout]
    splits = read(tmp_path)
    assert tuple(len(one) for one in (splits.train, splits.validation, splits.test)) == sizes
    counts = {one[0]["boxes"].shape for one in (splits.train, splits.validation, splits.test)}
    assert len(counts) == 1  # room for as many boxes, whatever the split
    if layout != "made-up shapes":
        assert splits.spec.outputs == NAMES
        for split in (splits.train, splits.validation, splits.test):
            check_records(split)
        ((most, _),) = counts
        assert any(field(one, "box_mask").sum(1).max() == most for one in (splits.train, splits.validation, splits.test))


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("shape", [(36, 60), (20, 60), (60, 44)])
def test_boxes_move_with_their_images(tmp_path, shape, stretch):
    splits = load(write_voc(tmp_path), image_shape=shape, keep_aspect=not stretch)
    assert splits.spec.input_shape == (*shape, 3) and splits.spec.stretched == stretch
    check_records(splits.train)
    raw = load(tmp_path)
    least = min(shape[1] / 40, shape[0] / 24)
    scale = [shape[1] / 40, shape[0] / 24] * 2 if stretch else [least] * 4
    np.testing.assert_allclose(field(splits.train, "boxes"), field(raw.train, "boxes") * scale, rtol=0.02)
    if not stretch:  # what is padded is grey
        height, width = (round(side * least) for side in (24, 40))
        image = gather(splits.train, np.arange(3))["image"]
        assert (image[:, height:] == 128).all() and (image[:, :, width:] == 128).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_streamed_records_are_those_in_memory(tmp_path, workers):
    write_voc(tmp_path, lists={"train": range(12), "val": range(12, 16), "test": range(16, 20)})
    held, streamed = (load(tmp_path, image_shape=(30, 30), memory_mb=size, workers=workers) for size in (2048, 0))
    assert not hasattr(streamed.train, "gather")
    for name, values in gather(held.train, np.arange(12)).items():
        np.testing.assert_array_equal(gather(streamed.train, np.arange(12))[name], values)
        if name != "image":
            np.testing.assert_array_equal(field(streamed.train, name), values)


def test_crowds_and_difficult_objects_are_marked(tmp_path):
    voc = load(write_voc(tmp_path / "voc", difficult=0), validation=0)
    assert voc.validation is None
    crowd, mask = field(voc.test, "crowd"), field(voc.test, "box_mask")
    assert crowd[:, 0].all() and not crowd[:, 1:].any() and mask[:, 0].all()
    coco = load(write_coco(tmp_path / "coco", {"a.json": (".", range(20))}), name="coco_json", validation=0)
    every = [(one, file) for part in (coco.train, coco.test) for one, file in zip(field(part, "crowd"), part.files)]
    assert {file for one, file in every if one.any()} == {"01.png"}


def test_the_size_is_read_from_the_image_where_the_annotation_does_not_give_it(tmp_path):
    with_size, without = load(write_voc(tmp_path / "a")), load(write_voc(tmp_path / "b", size=()))
    np.testing.assert_array_equal(field(with_size.train, "boxes"), field(without.train, "boxes"))


def test_class_names_are_in_the_order_given(tmp_path):
    write_voc(tmp_path)
    splits = load(tmp_path, class_names=("ox", "dog", "cup"))
    check_records(splits.train, ("ox", "dog", "cup"))


def test_boxes_without_area_are_left_out_and_others_cut_off(tmp_path, capsys):
    write_voc(tmp_path, lists={"train": range(12), "test": range(12, 20)})
    objects = [("dog", [3, 4, 9, 9]), ("ox", [7, 7, 7, 9]), ("cup", [-5, 2, 4, 30]), ("cup", [41, 2, 44, 9])]
    (tmp_path / "Annotations" / "03.xml").write_text(xml(objects))
    train = load(tmp_path, validation=0).train
    assert train.arrays["boxes"][3][train.arrays["box_mask"][3]].tolist() == [[3, 4, 9, 9], [0, 2, 4, 24]]
    total = sum(len(pictured(i)[1]) for i in range(20) if i != 3) + 4
    where = tmp_path / "Annotations" / "03.xml"
    assert capsys.readouterr().err.splitlines() == [
        f"note: 2 of {total} boxes are left out, since they have no area inside their image: {where} (7, 7, 7, 9); {where} (41, 2, 44, 9)",
        f"note: 1 of {total} boxes are cut off at the edge of their image: {where} (-5, 2, 4, 30)",
    ]


def test_a_class_without_a_box_for_training_is_named(tmp_path, capsys):
    write_voc(tmp_path)
    load(tmp_path, class_names=(*NAMES, "cow"))
    assert capsys.readouterr().err == "note: the training split has no box of cow.\n"


def test_damaged_images_are_skipped_if_asked(tmp_path, capsys):
    write_voc(tmp_path, lists={"train": range(12), "test": range(12, 20)})
    (tmp_path / "JPEGImages" / "03.png").write_bytes(b"not an image")
    assert len(load(tmp_path, validation=0, on_bad="skip").train) == 11
    assert "note: 1 of 12 images for train are left out, since they cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"03\.png cannot be read as an image"):
        load(tmp_path, validation=0)


# Mistakes


def edit(file: str, content: str | None) -> Any:
    """A change of the folder: a file with other content, or without it."""

    def change(folder: pathlib.Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(content)

    return change


VOC = {
    "an image without an annotation": (edit("Annotations/03.xml", None), "{0}/JPEGImages/03.png has no 03.xml in {0}/Annotations; mark its objects, or remove it."),
    "not XML": (edit("Annotations/03.xml", "<annotation><object>"), "{0}/Annotations/03.xml is not XML (no element found: line 1, column 20); repair it, or export it again."),
    "other XML": (edit("Annotations/03.xml", "<svg/>"), "{0}/Annotations/03.xml has <svg> at its root, and an annotation of Pascal VOC has <annotation>; export it as such."),
    "an empty file": (edit("Annotations/03.xml", ""), "{0}/Annotations/03.xml is empty; give an annotation of Pascal VOC with content."),
    "no name": (edit("Annotations/03.xml", xml([(" ", [1, 2, 3, 4])])), "{0}/Annotations/03.xml: object 1 has no <name>; name its class."),
    "a corner that is not a number": (edit("Annotations/03.xml", xml([("ox", [1, 2, 9, 9]), ("ox", [1, 2, "x", 9])])), "{0}/Annotations/03.xml: object 2 (ox) has no number as <bndbox><xmax>; correct it."),
    "a corner that is not finite": (edit("Annotations/03.xml", xml([("ox", [1, "nan", 9, 9])])), "{0}/Annotations/03.xml: object 1 (ox) has no number as <bndbox><ymin>; correct it."),
    "boxes of another image": (edit("Annotations/03.xml", xml([("ox", [1, 2, 9, 9])], size=(48, 80))), "{0}/Annotations/03.xml marks an image of 80 x 48 pixels, and its image has 40 x 24; give the boxes of that image."),
    "no folder": (lambda folder: (folder / "Annotations").rename(folder / "labels"), 'there is no folder {0}/Annotations; data.name="voc_xml" reads JPEGImages/ and Annotations/ below config.data.dir.'),
}  # fmt: skip
VOC["a list with a missing image"] = (
    lambda folder: [edit(f"ImageSets/Main/{name}.txt", text)(folder) for name, text in (("train", "00\n77\n"), ("val", "01\n"))],
    "{0}/ImageSets/Main/train.txt names 77, but {0}/JPEGImages does not hold it; add it, or correct the list.",
)
VOC["a list with an image without an annotation"] = (
    lambda folder: [
        edit("Annotations/03.xml", None)(folder),
        *(edit(f"ImageSets/Main/{name}.txt", text)(folder) for name, text in (("train", "00\n03\n"), ("val", "01\n"))),
    ],
    "{0}/ImageSets/Main/train.txt names 03, but {0}/Annotations does not hold it; add it, or correct the list.",
)


@pytest.mark.parametrize("name", VOC)
def test_a_mistake_in_a_folder_of_voc_is_one_line(tmp_path, name):
    change, text = VOC[name]
    change(write_voc(tmp_path))
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value) == text.format(tmp_path)


def test_a_class_that_is_not_known_is_one_line(tmp_path):
    write_voc(tmp_path, lists={"train": range(12), "test": range(12, 20)})
    edit("Annotations/15.xml", xml([("dogg", [1, 2, 9, 9])]))(tmp_path)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/Annotations/15.xml has an object of the class 'dogg', which is not one of the 3 classes cup, dog, ox; correct it, or "
        'name all classes in config.data.class_names. Did you mean "dog"?'
    )


def changed(**changes: Any) -> str:
    return json.dumps({**coco_of(range(20)), **changes})


ANNOTATION = {"image_id": 0, "category_id": 3, "bbox": [1, 2, 3, 4]}
COCO = {
    "not JSON": ("{", "{0}/a.json is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); repair it, or export it again."),
    "a list": ("[]", '{0}/a.json has no list "images", and is not a file of COCO\'s instances; export it as such.'),
    "captions": (changed(annotations=[{"image_id": 0, "caption": "a dog"}]), '{0}/a.json: annotations[0] has no "bbox"; correct it.'),
    "an image that is not there": (changed(annotations=[{**ANNOTATION, "image_id": 99}]), "{0}/a.json: an annotation has image_id=99, and none of its 20 images has that id; correct it."),
    "a category that is not there": (changed(annotations=[{**ANNOTATION, "category_id": 4}]), "{0}/a.json: an annotation has category_id=4, and its categories are 3, 7, 11; correct it."),
    "three edges": (changed(annotations=[{**ANNOTATION, "bbox": [1, 2, 3]}]), "{0}/a.json: an annotation has bbox=[1, 2, 3]; give [x, y, width, height] in pixels."),
    "an edge of words": (changed(annotations=[{**ANNOTATION, "bbox": [1, 2, 3, "4"]}]), "{0}/a.json: an annotation has bbox=[1, 2, 3, '4']; give [x, y, width, height] in pixels."),
    "two ids alike": (changed(categories=[{"id": 3, "name": "cup"}] * 2), "{0}/a.json: two of its categories have the same id; give each one of its own."),
    "two names alike": (changed(categories=[{"id": i, "name": "cup"} for i in (3, 7, 11)]), "{0}/a.json: two of its categories are called 'cup'; give each a name of its own."),
    "no width": (changed(images=[{"id": 0, "file_name": "00.png", "height": 24}]), '{0}/a.json: images[0] has no "width"; correct it.'),
    "no height": (changed(images=[{"id": 0, "file_name": "00.png", "height": 0, "width": 40}]), "{0}/a.json: images[0] has height=0; correct it."),
    "no images": (changed(images=[{"id": 0, "file_name": "77.png", "height": 24, "width": 40}], annotations=[]), "{0}/a.json names the image 77.png, which is in none of the folders {0}, {0}/images; put its images into one of them."),
    "a missing image": (changed(images=[{"id": i, "file_name": name, "height": 24, "width": 40} for i, name in ((0, "00.png"), (1, "77.png"))], annotations=[ANNOTATION]), "{0}/a.json names 77.png, but {0} does not hold it (1 such images); add it, or remove its entry."),
    "boxes of another image": (changed(images=[{"id": i, "file_name": f"{i:02}.png", "height": 24, "width": 41 - (i > 0)} for i in range(20)]), "00.png marks an image of 41 x 24 pixels, and its image has 40 x 24; give the boxes of that image."),
    "no boxes": (changed(annotations=[]), "data: the train split has no box that counts in its 16 images; mark the objects in some."),
}  # fmt: skip


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"), {"a.json": (".", range(20))})


@pytest.mark.parametrize("name", COCO)
def test_a_mistake_in_a_file_of_coco_is_one_line(coco_folder, name):
    content, text = COCO[name]
    (coco_folder / "a.json").write_text(content)
    with pytest.raises(UserError) as error:
        load(coco_folder, name="coco_json", validation=0)
    assert str(error.value) == text.replace("{0}", str(coco_folder))


def test_splits_of_other_categories_are_one_line(tmp_path):
    write_coco(tmp_path, {"train/a.json": ("train", range(12)), "test/b.json": ("test", range(12, 20))})
    content = coco_of(range(12, 20))
    content["categories"].append({"id": 20, "name": "cow"})
    (tmp_path / "test" / "b.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        load(tmp_path, name="coco_json")
    assert (
        str(error.value) == f"{tmp_path}/train/a.json and {tmp_path}/test/b.json must have the same categories; only one of them has cow."
    )


SETTINGS = {
    "no folder": (
        {"name": "voc_xml", "dir": ""},
        'data.name="voc_xml" needs data.dir to be a folder of images and boxes; "" is not a folder.',
    ),
    "one side": ({"image_shape": (240,)}, "config.data.image_shape=(240,) must be (height, width), each 16 pixels or more, or ()."),
    "small sides": ({"image_shape": (240, 8)}, "config.data.image_shape=(240, 8) must be (height, width), each 16 pixels or more, or ()."),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting_is_one_line(name):
    changes, text = SETTINGS[name]
    with pytest.raises(UserError) as error:
        load(**{"name": "shapes", **changes})
    assert str(error.value) == text


# TFDS


def test_tfds_boxes(tmp_path):
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    feature = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=list(NAMES)), "is_crowd": np.bool_}

    def info(self: Any) -> Any:
        features: Any = {"image": tfds.features.Image(shape=(None, None, 3)), "objects": tfds.features.Sequence(feature)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def examples(self: Any, images: range) -> Any:
        for i in images:
            image, objects = pictured(i)
            boxes = [
                {"bbox": tfds.features.BBox(top / 24, left / 40, bottom / 24, right / 40), "label": name, "is_crowd": i == 3}
                for name, (left, top, right, bottom) in objects
            ]
            yield i, {"image": Image.fromarray(image), "objects": boxes}

    parts: Any = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_split_generators": lambda self, _: {"train": examples(self, range(9)), "validation": examples(self, range(9, 13))},
        "_generate_examples": examples,
    }
    made: Any = type("Zoo", (tfds.core.GeneratorBasedBuilder,), parts)
    made(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    splits = load(tmp_path, name="zoo")
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [7, 2, 4]
    assert splits.spec.outputs == NAMES
    check_records(splits.train)
    assert sum(field(part, "crowd").any(1).sum() for part in (splits.train, splits.validation)) == 1
    with pytest.raises(UserError, match=r'there is no dataset "voc_xlm": TFDS does not know the name.* Did you mean "voc_xml"\?'):
        load(tmp_path, name="voc_xlm")


# Real and made-up sets


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data/bccd is not there")
def test_blood_cells_are_as_described(capsys):
    splits = load(SHARED, image_shape=(48, 64))
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [205, 87, 72]
    assert splits.spec.outputs == ("Platelets", "RBC", "WBC")
    parts = (splits.train, splits.validation, splits.test)
    assert sum(field(one, "box_mask").sum() for one in parts) == 4886
    assert "note: 2 of 4888 boxes are left out, since they have no area" in capsys.readouterr().err


def test_shapes_are_the_same_every_time():
    (images, objects), (again, _) = shapes.shapes("test"), shapes.shapes("test")
    np.testing.assert_array_equal(images, again)
    other, _ = shapes.shapes("validation")
    assert (images[0] != other[0]).any()
    for one in objects:
        for i, (left, top, right, bottom) in enumerate(one.boxes.tolist()):
            assert 0 <= left < right <= 96 and 0 <= top < bottom <= 64
            others = np.delete(one.boxes, i, 0)
            assert ((others[:, 0] >= right) | (others[:, 2] <= left) | (others[:, 1] >= bottom) | (others[:, 3] <= top)).all()
