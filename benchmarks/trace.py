"""Attribute the time of a training step on a CPU to its kernels, from a trace of JAX's profiler."""

import dataclasses
import pathlib
import re
import sys
import time
from collections import Counter, defaultdict

import jax

from benchmarks.networks import Network, initial_values, jax_step

TRACED_STEPS = 3


def trace(network: Network, folder: pathlib.Path) -> None:
    """Run a few training steps of dilax under the profiler and print the kernels that take the most time.

    Args:
        network: The network to train.
        folder: Where the profiler writes its trace.

    XLA does not record where in the network an operation that it rewrote came from, such as the kernel gradients whose window is the whole
    feature map. These are listed under "other".
    """
    step, program = jax_step(network.model, network, *initial_values(network.model, network))
    step()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    start = time.time()
    with jax.profiler.trace(str(folder), profiler_options=options):
        for _ in range(TRACED_STEPS):
            step()
    path = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None or path.stat().st_mtime < start - 1:
        sys.exit(f"{network.name}: the profiler did not write a *.xplane.pb file to {folder}.")
    kernels = instructions(program.as_text())
    containers = {name for name, kernel in kernels.items() if kernel.opcode in ("while", "call", "conditional")}
    spent, calls = time_by_kernel(path, containers)
    total = sum(spent.values())
    if not total:
        sys.exit(f"{network.name}: {path} does not contain any kernels.")
    print(f"\n{network.name}, batch {network.batch}: {total / 1e6 / TRACED_STEPS:.1f} ms per step under the profiler, in {path}")
    print("\n  ms/step   share  kind of work")
    kinds: dict[str, float] = defaultdict(float)
    for name, nanoseconds in spent.items():
        kinds[kernels[name].kind() if name in kernels else name] += nanoseconds
    for kind, nanoseconds in _largest(kinds, 10):
        print(f"{nanoseconds / 1e6 / TRACED_STEPS:9.2f} {nanoseconds / total:7.1%}  {kind}")
    print(f"\n  ms/step   share  calls  kernel ({len(spent) - 1} in all)")
    for name, nanoseconds in _largest(spent, 25):
        text = f"{name}: {kernels[name].text()}" if name in kernels else name
        print(f"{nanoseconds / 1e6 / TRACED_STEPS:9.2f} {nanoseconds / total:7.1%} {calls[name] // TRACED_STEPS:6}  {text}")


def time_by_kernel(path: pathlib.Path, containers: set[str]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the nanoseconds and the number of calls of each kernel in a CPU trace.

    Kernels that run at the same time share it equally, so that the times add up to the elapsed time. A kernel that passes its work to other
    threads lasts until its "end" event, beyond the call itself. Containers, such as loops, are excluded, since their kernels are counted.
    """
    begins: dict[str, list[tuple[float, float]]] = {}
    ends: dict[str, list[float]] = {}
    for line in (line for plane in jax.profiler.ProfileData.from_file(str(path)).planes for line in plane.lines):
        for event in line.events:
            if event.name.startswith("end: "):
                ends.setdefault(event.name.removeprefix("end: "), []).append(event.start_ns)
            elif any(key == "hlo_op" for key, _ in event.stats):
                begins.setdefault(event.name, []).append((event.start_ns, event.start_ns + event.duration_ns))
    changes: list[tuple[float, int, str]] = []
    for name in begins.keys() - containers:
        times, marks = sorted(begins[name]), sorted(ends.get(name, []))
        marks = marks if len(marks) == len(times) else [returned for _, returned in times]
        changes += [(start, 1, name) for start, _ in times]
        changes += [(max(mark, returned), -1, name) for mark, (_, returned) in zip(marks, times)]
    changes.sort()
    spent: dict[str, float] = defaultdict(float)
    in_flight: Counter[str] = Counter()
    previous = changes[0][0] if changes else 0.0
    for instant, change, name in changes:
        running = [name for name, count in in_flight.items() if count > 0] or ["(no kernel: dispatch, loop overhead, between steps)"]
        for other in running:
            spent[other] += (instant - previous) / len(running)
        in_flight[name] += change
        if not in_flight[name]:
            del in_flight[name]
        previous = instant
    return spent, defaultdict(int, {name: len(times) for name, times in begins.items()})


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction of a compiled program, as described by the program's text.

    Attributes:
        opcode: The operation of XLA.
        shape: Shape of its result.
        place: The pass and the module of the network that it belongs to, if known.
        convolution: Window and groups of the convolution that it computes, if any.
    """

    opcode: str
    shape: str
    place: str
    convolution: str

    def kind(self) -> str:
        """Return the pass and the operation, without the module."""
        phase, grouped = self.place.split(" ")[0], ", grouped" if "groups=" in self.convolution else ""
        operation = "convolution" if self.convolution else self.place.split("/")[-1] or self.opcode
        return f"{phase if phase in ('forward', 'backward') else 'other'}: {operation}{grouped}"

    def text(self) -> str:
        """Return place, shape and convolution in one line."""
        return " ".join(part for part in (self.place, self.shape, self.convolution) if part)


def instructions(program: str) -> dict[str, Kernel]:
    """Parse the text of a compiled program and return its instructions by name."""
    convolutions: dict[str, str] = {}
    places: dict[str, str] = {}
    kernels: dict[str, Kernel] = {}
    computation = ""
    for line in program.splitlines():
        if header := re.match(r"(?:ENTRY )?%([\w.-]+) \(.*\{$", line):
            computation = header[1]
        match = re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(", line)
        if match is None:
            continue
        name, shape, opcode = match.groups()
        convolution, called = "", re.search(r"calls=%([\w.-]+)", line)
        if opcode == "convolution":
            groups = re.search(r"(?:feature|batch)_group_count=(\d+)", line)
            window = re.search(r"window=\{([^}]*)\}", line)
            convolution = f"{window[1] if window else 'size=1'}{f' groups={groups[1]}' if groups else ''}"
            convolutions[computation] = convolution
        elif called:
            convolution = convolutions.get(called[1], "")
        metadata = re.search(r'op_name="([^"]*)"', line)
        place = _place(metadata[1]) if metadata else places.get(called[1], "") if called else ""
        places[computation] = place or places.get(computation, "")
        kernels[name] = Kernel(opcode, re.sub(r"\{[^}]*\}", "", shape), place, convolution)
    return kernels


def _place(op_name: str) -> str:
    """Shorten the name of an operation, such as "jit(update)/transpose(jvp(Net))/Layer_0/mul", to "backward Layer_0/mul"."""
    path = re.sub(r"^jit\(\w+\)/", "", op_name)
    path = re.sub(r"^transpose\(jvp\(\w*\)\)/", "backward ", path)
    return re.sub(r"^jvp\(\w*\)/", "forward ", path)


def _largest(values: dict[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(values.items(), key=lambda item: -item[1])[:count]
