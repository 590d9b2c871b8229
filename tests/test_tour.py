"""The notebook runs from top to bottom."""

import json
from importlib.util import find_spec

import pytest
from house import ROOT


TOUR = ROOT / "docs" / "tour.ipynb"


def test_its_outputs_are_small_and_none_of_them_is_an_error():
    assert TOUR.stat().st_size < 300_000
    outputs = [output for cell in json.loads(TOUR.read_text())["cells"] for output in cell.get("outputs", [])]
    assert all(output["output_type"] != "error" for output in outputs)
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    assert all(len(picture) * 3 / 4 < 40_000 for picture in pictures)


@pytest.mark.slow
def test_it_runs(tmp_path):
    if not find_spec("nbclient") or not find_spec("ipykernel"):
        pytest.skip("nbclient or ipykernel is not installed: pip install '.[test]'")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TOUR, as_version=4)
    # In a folder of its own, so that it needs nothing that lies beside it.
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "after stage 1 - as it is" in said and "after stage 2 - after stage 1" in said
