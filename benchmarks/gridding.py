"""Compare what keeps dilated convolutions from gridding, by the PSNR of denoisers that are trained briefly.

python -m benchmarks.gridding --data Train400 --test BSD68 --markdown
python -m benchmarks.gridding --data FOLDER --steps 100 --networks=gridded

The denoisers are IRCNNs of seven 3x3 layers (Zhang et al. 2017) with batch normalisation, of fewer features than the paper's, for grey
images with Gaussian noise. All of them see the same crops and the same noise, and are trained by the same recipe, whose settings were not
chosen for any of them: Adam with a cosine to zero. A twentieth of the images in --data is left out of training to validate on; the noise of
an image never changes. "field" and "coverage" are the receptive field along one axis and the share of it that is seen. The time of a
training step is that of all cores together, which other programs lengthen less than they do the time of the clock: the median over turns
that rotate.
"""

import argparse
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dilax
from benchmarks import common
from dilax import metrics
from dilax.errors import UserError
from dilax.files import user_path
from dilax.models import IRCNN
from train import cli

OWN, GRIDDED = (1, 2, 3, 4, 3, 2, 1), (2,) * 7
HEAD = ("network", "dilations", "parameters", "field", "coverage", "validation, dB", "test, dB", "CPU ms per step")
WIDTHS = (-30, 19, 10, 5, 8, 16, 16, 15)
CURES = {"group interaction": "group_interaction", "separable and shared": "separable_shared", "learnable spacings": "learnable_spacings"}
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
VALIDATION = 20  # one image in so many is left out of training


@dataclasses.dataclass(frozen=True)
class Network:
    """A denoiser to compare."""

    name: str
    dilations: tuple[int, ...]
    degridding: str = "none"


NETWORKS = (
    Network("no dilation", (1,) * 7),
    Network("gridded", GRIDDED),
    *(Network(f"gridded, {name}", GRIDDED, word) for name, word in CURES.items()),
    Network("gridded, degridding tail", (2, 2, 2, 2, 2, 1, 1)),
    Network("hybrid", (1, 2, 5, 1, 2, 5, 1)),
    Network("IRCNN", OWN),
    *(Network(f"IRCNN, {name}", OWN, word) for name, word in CURES.items()),
)


def read_images(folder: str) -> list[np.ndarray]:
    """Return the images of a folder in grey, uint8 (height, width), in the order of their names."""
    from PIL import Image

    path = user_path(folder)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES) if path.is_dir() else []
    if len(files) < 2:
        raise UserError(f"{path} is not a folder of two or more images; give one with files such as {SUFFIXES[0]}.")
    return [np.asarray(Image.open(file).convert("L")) for file in files]


def batches(images: list[np.ndarray], args: argparse.Namespace, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield noisy and clean crops (batch, crop, crop, 1) of each step, colours from -1 to 1."""
    for step in range(args.steps):
        rng = np.random.default_rng((seed, step))
        clean = np.empty((args.batch_size, args.crop, args.crop, 1), np.float32)
        for i in range(args.batch_size):
            image = images[rng.integers(len(images))]
            y, x = (int(rng.integers(n - args.crop + 1)) for n in image.shape)
            crop = np.rot90(image[y : y + args.crop, x : x + args.crop], int(rng.integers(4)))
            clean[i, ..., 0] = crop[:, ::-1] if rng.integers(2) else crop
        clean = clean / 127.5 - 1
        yield clean + rng.normal(0, args.sigma / 127.5, clean.shape).astype(np.float32), clean


def make_step(model: IRCNN, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """Return the compiled training step."""

    def loss(params: Any, stats: Any, noisy: jax.Array, clean: jax.Array) -> Any:
        y, updates = model.apply({"params": params, "batch_stats": stats}, noisy, train=True, mutable=["batch_stats"])
        return jnp.square(y - clean).mean(), updates["batch_stats"]

    @jax.jit
    def step(state: Any, noisy: jax.Array, clean: jax.Array) -> Any:
        params, stats, slots = state
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params, stats, noisy, clean)
        updates, slots = optimizer.update(grads, slots, params)
        return (optax.apply_updates(params, updates), stats, slots), value

    return step


def train_network(network: Network, images: list[np.ndarray], args: argparse.Namespace, seed: int) -> tuple[Any, Callable[[], Any]]:
    """Train a network; return its variables, and a function that repeats its last step."""
    model = IRCNN(args.features, network.dilations, norm="batch", degridding=network.degridding)
    optimizer = optax.adam(optax.cosine_decay_schedule(args.lr, args.steps))
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(seed), jnp.zeros((1, args.crop, args.crop, 1)))
    state: Any = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))
    step, batch = make_step(model, optimizer), ()
    for batch in batches(images, args, seed):
        state, value = step(state, *batch)
    if not np.isfinite(float(value)):  # pyright: ignore[reportPossiblyUnboundVariable]
        raise UserError(f"The loss of {network.name!r} is not finite; choose a smaller --lr.")
    return {"params": state[0], "batch_stats": state[1]}, lambda: jax.block_until_ready(step(state, *batch))


def score(network: Network, variables: Any, images: list[np.ndarray], args: argparse.Namespace) -> float:
    """Return the mean PSNR of whole images, in the 8 bits of a file."""
    model = IRCNN(args.features, network.dilations, norm="batch", degridding=network.degridding)

    @jax.jit
    def run(noisy: jax.Array, clean: jax.Array) -> jax.Array:
        restored = model.apply(variables, noisy / 127.5 - 1, train=False)
        return metrics.psnr(jnp.clip(jnp.round((restored + 1) * 127.5), 0, 255) / 255, clean / 255)  # pyright: ignore[reportOperatorIssue]

    found = []
    for i, image in enumerate(images):
        clean = image[None, ..., None].astype(np.float32)
        noise = np.random.default_rng(i).normal(0, args.sigma, clean.shape).astype(np.float32)
        found.append(float(run(clean + noise, clean)[0]))
    return statistics.mean(found)


def properties(network: Network, variables: Any, args: argparse.Namespace) -> tuple[str, ...]:
    """Return the number of parameters, the receptive field along one axis, and how much of it is seen."""
    model = IRCNN(args.features, network.dilations, norm="batch", degridding=network.degridding)
    image = jax.ShapeDtypeStruct((1, 96, 96, 1), jnp.float32)
    field = dilax.receptive_field(lambda x: model.apply(variables, x, train=False), image)[0]  # pyright: ignore[reportArgumentType]
    return f"{sum(leaf.size for leaf in jax.tree.leaves(variables['params'])):,}", str(field.size), f"{field.coverage:.2f}"


def cpu_seconds(call: Callable[[], Any], calls: int, warm_up_s: float) -> float:
    """Return the mean seconds of the processor, on all cores, of a number of calls."""
    start = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - start) / calls


def over_seeds(values: list[float]) -> str:
    """Return a mean, with the standard deviation of several."""
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def main() -> None:
    """Train and score every network, and print a table."""
    parser = cli.parser(sys.modules[__name__])
    parser.add_argument("--data", required=True, help="folder of images to train and validate on")
    parser.add_argument("--test", default="", help="folder of images to test on")
    parser.add_argument("--networks", default="", help="only networks whose name contains this")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from 0 on")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--crop", type=int, default=40)
    parser.add_argument("--sigma", type=float, default=25.0, help="standard deviation of the noise, of colours from 0 to 255")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--repeats", type=int, default=10, help="maximum number of turns in which a step is timed")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table instead")
    args = parser.parse_args()
    common.check_positive(args, "seeds", "steps", "features", "batch_size", "crop", "repeats")
    networks: list[Network] = common.named(NETWORKS, args.networks)
    images, tests = read_images(args.data), read_images(args.test) if args.test else []
    small = [image.shape for image in images if min(image.shape) < args.crop]
    if small:
        raise UserError(f"--crop={args.crop} is larger than an image of {small[0][0]} x {small[0][1]} pixels; choose a smaller crop.")
    held, kept = images[::VALIDATION], [image for i, image in enumerate(images) if i % VALIDATION]
    print(common.heading(common.environment()))
    print(f"{args.seeds} seeds, {args.steps} steps of {args.batch_size} crops of {args.crop} pixels, {args.features} features", flush=True)
    rows, steps = {}, {}
    for network in networks:
        found: list[list[float]] = [[], []]
        for seed in range(args.seeds):
            variables, steps[network.name] = train_network(network, kept, args, seed)
            for split, scores in zip((held, tests), found):
                scores.extend([score(network, variables, split, args)] if split else [])
        said = (over_seeds(scores) if scores else "-" for scores in found)
        rows[network.name] = (network.name, ", ".join(map(str, network.dilations)), *properties(network, variables, args), *said)  # pyright: ignore
        print(common.format_row(rows[network.name], WIDTHS[:-1]), file=sys.stderr, flush=True)
    timers = {name: functools.partial(cpu_seconds, call) for name, call in steps.items()}
    times = common.interleave(timers, repeats=args.repeats, budget_s=60.0)
    table = [(*row, common.format_number(1e3 * statistics.median(times[name]))) for name, row in rows.items()]
    print(common.markdown(HEAD, table) if args.markdown else "\n".join(common.format_row(row, WIDTHS) for row in (HEAD, *table)))


if __name__ == "__main__":
    cli.run(main)
