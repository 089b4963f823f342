"""XLA's own convolution: the lowering "lax", and the gradients of lowerings that do not define their own."""

import jax
import jax.numpy as jnp
from jax import lax

from dilax.arguments import is_integer
from dilax.plan import ConvPlan


def output(x: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Convolve by `lax.conv_general_dilated`.

    XLA sums products of float16 and bfloat16 in float32 and rounds once, on CPU, GPU and TPU (on a CPU, the measured relative error of
    values and gradients is within the rounding of the output), so nothing is cast here; `preferred_element_type` would break the gradient.
    """
    space = "DHW"[-plan.rank :]
    padding = plan.padding
    if not all(is_integer(n) for pair in padding for n in pair):
        # `lax.conv_general_dilated` takes symbolic sizes, but no symbolic padding.
        x, padding = jnp.pad(x, ((0, 0), *padding, (0, 0))), ((0, 0),) * plan.rank
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=plan.stride,
        padding=padding,
        rhs_dilation=plan.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=plan.groups,
        precision=plan.precision,
    )


def input_gradient(y: jax.Array, kernel: jax.Array, plan: ConvPlan) -> jax.Array:
    """Transpose `output` with respect to x."""
    (x,) = jax.linear_transpose(lambda x: output(x, kernel, plan), _operand(plan.x_shape, y))(y)
    return x


def kernel_gradient(x: jax.Array, y: jax.Array, plan: ConvPlan) -> jax.Array:
    """Transpose `output` with respect to the kernel."""
    (kernel,) = jax.linear_transpose(lambda kernel: output(x, kernel, plan), _operand(plan.kernel_shape, y))(y)
    return kernel


def _operand(shape: tuple[int, ...], cotangent: jax.Array) -> jax.Array:
    """Return the operand with respect to which a convolution is transposed; its values do not matter, but its type does.

    Under `shard_map` it must vary over the same mesh axes as the cotangent. Otherwise `lax.conv_general_dilated` makes it vary, and the
    transpose of that is a sum over the devices.
    """
    return lax.full_like(cotangent, 0, shape=shape)
