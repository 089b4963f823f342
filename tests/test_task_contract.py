"""What the contract allows beyond means over examples: ratios of sums, kept predictions, several random streams, a teacher."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from dilax import DataSpec
from dilax.loading import leaves_with_paths
from train.build import build
from train.config import default_config, model_config
from train.data import Table
from train.score import score
from train.tasks.base import Batch, Loss, Scores, Sums, run_training
from train.tasks.classification import Classification

KEY = jax.random.key(3)
SHAPE, BATCH = (6, 6, 1), 16
SPEC = DataSpec("test", SHAPE, tuple("abcd"), 10 * BATCH)


class Positives(Classification):
    """Counts the examples of the last two classes alone, as detection counts the anchors that hit an object; keeps all its predictions."""

    def loss(self, model: nn.Module, variables: Any, batch: Batch, key: jax.Array, *, average: Any = None, teacher: Any = None) -> Loss:
        """Cross-entropy of the positives, and what the average of the parameters says of them."""
        outputs, collections = run_training(model, variables, self.inputs(batch, model), key, ("dropout", "noise"))
        positive = (batch["label"] >= 2).astype(jnp.float32)
        losses = self.losses(outputs, batch) * positive
        sums = {"loss": losses.sum()}
        if average is not None:
            teacher = self.outputs(model, average, batch)
            sums["teacher"] = jnp.sum(jax.lax.stop_gradient(teacher).argmax(-1) == batch["label"]).astype(jnp.float32)
        return Loss(sums, positive.sum(), collections)

    def evaluate(self, model: nn.Module, variables: Any, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        """Keep the logits of every example."""
        outputs = self.outputs(model, variables, batch)
        return {"count": batch["mask"].sum()}, {"logits": outputs, "label": batch["label"]}

    def metrics(self, scores: Scores) -> dict[str, float]:
        """The share of pairs of examples whose order by the first logit is right: no sum over examples gives it."""
        first, label = scores.kept["logits"][:, 0], scores.kept["label"]
        return {"pairs": float(np.mean((first[:, None] > first[None]) == (label[:, None] > label[None]))), "rows": float(len(label))}


def setup_of(**changes: Any) -> Any:
    config = default_config("test")
    config.model = ConfigDict(model_config("dilated_cnn", features=(4, 6), dilations=(1, 2), pools=(1, 1), norm="group", dropout=0.0))
    config.batch_size = BATCH
    config.optim.update(name="sgd", lr=0.1, warmup_epochs=0.0)
    config.update_from_flattened_dict(changes)
    return build(config, SPEC, task=Positives(config, SPEC))


def batch_of() -> dict[str, np.ndarray]:
    """Positives are spread unevenly over the parts and the devices."""
    rng = np.random.default_rng(0)
    label = np.array([0, 3, 1, 2, 0, 1, 0, 0, 3, 3, 2, 1, 0, 0, 1, 0], np.int32)
    return {"image": rng.integers(0, 256, (BATCH, *SHAPE), np.uint8), "label": label}


def step(setup: Any) -> tuple[Any, dict[str, float]]:
    state = setup.parallel.put(setup.steps.init(setup.init()))
    state, sums = setup.parallel.train(state, setup.parallel.put_batch(batch_of()), KEY)
    return jax.device_get(setup.parallel.get(state).params), jax.tree.map(float, jax.device_get(setup.parallel.get(sums)))


@pytest.mark.parametrize("changes", [{}, {"optim.accumulate": 2}, {"parallel": "pmap"}], ids=["whole", "in parts", "pmap"])
def test_a_ratio_of_sums_is_divided_once(changes):
    """The gradient is that of (sum over all positives) / (number of all positives), however the batch is divided."""
    setup = setup_of(**changes)
    variables, batch = setup.init(), jax.tree.map(jnp.asarray, batch_of())

    def ratio(params: Any) -> jax.Array:
        logits: Any = setup.steps.model.apply({**variables, "params": params}, SPEC.prepare(batch["image"]), train=False)
        losses = -jax.nn.log_softmax(logits)[jnp.arange(BATCH), batch["label"]]
        positive = batch["label"] >= 2
        return jnp.sum(jnp.where(positive, losses, 0.0)) / positive.sum().astype(jnp.float32)

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], jax.grad(ratio)(variables["params"]))
    flat = {"optim.momentum": 0.0, "optim.weight_decay": 0.0, "optim.schedule": "constant", **changes}
    params, sums = step(setup_of(**flat))
    assert sums["count"] == 5
    for (path, a), (_, b) in zip(leaves_with_paths(params), leaves_with_paths(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_predictions_are_gathered_without_padding(kind):
    setup = setup_of(parallel=kind)
    images, labels = (np.concatenate([values, values[:5]]) for values in batch_of().values())
    metrics, scores = score(setup, setup.parallel.put(setup.init()), Table({"image": images, "label": labels}))
    assert metrics["rows"] == 21
    np.testing.assert_array_equal(scores.kept["label"], labels)
    expected = setup.inference(setup.init()).outputs(images)
    np.testing.assert_allclose(scores.kept["logits"], expected, rtol=1e-4, atol=1e-5)
    first = np.asarray(expected)[:, 0]
    assert metrics["pairs"] == pytest.approx(np.mean((first[:, None] > first[None]) == (labels[:, None] > labels[None])))


def test_the_average_of_the_parameters_is_within_reach():
    assert "teacher" not in step(setup_of())[1]
    assert 0 <= step(setup_of(**{"optim.ema_decay": 0.9}))[1]["teacher"] <= BATCH
