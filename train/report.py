"""Write the report of a finished run: report.md and the pictures that it shows."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dilax import plots
from train.files import write_text, writing

FOLDER, FILE = "report", "report.md"


def write(
    folder: pathlib.Path,
    title: str,
    config_text: str,
    tables: str,
    pictures: Mapping[str, tuple[str, Any]],
    sections: Sequence[str] = (),
) -> pathlib.Path:
    """Write report.md and its pictures.

    Args:
        folder: Folder of the report; it exists.
        title: Heading.
        config_text: The config, as text.
        tables: The metrics, in Markdown.
        pictures: {heading: (name of the file, figure)}.
        sections: Further sections in Markdown.

    Returns:
        The path of report.md.
    """
    with writing(folder):
        for name, figure in pictures.values():
            plots.save(figure, folder / f"{name}.png")
    path = folder / FILE
    shown = [f"## {heading}\n\n![{heading}]({name}.png)" for heading, (name, _) in pictures.items()]
    # Last: a report that is there is complete.
    write_text(path, "\n\n".join([f"# {title}", tables, *shown, *sections, f"## Config\n\n```json\n{config_text}\n```"]) + "\n")
    return path


def tables(metrics: Mapping[str, float], versions: Mapping[str, str], seconds: float) -> str:
    """Return the metrics of a run, its time and the versions as a Markdown table."""
    rows = [(name, f"{value:.4f}") for name, value in metrics.items()] + [("time", f"{seconds:.0f} s"), *versions.items()]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
