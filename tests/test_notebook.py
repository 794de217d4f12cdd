"""The notebook goes from the demo data to a prediction, as a reader runs it."""

import pytest
from conftest import REPOSITORY

STEPS = "--config configs/cc4s/demo.yaml"


@pytest.mark.slow
def test_the_notebook_runs_from_the_demo_to_a_prediction(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs requirements-dev.txt")
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs requirements-dev.txt")
    notebook = nbformat.read(REPOSITORY / "docs/demo.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) == 5
    for cell in cells:  # the reader's cells, but for fewer steps and other folders
        cell.source = cell.source.replace("data/demo", str(tmp_path / "demo")).replace("runs/notebook", str(tmp_path / "run"))
        cell.source = cell.source.replace(STEPS, f"{STEPS} --train.steps 2")
    assert any("--train.steps 2" in cell.source for cell in cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(REPOSITORY / "docs")}}).execute()

    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in cells]
    pictures = [sum("image/jpeg" in output.get("data", {}) for output in cell.outputs) for cell in cells]
    assert "160 pictures with scribbles, 40 with masks" in said[0]
    assert (tmp_path / "run/best.pt").is_file() and "mean" in said[3]
    assert pictures == [0, 1, 0, 0, 1]
