"""Generate the fixture of tests/test_separation.py: `python tests/golden/make_conv_tasnet.py`. Requires torch and torchaudio.

conv_tasnet.npz holds, for small networks of torchaudio with the weights of `foreign.random_state`, the names and shapes of the state dicts,
a mixture, and the sources into which torchaudio separates it, computed in float64.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from foreign import random_state

# Arguments of torchaudio's ConvTasNet, and the length of the mixture.
NETWORKS = (
    (
        dict(
            num_sources=2, enc_kernel_size=4, enc_num_feats=6, msk_num_feats=5, msk_num_hidden_feats=7, msk_num_layers=3, msk_num_stacks=2
        ),
        37,
    ),
    (
        dict(
            num_sources=3,
            enc_kernel_size=6,
            enc_num_feats=5,
            msk_num_feats=4,
            msk_num_hidden_feats=3,
            msk_num_layers=2,
            msk_num_stacks=1,
            msk_activate="relu",
        ),
        42,
    ),
)


def main() -> None:
    torch: Any = importlib.import_module("torch")
    kind: Any = importlib.import_module("torchaudio.models.conv_tasnet").ConvTasNet
    rng, about, arrays = np.random.default_rng(0), [], {}
    for seed, (fields, length) in enumerate(NETWORKS):
        net = kind(**fields).eval()
        shapes = {name: list(value.shape) for name, value in net.state_dict().items()}
        net.load_state_dict({name: torch.tensor(value) for name, value in random_state(shapes, seed).items()})
        x = rng.normal(0.2, 1, (2, length, 1)).astype(np.float32)
        with torch.no_grad():
            y = net.double()(torch.tensor(np.moveaxis(x, -1, 1), dtype=torch.float64))
        arrays |= {f"x{seed}": x, f"y{seed}": np.moveaxis(y.numpy(), 1, -1).astype(np.float32)}
        about.append({"fields": fields, "shapes": shapes})
    path = Path(__file__).parent / "conv_tasnet.npz"
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


if __name__ == "__main__":
    main()
