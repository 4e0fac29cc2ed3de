"""The notebooks of examples/ run from top to bottom on the embedded data, and show what they promise."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


class Client(NotebookClient):
    """Keeps every picture and every HTML that a cell shows for a while, such as a bar."""

    def process_message(self, message, cell, index):
        self.shown = [*getattr(self, "shown", []), message["content"].get("data", {})]
        return super().process_message(message, cell, index)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "notebooks are kept without outputs"
    client = Client(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "<table>" in "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert "CheckpointError: unknown model 'vit_tinny'" in printed
    bars = [data["text/html"] for data in client.shown if "<progress" in data.get("text/html", "")]
    assert any("neutreno" in bar and "epoch 3/3" in bar for bar in bars)
    assert not any("<progress" in output.get("data", {}).get("text/html", "") for output in outputs)  # bars have gone


def test_there_is_one():
    assert NOTEBOOKS
