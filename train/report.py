"""Write the report of a finished run: report.md and the pictures that it shows."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dilax import plots
from dilax.files import user_path
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
    text = "\n\n".join([f"# {title}", tables, *shown, *sections, f"## Config\n\n```json\n{config_text}\n```"]) + "\n"
    write_text(path, text)  # a report that is there is complete
    return path


def title(run: str, task: str, model: str, data: str, folder: str) -> str:
    """Return the heading of a report.

    Args:
        run: Name of the run.
        task: Name of its task.
        model: Name of its model.
        data: Name of the dataset, or of its format.
        folder: Folder or file of the data, or "". It is named with a format, and not with a dataset, which it holds among others.

    Example:
        >>> title("flowers", "classification", "dilated_cnn", "folder", "~/pictures/oxford_flowers")
        'flowers: classification of oxford_flowers (folder) by dilated_cnn'
    """
    path = user_path(folder).resolve()
    named = folder and ":" not in data and not (path / data.partition("/")[0]).exists()
    return f"{run}: {task.replace('_', ' ')} of {f'{path.name} ({data})' if named else data} by {model}"


def tables(metrics: Mapping[str, float], versions: Mapping[str, str], seconds: float, parameters: int) -> str:
    """Return the metrics of a run, the number of its parameters, its time and the versions as a Markdown table."""
    rows = [(name.replace("|", "\\|"), f"{value:.4f}") for name, value in metrics.items()]
    rows += [("parameters", f"{parameters:,}"), ("time", f"{seconds:.0f} s"), *versions.items()]
    return "\n".join(["| what | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])
