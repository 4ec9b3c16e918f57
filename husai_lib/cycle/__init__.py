"""Cycles: from parameters to an executed sequence of notebooks.

In: a `CycleParams`. Out: a complete run under `evidence/`, or an unfinished one that `--resume` carries on with.
`run` plans and journals the steps, `execution` executes one notebook by papermill and watches it.
Only the command line knows this room. It calls the measuring wing through notebooks alone, so it never imports torch.
"""
