"""The notebooks run from top to bottom, in their short form; they are committed clean, or with all outputs."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from selection import with_slow

ROOT = pathlib.Path(__file__).parents[1]
# Notebook -> pictures that it shows.
PICTURES = {"quickstart": 7, "segmentation": 5, "streaming_audio": 1, "time_series": 2, "your_own_module": 2}
SHOWN = ("quickstart",)  # committed with its outputs
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def pictures_of(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_notebook_is_known():
    assert set(NOTEBOOKS) == set(PICTURES)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_clean(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if name in SHOWN:  # with what it printed and drew, from top to bottom
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        assert pictures_of(notebook) == PICTURES[name]
        assert not re.search(r"/(?:tmp|home|root|Users)/", json.dumps([cell.outputs for cell in code if cell.outputs]))
    else:
        assert all(not cell.outputs and cell.execution_count is None for cell in code)
    first, *_ = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    quickstart = nbformat.read(NOTEBOOKS["quickstart"], as_version=4)
    # The cell that installs the checkout on Colab is the same everywhere.
    assert first == next(cell.source for cell in quickstart.cells if cell.cell_type == "code")
    assert "data" in notebook.cells[0].source  # says whether it is real or synthetic


def first_cell() -> str:
    notebook = nbformat.read(NOTEBOOKS["quickstart"], as_version=4)
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


def run_first_cell(folder: pathlib.Path, cell: str) -> subprocess.CompletedProcess:
    code = f"{cell}\nimport dilax, train; print(dilax.__file__)"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("by_address", [True, False])
def test_the_first_cell_finds_a_zip(wrapped, by_address, tmp_path):
    """One that was uploaded, or one at an address; with a folder in it, as hosts make them, or without."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    for name in ("dilax", "train"):
        (elsewhere / "checkout" / name).mkdir(parents=True)
        (elsewhere / "checkout" / name / "__init__.py").write_text("")
    (elsewhere / "checkout" / "pyproject.toml").write_text("")
    archive = (elsewhere if by_address else here) / "some-name"
    shutil.make_archive(str(archive), "zip", elsewhere if wrapped else elsewhere / "checkout", "checkout" if wrapped else ".")
    cell = first_cell()
    if by_address:
        cell = cell.replace('REPOSITORY = ""', f'REPOSITORY = "{archive.as_uri()}.zip"')
    for _ in range(2):  # running it again changes nothing
        done = run_first_cell(here, cell)
        assert done.returncode == 0, done.stderr
        assert pathlib.Path(done.stdout.strip()).is_relative_to(here / "checkout")


def test_the_first_cell_says_what_is_missing(tmp_path):
    done = run_first_cell(tmp_path, first_cell())
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "dilax is not here: upload a .zip of its checkout to this folder, or set REPOSITORY above, and run this cell again.\n"
    )


# The longest make the same calls as other tests; `.ci/run` runs them as a part of the documentation.
@pytest.mark.parametrize("name", with_slow(NOTEBOOKS, repeats=("segmentation", "streaming_audio", "time_series")))
@pytest.mark.filterwarnings("ignore")  # of the notebook's machinery
def test_runs(name, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("DILAX_NOTEBOOK_VARIANT", "smoke")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    assert pictures_of(notebook) == PICTURES[name]
