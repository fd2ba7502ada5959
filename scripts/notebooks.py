"""Execute the notebooks under notebooks/ in place, so that their tables and pictures are those of code and records."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path, folder: Path = NOTEBOOKS) -> Any:
    """Run all cells of a notebook, in ``folder``, in a kernel of its own.

    Returns:
        The notebook with its outputs, and without what would differ from run to run: times and versions of the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; its traceback is the message.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    )
    # Settings that are not the user's own, no history left behind; models so small gain nothing from more threads.
    with tempfile.TemporaryDirectory() as settings:
        client.execute(env=os.environ | {"IPYTHONDIR": settings, "OMP_NUM_THREADS": "1"})
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def main() -> int:
    """Execute every notebook, or those that are named, and write them back."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(f"{path.name}: executed, {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
