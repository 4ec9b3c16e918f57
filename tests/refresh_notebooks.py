"""Run the notebooks with their defaults, the smoke cycle, and keep the outputs: 'make notebooks'."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parent.parent


def cpu_kind() -> str:
    """What decides the last digits of floating-point results: the instruction set that torch uses."""
    import torch

    vendors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("vendor_id")]
    return f"{torch.backends.cpu.get_cpu_capability()} {vendors[0].split(':')[1].strip() if vendors else sys.platform}"


def main() -> None:
    from husai_lib.cycle.execution import strip_notebook

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HUSAI_SCRATCH"] = scratch
        for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
            notebook = nbformat.read(path, as_version=4)
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
            nbformat.write(notebook, path)
            strip_notebook(path)
            print(path.relative_to(REPOSITORY))  # noqa: T201
    (REPOSITORY / "tests" / "notebook_outputs_cpu.txt").write_text(cpu_kind() + "\n")


if __name__ == "__main__":
    main()
