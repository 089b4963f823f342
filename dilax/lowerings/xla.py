"""XLA's own convolution: the lowering "lax", and the derivatives of any lowering that does not bring its own."""

import jax
from jax import lax

from dilax.plan import ConvPlan


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """`lax.conv_general_dilated`.

    It sums float16 and bfloat16 products in float32 and rounds once, on CPU as on GPU and TPU (measured on CPU: relative error within the
    rounding of the output, values and gradients), so nothing is cast here; `preferred_element_type` would break its gradient.
    """
    space = "DHW"[-plan.rank :]
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=plan.stride,
        padding=plan.padding,
        rhs_dilation=plan.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=plan.groups,
        precision=plan.precision,
    )


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """The transpose of `output` in x."""
    (x,) = jax.linear_transpose(lambda x: output(x, kernel, plan), jax.ShapeDtypeStruct(plan.x_shape, y.dtype))(y)
    return x


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """The transpose of `output` in the kernel."""
    (kernel,) = jax.linear_transpose(lambda kernel: output(x, kernel, plan), jax.ShapeDtypeStruct(plan.kernel_shape, x.dtype))(y)
    return kernel
