"""qwix, which quantises JAX programs for XLA, sees the convolutions of dilax inside `use_lowering("lax")`."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import KEY, random_input

import dilax

qwix = pytest.importorskip("qwix", reason="qwix is not installed: pip install qwix")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
MODELS = {
    "dilated_cnn": dict(num_classes=5, features=(6, 8), dilations=(1, 2), pools=(2, 1)),
    "separable_cnn": dict(num_classes=5, stem_features=4, features=(6, 8), blocks=(1, 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_kernel_is_int8(name):
    model, x = dilax.models.create(name, **MODELS[name]), random_input((2, 16, 16, 3))
    variables = model.init(KEY, x, train=False)
    rule = qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    quantised: Any = qwix.quantize_model(model, qwix.PtqProvider([rule]))
    # qwix multiplies int32 by float32.
    with dilax.use_lowering("lax"), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shapes = jax.eval_shape(lambda: quantised.init(KEY, x, train=False))
        params = qwix.quantize_params(variables["params"], shapes["params"])
        apply = jax.jit(lambda x: quantised.apply({**variables, "params": params}, x, train=False))
        text = apply.lower(x).as_text()
        y = apply(x)
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"]) if "kernel" in jax.tree_util.keystr(path)]
    assert sum(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params)) == len(kernels)
    convolutions = re.findall(r"stablehlo\.convolution\(.*: \((.*)\) ->", text)
    assert convolutions and all(re.fullmatch(r"tensor<\S*xi8>, tensor<\S*xi8>", operands) for operands in convolutions)
    wanted = np.asarray(model.apply(variables, x, train=False))
    assert 0 < np.abs(y - wanted).max() < 0.05 * np.ptp(wanted)
