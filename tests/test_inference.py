"""What a trained model says of itself, and methods that do not fit what it was trained for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dilax
from dilax.errors import UserError

IMAGES = np.zeros((2, 8, 8, 3), np.uint8)
# Method -> arguments, and the tasks that it fits.
METHODS = {
    "classify": ((IMAGES,), "classification or sequence_classification"),
    "segment": ((IMAGES,), "segmentation"),
    "restore": ((IMAGES[0],), "restoration"),
    "separate": ((np.zeros(9, np.float32),), "separation"),
    "sample": ((np.zeros((1, 3), np.int32), 2), "language_model or waveform"),
    "forecast": ((np.zeros((5, 2)), 2), "sequence_prediction"),
}


def inference(task: str, classes: int = 3) -> dilax.Inference:
    model = dilax.models.create("dilated_cnn", num_classes=classes, features=(4,), dilations=(1,), pools=(2,))
    variables = jax.jit(lambda key, x: model.init(key, x, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    spec = dilax.DataSpec("flowers", (8, 8, 3), tuple(f"class{i}" for i in range(classes)), 10)
    return dilax.Inference(model, variables, spec, task=task)


def test_it_is_printed_in_a_line():
    names = "'class0', 'class1', 'class2'"
    shown = f"Inference(task='classification', model=DilatedCNN, data='flowers', input_shape=(8, 8, 3), outputs=({names}))"
    assert repr(inference("classification")) == shown
    assert repr(inference("classification", classes=200)).endswith("'class8', and 191 more))")


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_another_task_are_refused(method):
    given, tasks = METHODS[method]
    other = "separation" if method != "separate" else "segmentation"
    with pytest.raises(UserError) as caught:
        getattr(inference(other), method)(*given)
    assert str(caught.value) == f"{method}: this run was trained for {other}, not for {tasks}; use predict, which fits every run."


def test_methods_of_the_task_are_not_refused():
    assert len(inference("classification").classify(IMAGES)) == 2
    assert len(inference("").classify(IMAGES)) == 2  # what was not loaded from a run


def test_a_table_may_hold_any_rows():
    """A list of rows is one table; a list of tables is several."""
    model = dilax.models.create("tcn", out_features=2, kernel_size=2, features=(4,))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 2)), train=False)
    spec = dilax.DataSpec("table", (9, 2), ("warm", "wet"), 10, mean=(0.0, 0.0), std=(1.0, 1.0))
    run = dilax.Inference(model, variables, spec, task="sequence_prediction")
    values = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    expected = run.predict(values, steps=np.int64(3))  # pyright: ignore[reportArgumentType]
    assert expected.shape == (3, 2)
    for same in (values.tolist(), [tuple(row) for row in values.tolist()], [tuple(row) for row in values]):
        np.testing.assert_allclose(run.predict(same, steps=3), expected, rtol=1e-6)
    for several in ([values, values[:4]], [values.tolist(), values[:4].tolist()]):
        assert [len(one) for one in run.predict(several, steps=3)] == [3, 3]
    for steps in (0, True, 2.5, "3"):
        with pytest.raises(UserError, match=r"^predict: steps="):
            run.predict(values, steps=steps)  # pyright: ignore[reportArgumentType]
