"""One notebook, executed by papermill on the running interpreter, and its failure in one sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillException, PapermillExecutionError

from husai_lib import errors
from husai_lib.params import REPOSITORY

# Failures are told once, as an exception; asyncio would tell of a kernel that was stopped on purpose.
for _logger in ("papermill", "asyncio"):
    logging.getLogger(_logger).addHandler(logging.NullHandler())
    logging.getLogger(_logger).propagate = False


def execute(notebook: Path, output: Path, parameters: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Run `notebook` with `parameters` in the repository's root and leave it, executed, at `output`.

    The kernel gets `environment` beside this process's own, and has ended when this returns or raises.
    A failing cell raises StepError, or the error of this library that it raised. In every case
    `output` holds what was executed so far.
    """
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=REPOSITORY,
            execution_timeout=None,
            kernel_manager_class=_kernel_manager(dict(environment)),
        )
    except PapermillExecutionError as error:
        raise _told(error.ename, error.evalue) from error
    except DeadKernelError as error:
        raise errors.StepError("the kernel died (out of memory?)") from error
    except (PapermillException, RuntimeError) as error:
        raise errors.StepError(f"the notebook could not be executed: {_one_line(str(error))}") from error


def _kernel_manager(environment: dict[str, str]) -> type[AsyncKernelManager]:
    """A kernel of this interpreter, whatever kernels named python3 are installed."""

    class ThisInterpreter(AsyncKernelManager):
        @cached_property
        def kernel_spec(self) -> KernelSpec:
            # Its log would go to this process's stderr; what cells write there is in the notebook.
            spec = get_kernel_dict(extra_arguments=["--log-level=CRITICAL"], python_arguments=["-Xfrozen_modules=off"])
            return KernelSpec(**spec | {"env": environment})

    return ThisInterpreter


def _told(name: str, message: str) -> errors.HusaiError:
    """The error a cell raised: one of this library keeps its class, and so its exit code."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.HusaiError):
        return kind(_one_line(message))
    return errors.StepError(_one_line(f"{name}: {message}"))


def _one_line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 400 else f"{words[:400]}…"
