"""The convolutions that `benchmarks.ops` measures."""

import dataclasses
import math

import numpy as np

import dilax

KINDS = ("depthwise", "grouped", "dense")
# Cases are averaged within a kind and a dtype: torch is slow in bfloat16 on a CPU, and would flatter a mean over both.
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Case:
    """One convolution.

    Attributes:
        origin: The kind of network it is typical of.
        shape: Shape of x, (batch, *space, c_in).
        features: Output channels.
        window: Taps of the kernel along every axis.
        dilation: Samples between neighbouring taps along every axis.
        stride: Stride along every axis.
        groups: Number of independent channel groups.
        padding: As `dilax.dilated_conv`.
        dtype: Dtype of x and the kernel.
    """

    origin: str
    shape: tuple[int, ...]
    features: int
    window: int
    dilation: int = 1
    stride: int = 1
    groups: int = 1
    padding: str = "SAME"
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.shape) - 2

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return "dense" if self.groups == 1 else "depthwise" if self.groups == self.shape[-1] else "grouped"

    @property
    def title(self) -> str:
        """The origin, and the parameters that differ from their defaults."""
        outputs = f"->{self.features}" if self.features != self.shape[-1] else ""
        marks = [f"k{self.window}"]
        marks += [f"{letter}{value}" for letter, value in (("d", self.dilation), ("s", self.stride)) if value > 1]
        marks += [f"g{self.groups}"] * (self.kind == "grouped") + ["causal"] * (self.padding == "CAUSAL")
        marks += ["bf16"] * (self.dtype == "bfloat16")
        return f"{self.origin} {'x'.join(map(str, self.shape))}{outputs} {' '.join(marks)}"

    @property
    def name(self) -> str:
        """The kind and the title."""
        return f"{self.kind} {self.title}"

    def plan(self) -> dilax.ConvPlan:
        """Return the plan that `dilated_conv` makes for it."""
        batch, *size, channels = self.shape
        per_axis = [(number,) * self.rank for number in (self.window, self.stride, self.dilation)]
        kernel_size, stride, dilation = per_axis
        pads = dilax.explicit_padding(tuple(size), kernel_size, stride=stride, padding=self.padding, dilation=dilation)
        return dilax.ConvPlan(batch, tuple(size), channels, self.features, kernel_size, stride, pads, dilation, self.groups, self.dtype)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return random x, kernel and cotangent in float32; the outputs have a variance of about 1."""
        rng, plan = np.random.default_rng(0), self.plan()
        fan_in = self.window**self.rank * self.shape[-1] // self.groups
        x = rng.standard_normal(self.shape, np.float32)
        kernel = rng.standard_normal((*plan.kernel_size, self.shape[-1] // self.groups, self.features), np.float32) / math.sqrt(fan_in)
        return x, kernel, rng.standard_normal((self.shape[0], *plan.output_size, self.features), np.float32)


CASES = (
    Case("MobileNet", (8, 28, 28, 256), 256, 3, groups=256),
    Case("MobileNet", (1, 14, 14, 512), 512, 3, groups=512),
    Case("MobileNet", (8, 56, 56, 128), 128, 3, stride=2, groups=128),
    Case("EfficientNet", (4, 28, 28, 240), 240, 5, groups=240),
    Case("ConvNeXt", (4, 28, 28, 96), 96, 7, groups=96),
    Case("Xception", (4, 32, 32, 64), 128, 3, groups=64),
    Case("small network", (64, 16, 16, 64), 64, 3, dilation=2, groups=64),
    Case("small network", (8, 32, 32, 128), 128, 3, dilation=2, groups=128),
    Case("small network", (8, 32, 32, 128), 128, 3, dilation=2, dtype="bfloat16", groups=128),
    Case("even window", (16, 64, 64, 16), 16, 4, stride=2, groups=16),
    Case("DeepLab", (1, 65, 65, 512), 512, 3, dilation=2, groups=512),
    Case("DeepLab ASPP", (1, 33, 33, 1024), 1024, 3, dilation=12, groups=1024),
    Case("TCN", (8, 1024, 128), 128, 3, dilation=8, padding="CAUSAL", groups=128),
    Case("TCN", (8, 1024, 128), 128, 3, dilation=8, padding="CAUSAL", dtype="bfloat16", groups=128),
    Case("WaveNet", (4, 2048, 64), 64, 2, dilation=32, padding="CAUSAL", groups=64),
    Case("audio", (1, 4096, 128), 128, 7, dilation=128, padding="CAUSAL", groups=128),
    Case("audio", (8, 2048, 32), 64, 5, stride=2, groups=32),
    Case("video", (1, 8, 28, 28, 64), 64, 3, groups=64),
    Case("volume", (1, 16, 16, 16, 32), 32, 3, dilation=2, groups=32),
    Case("ResNeXt", (1, 28, 28, 256), 256, 3, groups=32),
    Case("ResNeXt", (1, 14, 14, 512), 512, 3, dilation=2, groups=32),
    Case("TCN", (4, 512, 128), 128, 3, dilation=4, groups=4, padding="CAUSAL"),
    Case("ASPP", (1, 33, 33, 2048), 256, 3, dilation=6),
    Case("ASPP", (1, 33, 33, 2048), 256, 3, dilation=12),
    Case("ASPP", (1, 33, 33, 2048), 256, 3, dilation=18),
    Case("DRN", (8, 64, 64, 64), 64, 3, dilation=2),
    Case("DRN", (8, 64, 64, 64), 64, 3, dilation=2, dtype="bfloat16"),
    Case("DeepLab", (1, 65, 65, 512), 512, 3, dilation=4),
    Case("classifier", (128, 32, 32, 64), 64, 3),
    Case("pointwise", (8, 32, 32, 128), 256, 1),
    Case("pointwise ASPP", (1, 33, 33, 2048), 256, 1),
    Case("stem", (128, 32, 32, 3), 32, 3),
    Case("stem", (8, 128, 128, 3), 32, 3, stride=2),
    Case("spectrogram stem", (8, 128, 64, 1), 32, 3),
    Case("waveform stem", (8, 16000, 1), 64, 16, stride=8),
    Case("TCN", (8, 1024, 64), 64, 3, dilation=16, padding="CAUSAL"),
    Case("TCN", (8, 1024, 64), 64, 3, dilation=16, padding="CAUSAL", dtype="bfloat16"),
    Case("WaveNet", (8, 4096, 64), 64, 2, dilation=64, padding="CAUSAL"),
    Case("WaveNet", (8, 4096, 64), 64, 2, dilation=512, padding="CAUSAL"),
    Case("volume", (1, 16, 32, 32, 32), 32, 3, dilation=2),
)
