"""Print where the wheels that are built against have put their files: XLA's headers; oneDNN's headers; oneDNN's library."""

import pathlib
from importlib import metadata


def located(distribution: str, ending: str) -> pathlib.Path:
    """Return the path of the file of a distribution with this ending."""
    files = metadata.files(distribution) or []
    return next(pathlib.Path(str(file.locate())).resolve() for file in files if str(file).endswith(ending))


headers = located("jaxlib", "include/xla/ffi/api/ffi.h").parents[3]
onednn = located("onednn-devel-cpu-gomp", "include/oneapi/dnnl/dnnl.hpp").parents[2]
library = located("onednn-cpu-gomp", "/libdnnl.so.3")
print(f"{headers};{onednn};{library}")
