"""The notebook runs from top to bottom, in its smoke form."""

import pathlib

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # of the notebook's machinery
def test_runs(path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("DILAX_NOTEBOOK_VARIANT", "smoke")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells)  # committed clean
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    assert len(pictures) == 7
