"""Settings of the documentation: `sphinx-build -W docs docs/_build/html`."""

import inspect
import pathlib
import re
import shutil
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
GENERATED = HERE / "generated"
for folder in (HERE, ROOT):
    sys.path.insert(0, str(folder))

project = "dilax"
author = "the dilax authors"
project_copyright = "2026, the dilax authors"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx_copybutton"]
exclude_patterns = ["_build", "jupyter_execute"]
html_theme = "furo"
html_title = "dilax"
html_copy_source = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks
copybutton_exclude = ".linenos, .gp, .go"

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Reference"]


def generate(_: Any) -> None:
    """Copy the notebooks, which live outside this folder."""
    GENERATED.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(notebook, GENERATED / notebook.name)


def to_markup(_: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn the plain text of a docstring into reStructuredText, before napoleon reads its sections.

    Docstrings are written to be read as they are: `x` is code, and (batch, *space) is not the start of an emphasis. Of a module only the
    first paragraph is kept; what follows lists its files.
    """
    del name, obj, options
    if what == "module":
        lines[:] = lines[: lines.index("")] if "" in lines else lines
    if what == "class":  # its attributes are what it is made with
        lines[:] = ["Args:" if line == "Attributes:" else line for line in lines]
    in_doctest = False
    for i, line in enumerate(lines):
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest:
            lines[i] = _line(line)


def _line(line: str) -> str:
    """One line of a docstring: code between backticks, links to arXiv, and no other markup."""
    parts = re.split(r"(`+[^`]+`+)", line)
    for i, part in enumerate(parts):
        if i % 2:
            before, after = parts[i - 1][-1:].isalnum(), parts[i + 1][:1].isalnum()
            parts[i] = ("\\ " if before else "") + f"``{part.strip('`')}``" + ("\\ " if after else "")
        else:
            escaped = re.sub(r"([*|])", r"\\\1", part)
            parts[i] = re.sub(r"\barXiv:(\d{4}\.\d{4,5})", r"`arXiv:\1 <https://arxiv.org/abs/\1>`__", escaped)
    return "".join(parts)


def to_short_signature(_: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, annotation: str | None) -> Any:
    """Show the fields of a class and their defaults alone: no types, and not the two fields that every Flax module has."""
    del name, options
    if what != "class" or signature is None:
        return signature, annotation
    fields = [field for field in inspect.signature(obj).parameters.values() if field.name not in ("parent", "name")]
    return f"({', '.join(map(_field, fields))})", None


def _field(field: inspect.Parameter) -> str:
    default = field.default
    if default is field.empty:
        return field.name
    return f"{field.name}={getattr(default, '__name__', '...') if callable(default) else repr(default)}"


def skip_foreign(_: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip what is not defined in dilax: fields whose default is a function or a type of JAX."""
    del name, skip, options
    home = getattr(getattr(obj, "fget", obj), "__module__", None) or ""
    return True if what == "class" and not home.startswith("dilax") else None


def setup(app: Any) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", to_markup, priority=100)
    app.connect("autodoc-process-signature", to_short_signature)
    app.connect("autodoc-skip-member", skip_foreign)
