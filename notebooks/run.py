"""Run the notebook from top to bottom and fail at the first cell that fails: `python notebooks/run.py [OUT.ipynb]`.

With a path it is written there with its outputs; so what is committed was made, and is made again after a change:

    python notebooks/run.py notebooks/InferenceGym_Demo.ipynb
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE / "InferenceGym_Demo.ipynb"
LIMIT_S = 600  # a cell


def digest(notebook: Any) -> str:
    """Of what the cells say; stored beside the outputs that it gave."""
    cells = [[cell["cell_type"], "".join(cell["source"])] for cell in notebook["cells"]]
    return hashlib.sha256(repr(cells).encode()).hexdigest()


def main(arguments: list[str]) -> int:
    """Run it; with a path, write it there with its outputs."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("PYTHONPATH", str(HERE.parent))  # the server is not in the wheel
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=LIMIT_S,
        kernel_name="python3",
        resources={"metadata": {"path": HERE.parent}},
        record_timing=False,
    )
    start = time.perf_counter()
    try:
        client.execute()
    except CellExecutionError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(notebook.cells)} cells in {time.perf_counter() - start:.0f} s")
    if arguments:
        notebook.metadata["outputs_of"] = digest(notebook)
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, arguments[0])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
