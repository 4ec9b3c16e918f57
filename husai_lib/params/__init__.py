"""Parameters of a cycle: pydantic models of `params/*.yaml`, closed to unknown keys and checked before anything runs.

In: a YAML file and overrides of the command line. Out: a `CycleParams` (`cycle`), made of sections: what is read
(`inputs`), trained (`conditions`, `hyperparameters`), measured (`benchmarks`) and how it is decided (`rules`).
Every room may know this one; it knows only the ground floor, and never imports torch.
"""
