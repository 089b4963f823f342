"""Generate the fixture of tests/test_volume_models.py: `python tests/golden/make_highres3dnet.py`. Requires torch and monai.

highres3dnet.npz holds, for small networks of MONAI with the weights of `foreign.random_state`, the names and shapes of the state dicts, a
volume, and the outputs of MONAI for it, computed in float64. `--full` compares the network of the paper instead, and writes nothing.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from foreign import random_state

# Channels of the first convolution, of each group and of the hidden layer; blocks of each group; classes, channels and size of the input.
NETWORKS = (
    ((3, 3, 4, 6, 5), (2, 1, 2), 4, (7, 9, 8, 2)),
    ((2, 5, 5), (2,), 3, (5, 6, 7, 1)),
)
PAPER = ((16, 16, 32, 64, 80), (3, 3, 3), 160, (9, 10, 11, 1))


def outputs_of(features: Any, blocks: Any, classes: int, shape: Any, seed: int) -> tuple[dict[str, list[int]], np.ndarray, np.ndarray]:
    """Return the shapes of the state dict, a volume and the outputs for it."""
    torch: Any = importlib.import_module("torch")
    kind: Any = importlib.import_module("monai.networks.nets").HighResNet
    first, *groups, hidden = features
    layers = [{"n_features": first, "kernel_size": 3}]
    layers += [{"n_features": width, "kernels": (3, 3), "repeat": count} for width, count in zip(groups, blocks)]
    layers += [{"n_features": hidden, "kernel_size": 1}, {"kernel_size": 1}]
    net = kind(in_channels=shape[-1], out_channels=classes, layer_params=layers).eval()
    shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
    net.load_state_dict({name: torch.tensor(value) for name, value in random_state(shapes, seed).items()})
    x = np.random.default_rng(seed).normal(0.2, 1, (1, *shape)).astype(np.float32)
    with torch.no_grad():
        y = net.double()(torch.tensor(np.moveaxis(x, -1, 1), dtype=torch.float64))
    return shapes, x, np.moveaxis(y.numpy(), 1, -1).astype(np.float32)


def compare() -> None:
    """Print how far the network of the paper is from that of MONAI."""
    import jax

    from dilax.models import create, highres3dnet
    from dilax.state_dicts import convert

    shapes, x, expected = outputs_of(*PAPER, seed=7)
    model = create("highres3dnet", num_classes=PAPER[2], activate_logits=True)
    template: Any = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    variables = convert(random_state(shapes, 7), highres3dnet.rules(), template)
    found: Any = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(template["params"]))
    print(f"{parameters:,} parameters, largest difference {np.abs(found - expected).max():.1e} of {np.abs(expected).max():.1e}")


def main() -> None:
    about, arrays = [], {}
    for seed, (features, blocks, classes, shape) in enumerate(NETWORKS):
        shapes, arrays[f"x{seed}"], arrays[f"y{seed}"] = outputs_of(features, blocks, classes, shape, seed)
        about.append({"features": features, "blocks": blocks, "classes": classes, "shapes": shapes})
    path = Path(__file__).parent / "highres3dnet.npz"
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    compare() if "--full" in sys.argv else main()
