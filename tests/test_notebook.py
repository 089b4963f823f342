"""The notebooks run from top to bottom, in their short form, and are committed clean."""

import pathlib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Notebook -> pictures that it shows.
PICTURES = {"quickstart": 7, "segmentation": 5, "streaming_audio": 1, "time_series": 2, "your_own_module": 2}
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}


def test_every_notebook_is_known():
    assert set(NOTEBOOKS) == set(PICTURES)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_committed_clean(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook.cells)
    first, *_ = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    quickstart = nbformat.read(NOTEBOOKS["quickstart"], as_version=4)
    # The cell that installs the checkout on Colab is the same everywhere.
    assert first == next(cell.source for cell in quickstart.cells if cell.cell_type == "code")
    assert "data" in notebook.cells[0].source  # says whether it is real or synthetic


@pytest.mark.parametrize("name", NOTEBOOKS)
@pytest.mark.filterwarnings("ignore")  # of the notebook's machinery
def test_runs(name, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("DILAX_NOTEBOOK_VARIANT", "smoke")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES[name]
