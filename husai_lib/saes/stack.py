"""A stack: members of one shape, trained as one computation, step by step.

On a CPU a stack is one member with sparse latents, and a bank is many stacks side by side; on a GPU it is as
many members as memory holds, and every formula is `vmap`ped over them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.utils._pytree import tree_map

from husai_lib.activations.banks import Bank
from husai_lib.errors import ParameterError
from husai_lib.files import canonical_json, write_bytes
from husai_lib.params.conditions import Condition, SaeParams
from husai_lib.randomness import numpy_generator, torch_generator
from husai_lib.saes.architectures import TrainableSae, new_sae
from husai_lib.saes.architectures.base import Loss, TrainState
from husai_lib.saes.trained import Member

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm, as SAELens' trainer does."""
CHECKPOINT_SECONDS = 45.0
"""Time between checkpoints: what a killed run loses at most."""
INDICES_TOGETHER = 64
"""Steps whose row indices go to the device at once."""
DEAD_EVERY = 8
"""Steps between looks at which members have dead latents to revive; looking makes a GPU wait."""
L0_INTEGRAL, L0_PROPORTIONAL, L0_SMOOTHING = 0.05, 1.0, 0.3
"""Gains of the controller of `match_l0`, a step: on the log of the coefficient, by the log of L0 / k, smoothed."""


@dataclass(frozen=True)
class Data:
    """What is learnt: input rows and their targets, each with the factor that gives it a mean norm of sqrt(d)."""

    rows: Bank
    target: Bank
    scale_in: float
    scale_out: float
    mean: Tensor
    """The mean scaled target, `[d_out]`, from which decoder biases start."""

    @classmethod
    def of(cls, rows: Bank, target: Bank | None = None) -> Data:
        """Rows to be reconstructed, or mapped to `target`."""
        outputs = target or rows
        scale_out = outputs.scale()
        return cls(rows, outputs, rows.scale(), scale_out, outputs.mean().float() * scale_out)


class Stack:
    """Members of one shape in training: same architecture, widths, batches and whole-number hyperparameters."""

    def __init__(self, members: Sequence[Member], data: Data, device: str, sparse: bool | None = None) -> None:
        self.members, self.data, self.device = list(members), data, device
        self.condition = members[0].condition
        if device == "cpu" and self.condition.precision == "tf32":
            raise ParameterError("precision = 'tf32' is a GPU's; use float32, or --device cuda where there is one")
        self.steps = self.condition.training_samples // self.condition.batch_size
        self.done = 0
        d_in, d_out = data.rows.rows.shape[1], data.target.rows.shape[1]
        self.saes = [_started(member, d_in, d_out) for member in members]
        for sae in self.saes:
            sae.b_dec.data = sae.start_bias(data.mean.clone())
            sae.sparse = len(members) == 1 and device == "cpu" if sparse is None else sparse
            sae.to(device)
        self.parameters: dict[str, Tensor] = dict(self.saes[0].named_parameters())
        self.buffers: dict[str, Tensor] = dict(self.saes[0].named_buffers())
        self.alone = len(members) == 1
        if not self.alone:
            self.parameters, self.buffers = stack_module_state(self.saes)
        self.views = [[self._all(p.data)[m] for p in self.parameters.values()] for m in range(len(members))]
        groups = [{"params": views, "lr": 0.0} for views in self.views]
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self.unfired = torch.zeros(len(members), self.condition.d_sae, device=device)
        self.reviving = torch.zeros(len(members), 1, dtype=torch.bool, device=device)
        self.some_dead = False
        self.tuned = self.saes[0].sparsity_coefficient if self.condition.match_l0 else None
        self.log_coefficient = (
            self._all(self.buffers[self.tuned]).clamp(min=1e-6).log() if self.tuned else torch.zeros(1)
        )
        self.log_l0 = torch.full((len(members),), math.log(self.condition.k), device=device)

    # --- one step ------------------------------------------------------------------------------

    def train(self, checkpoint: Path | None = None) -> list[TrainableSae]:
        """All steps that are not done yet, with a checkpoint now and then; returns the trained SAEs."""
        if checkpoint and checkpoint.exists():
            self.load(checkpoint)
        saved = time.monotonic()
        for x, target in self.batches():
            self.step(x, target)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        return self.trained()

    def step(self, x: Tensor, target: Tensor) -> Loss:
        """One optimiser step of every member on `x [members, n, d_in]` and `target [members, n, d_out]`, scaled.

        Adam; gradients clipped to `GRADIENT_NORM` by member; step size decayed linearly to zero over the last fifth.
        """
        if self.tuned and self.done == 0:
            self._write(self._call("start_at_l0", x))
        decay = min(1.0, (self.steps - self.done) / max(1, self.steps // 5))
        for member, group in zip(self.members, self.optimiser.param_groups, strict=True):
            group["lr"] = member.condition.learning_rate * decay
        dead = self.unfired > self.saes[0].dead_after * self.steps
        if self.done % DEAD_EVERY == 0:
            self.reviving = dead.any(1, keepdim=True)
            self.some_dead = bool(self.reviving.any())
        state = TrainState(self.done, self.steps, dead & self.reviving if self.some_dead else None, self._noise(x))
        with self._precision():
            loss: Loss = self._call("loss", x, target, state)
        loss.total.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._clip_gradients()
            self.optimiser.step()
            self._write(self._call("projected"))
            self._write(loss.buffers)
            self.unfired = torch.where(loss.firing > 0, 0.0, self.unfired + 1)
            if self.tuned:
                self._tune(loss.firing.sum(1) / x.shape[1], decay)
        self.done += 1
        return loss

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled inputs and targets of the steps not done yet, `[members, n, d]`, in each seed's own order."""
        data, to = self.data, self.device
        orders = [batches(len(data.rows.rows), self.condition, member.seed) for member in self.members]
        steps = zip(*orders, strict=True)
        held = {id(bank): bank.on(to) for bank in (data.rows, data.target)} if to != "cpu" else {}

        def read(bank: Bank, index: Tensor, scale: float) -> Tensor:
            if held:
                return held[id(bank)][index] * scale
            rows = [bank.take(order).mul_(scale)[None] for order in index.numpy()]
            return rows[0] if self.alone else torch.cat(rows)

        for together in _together(itertools.islice(steps, self.done, None), INDICES_TOGETHER):
            for index in torch.from_numpy(np.array(together)).to(to):
                x = read(data.rows, index, data.scale_in)
                yield x, x if data.target is data.rows else read(data.target, index, data.scale_out)

    def _call(self, method: str, *arguments: Any) -> Any:
        """A method of every member at once; tensors, its results too, have a leading dimension for the members."""
        if self.alone:
            one = tree_map(lambda a: a[0] if isinstance(a, Tensor) else a, arguments)
            return tree_map(lambda a: a[None], self.saes[0](method, *one))
        dims = tree_map(lambda a: 0 if isinstance(a, Tensor) else None, arguments)

        def of_one(state: dict[str, Tensor], given: Any) -> Any:
            return functional_call(self.saes[0], state, (method, *given))

        return vmap(of_one, in_dims=(0, dims))(self.parameters | self.buffers, arguments)

    def _all(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer with its dimension for the members."""
        return tensor[None] if self.alone else tensor

    def _write(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._all((self.parameters | self.buffers)[name].data).copy_(value)

    def _clip_gradients(self) -> None:
        """Hand each member's gradients to the optimiser, scaled down to `GRADIENT_NORM` where they exceed it."""
        gradients = [self._all(p.grad) for p in self.parameters.values() if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        for g in gradients:
            g.mul_((GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0).view(-1, *[1] * (g.ndim - 1)))
        for m, views in enumerate(self.views):
            for view, p in zip(views, self.parameters.values(), strict=True):
                view.grad = None if p.grad is None else self._all(p.grad)[m]
        for p in self.parameters.values():
            p.grad = None

    def _tune(self, l0: Tensor, decay: float) -> None:
        """Move the sparsity coefficient so that L0 nears k: a proportional-integral controller on its logarithm."""
        assert self.tuned
        self.log_l0.lerp_(l0.to(self.log_l0).clamp(min=1e-3).log(), L0_SMOOTHING)
        error = (self.log_l0 - math.log(self.condition.k)).clamp(-1, 1)
        self.log_coefficient += L0_INTEGRAL * error
        self._write({self.tuned: (self.log_coefficient + L0_PROPORTIONAL * error).exp()})
        self._write(self._call("nearer_to_l0", error * decay / 20))

    def _noise(self, x: Tensor) -> Tensor | None:
        if not self.saes[0].wants_noise:
            return None
        seeds = [member.seed for member in self.members]
        generators = [torch_generator(seed, f"noise {self.done}", self.device) for seed in seeds]
        return torch.stack([torch.randn(x.shape[1:], generator=g, device=self.device) for g in generators])

    def _precision(self) -> AbstractContextManager[Any]:
        if self.device == "cuda":
            torch.set_float32_matmul_precision("high" if self.condition.precision == "tf32" else "highest")
        bf16 = self.condition.precision == "bfloat16"
        return torch.autocast(self.device, torch.bfloat16) if bf16 else nullcontext()

    # --- what is left of it ----------------------------------------------------------------------

    def trained(self) -> list[TrainableSae]:
        """The members' SAEs with the weights as they are now."""
        for m, sae in enumerate(self.saes):
            for name, tensor in (dict(sae.named_parameters()) | dict(sae.named_buffers())).items():
                tensor.data = self._all((self.parameters | self.buffers)[name].data)[m]
        return self.saes

    def _state(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, by name; writing into these tensors restores it."""
        state = {"unfired": self.unfired, "reviving": self.reviving}
        state |= {"log_coefficient": self.log_coefficient, "log_l0": self.log_l0}
        state |= {name: tensor.data for name, tensor in (self.parameters | self.buffers).items()}
        for m, views in enumerate(self.views):
            for name, view in zip(self.parameters, views, strict=True):
                state |= {f"adam/{m}/{name}/{key}": value for key, value in self.optimiser.state[view].items()}
        return state

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all; EvidenceError where the disk is full or read-only."""
        tensors = {name: tensor.contiguous() for name, tensor in self._state().items()}
        write_bytes(path, save(tensors, {"done": str(self.done)}))

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; one that cannot be read is left aside, and training starts anew."""
        try:
            with safe_open(path, "pt", device=self.device) as file:
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it has no iterator
                done = int(file.metadata()["done"])
        except SafetensorError:
            return
        self.done = done
        for m, views in enumerate(self.views):  # Adam makes its state in its first step
            for name, view in zip(self.parameters, views, strict=True):
                own = f"adam/{m}/{name}/"
                self.optimiser.state[view] = {k.removeprefix(own): v for k, v in saved.items() if k.startswith(own)}
        for name, tensor in self._state().items():
            tensor.copy_(saved[name])
        self.some_dead = bool(self.reviving.any())


def batches(n_rows: int, params: SaeParams, seed: int) -> Iterator[np.ndarray]:
    """Row indices of each step: epoch after epoch, each in a new random order of this seed's own."""
    generator = numpy_generator(seed, "data order")
    pending = np.empty(0, dtype=np.int64)
    for _ in range(params.training_samples // params.batch_size):
        while len(pending) < params.batch_size:
            pending = np.concatenate([pending, generator.permutation(n_rows)])
        yield pending[: params.batch_size]
        pending = pending[params.batch_size :]


def stacks_of(members: Sequence[Member], d_in: int, d_out: int, device: str) -> list[list[int]]:
    """Indices of members dealt to stacks: one each on a CPU, as many of one shape as free memory holds on a GPU."""
    if device == "cpu":
        return [[i] for i in range(len(members))]
    shapes: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        shapes.setdefault(_shape(member.condition), []).append(i)
    free, _ = torch.cuda.mem_get_info()
    stacks = []
    for alike in shapes.values():
        size = max(1, int(0.7 * free / _bytes_of_member(members[alike[0]].condition, d_in, d_out)))
        stacks += [alike[i : i + size] for i in range(0, len(alike), size)]
    return stacks


def _shape(condition: Condition) -> str:
    """What the members of a stack must have in common."""
    whole = {key: value for key, value in condition.hyperparameters.items() if not isinstance(value, float)}
    # a loss whose weight is zero is left out of the formula, so that zeros are no mere numbers
    absent = sorted(key for key, value in condition.hyperparameters.items() if value == 0)
    common = condition.model_dump(exclude={"name", "learning_rate", "hyperparameters"})
    return canonical_json([common, whole, absent])


def _bytes_of_member(condition: Condition, d_in: int, d_out: int) -> int:
    """Memory of a member in training: weights, gradients, Adam's moments, and a step's tensors, most `[n, d_sae]`."""
    weights = 4 * condition.d_sae * (d_in + d_out)
    return 4 * (weights + condition.batch_size * (12 * condition.d_sae + 8 * (d_in + d_out)))


def _together(steps: Iterator[Any], count: int) -> Iterator[list[Any]]:
    """`itertools.batched`, which Python has from 3.12 on."""
    while some := list(itertools.islice(steps, count)):
        yield some


def _started(member: Member, d_in: int, d_out: int) -> TrainableSae:
    condition = member.condition
    return new_sae(condition, d_in, d_out, torch_generator(member.seed, f"initial weights {condition.architecture}"))
