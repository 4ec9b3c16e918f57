"""Parameters of a cycle: pydantic models of `params/*.yaml`, closed to unknown keys and checked before anything runs.

In: a YAML file and overrides from the command line. Out: `CycleParams` (`cycle`) with its sections: what is read
(`inputs`), trained (`conditions`, `hyperparameters`) and measured (`benchmarks`), and how it is decided (`rules`).
Every room may import this one; it imports only the modules outside the rooms, and never torch.
"""
