"""A stack: members of one shape, trained as one computation, step by step.

On a CPU a stack is one member with sparse latents, and several stacks are trained in parallel. On a GPU it is as many
members as memory holds, and every formula is `vmap`ped over them.
"""

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.linalg import vector_norm
from torch.utils._pytree import tree_map

from husai_lib.activations.banks import Bank
from husai_lib.errors import ParameterError
from husai_lib.files import canonical_json, write_bytes
from husai_lib.params.conditions import Condition
from husai_lib.randomness import torch_generator
from husai_lib.saes.architectures import TrainableSae, new_sae
from husai_lib.saes.architectures.base import Loss, TrainState
from husai_lib.saes.data import DEAD_AFTER, Data, batches
from husai_lib.saes.objective import Consistency
from husai_lib.saes.trained import Member

GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm, as SAELens' trainer does."""
CHECKPOINT_SECONDS = 45.0
"""Time between checkpoints: the most that a killed run loses."""
INDICES_TOGETHER = 64
"""Steps whose row indices are moved to the device at once."""
HELD_SHARE = 0.2
"""Share of a GPU's memory up to which it holds all rows; of larger banks it gets each batch from the files."""
DEAD_EVERY = 8
"""Steps between checks for members with dead latents to revive; a check makes a GPU wait."""
L0_INTEGRAL, L0_PROPORTIONAL, L0_SMOOTHING = 0.05, 1.0, 0.3
"""Gains per step of the controller of `match_l0`, from the smoothed log of L0 / k to the log of the coefficient."""


class Stack:
    """Members of one shape in training: same architecture, widths, batches and whole-number hyperparameters."""

    def __init__(
        self,
        members: Sequence[Member],
        data: Data,
        device: str,
        sparse: bool | None = None,
        references: Sequence[Tensor] = (),
    ) -> None:
        self.members, self.data, self.device = list(members), data, device
        self.condition = members[0].condition
        if device == "cpu" and self.condition.precision == "tf32":
            raise ParameterError(
                "precision = 'tf32' needs a GPU; use float32, or --device cuda on a machine with a GPU"
            )
        self.steps = self.condition.training_samples // self.condition.batch_size
        self.done = 0
        d_in, d_out = data.rows.shape[1], data.target.shape[1]
        self.saes: list[TrainableSae] = []
        for member in members:
            generator = torch_generator(member.seed, f"initial weights {self.condition.architecture}")
            sae = new_sae(member.condition, d_in, d_out, generator)
            sae.b_dec.data = sae.start_bias(data.mean.clone())
            sae.sparse = len(members) == 1 and device == "cpu" if sparse is None else sparse
            self.saes.append(sae.to(device))
        self.alone = len(members) == 1
        self.computed: dict[str, Tensor] = self.saes[0].state_dict(keep_vars=True)
        """Parameters and buffers by name, as formulas use them."""
        if not self.alone:
            parameters, buffers = stack_module_state(self.saes)
            self.computed = parameters | buffers
        self.tensors = {name: self._all(tensor.data) for name, tensor in self.computed.items()}
        """The same memory, always with a leading dimension for the members."""
        for m, sae in enumerate(self.saes):
            for name, tensor in sae.state_dict(keep_vars=True).items():
                tensor.data = self.tensors[name][m]
        self.consistency: Consistency | None = None
        if objective := self.condition.objective:
            weights = [member.condition.objective.weight for member in members if member.condition.objective]
            each = torch.tensor(weights, device=device)
            self.consistency = Consistency(each, self.tensors["W_dec"], objective.assignment_interval, references)
        groups = [{"params": list(sae.parameters()), "lr": 0.0} for sae in self.saes]
        self.optimiser = torch.optim.Adam(groups, fused=True)
        for p in itertools.chain(*(sae.parameters() for sae in self.saes)):  # Adam would do this in its first step
            moments = {"exp_avg": torch.zeros_like(p.data), "exp_avg_sq": torch.zeros_like(p.data)}
            self.optimiser.state[p] = {"step": torch.zeros((), device=device), **moments}
        self.unfired = torch.zeros(len(members), self.condition.d_sae, device=device)
        self.reviving = torch.zeros(len(members), 1, dtype=torch.bool, device=device)
        self.some_dead = False
        self.tuned = self.saes[0].sparsity_coefficient if self.condition.match_l0 else None
        start = self.tensors[self.tuned] if self.tuned else torch.ones(1)
        self.log_coefficient = start.clamp(min=1e-6).log()
        self.log_l0 = torch.full((len(members),), math.log(self.condition.k), device=device)

    # --- one step ------------------------------------------------------------------------------

    def train(self, checkpoint: Path | None = None) -> list[TrainableSae]:
        """Do all remaining steps, with a checkpoint every `CHECKPOINT_SECONDS`; returns the trained SAEs."""
        if checkpoint and checkpoint.exists():
            self.load(checkpoint)
        saved = time.monotonic()
        for x, target in self.batches():
            self.step(x, target)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        return self.saes

    def step(self, x: Tensor, target: Tensor) -> Loss:
        """One optimiser step of every member on `x [members, n, d_in]` and `target [members, n, d_out]`, scaled.

        Adam, with the gradients of each member clipped to `GRADIENT_NORM` and its step size decayed linearly to zero
        over the last fifth of the steps.
        """
        if self.tuned and self.done == 0:
            self._write(self._call("start_at_l0", x))
        decay = min(1.0, (self.steps - self.done) / max(1, self.steps // 5))
        for member, group in zip(self.members, self.optimiser.param_groups, strict=True):
            group["lr"] = member.condition.learning_rate * decay
        dead = self.unfired > DEAD_AFTER * self.steps
        if self.done % DEAD_EVERY == 0:
            self.reviving.copy_(dead.any(1, keepdim=True))
            self.some_dead = bool(self.reviving.any())
        state = TrainState(self.done, self.steps, dead & self.reviving if self.some_dead else None, self._noise(x))
        with self._precision():
            loss: Loss = self._call("loss", x, target, state)
        self.optimiser.zero_grad()
        loss.total.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if self.consistency:
                if self.done % self.consistency.interval == 0:
                    self.consistency.match(self.tensors["W_dec"])
                gradients = self._all(cast("Tensor", self.computed["W_dec"].grad))
                self.consistency.add_gradient(self.tensors["W_dec"], gradients, target)
            self._clip_gradients()
            self.optimiser.step()
            self._write(self._call("projected"))
            self._write(loss.buffers)
            self.unfired.add_(1).masked_fill_(loss.firing > 0, 0.0)
            if self.tuned:
                self._tune(loss.firing.sum(1) / x.shape[1], decay)
        self.done += 1
        return loss

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Scaled inputs and targets of the remaining steps, `[members, n, d]`, in the order of each seed."""
        data, to = self.data, self.device
        orders = [batches(data.rows.shape[0], self.condition, member.seed) for member in self.members]
        steps = itertools.islice(zip(*orders, strict=True), self.done, None)
        banks = {id(bank): bank for bank in (data.rows, data.target)}
        held = {name: bank.on(to) for name, bank in banks.items()} if _can_hold(to, banks.values()) else {}

        def read(bank: Bank, index: Tensor, scale: float) -> Tensor:
            if held:
                return held[id(bank)][index] * scale
            return bank.take(index.flatten().numpy()).to(to).mul_(scale).view(*index.shape, -1)

        while together := list(itertools.islice(steps, INDICES_TOGETHER)):
            for index in torch.from_numpy(np.array(together)).to(to if held else "cpu"):
                x = read(data.rows, index, data.scale_in)
                yield x, x if data.target is data.rows else read(data.target, index, data.scale_out)

    def _call(self, method: str, *arguments: Any) -> Any:
        """Call a method of all members at once; tensors, results included, have a leading dimension for the members."""
        if self.alone:
            one = tree_map(lambda a: a[0] if isinstance(a, Tensor) else a, arguments)
            return tree_map(lambda a: a[None], self.saes[0](method, *one))
        dims = tree_map(lambda a: 0 if isinstance(a, Tensor) else None, arguments)

        def of_one(state: dict[str, Tensor], given: Any) -> Any:
            return functional_call(self.saes[0], state, (method, *given))

        return vmap(of_one, in_dims=(0, dims))(self.computed, arguments)

    def _all(self, tensor: Tensor) -> Tensor:
        """A parameter or buffer with its leading dimension for the members."""
        return tensor[None] if self.alone else tensor

    def _write(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self.tensors[name].copy_(value)

    def _clip_gradients(self) -> None:
        """Pass each member's gradients to its parameters, scaled down to `GRADIENT_NORM` if they exceed it."""
        gradients = {name: self._all(p.grad) for name, p in self.computed.items() if p.grad is not None}
        norms = torch.stack([vector_norm(g.flatten(1), dim=1) for g in gradients.values()]).norm(dim=0)
        for name, g in gradients.items():
            g.mul_((GRADIENT_NORM / (norms + 1e-6)).clamp(max=1.0).view(-1, *[1] * (g.ndim - 1)))
            self.computed[name].grad = None
            for sae, own in zip(self.saes, g, strict=True):
                sae.get_parameter(name).grad = own

    def _tune(self, l0: Tensor, decay: float) -> None:
        """Move the sparsity coefficient so that L0 approaches k: by a proportional-integral controller of its log."""
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

    # --- checkpoints ---------------------------------------------------------------------------------

    def _state(self) -> dict[str, Tensor]:
        """Everything that changes from step to step, by name. Writing into these tensors restores it."""
        names = ("unfired", "reviving", "log_coefficient", "log_l0")
        state = {name: getattr(self, name) for name in names} | self.tensors
        state |= self.consistency.state() if self.consistency else {}
        for m, sae in enumerate(self.saes):
            for name, p in sae.named_parameters():
                state |= {f"adam/{m}/{name}/{key}": value for key, value in self.optimiser.state[p].items()}
        return state

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically. Raises EvidenceError if the disk is full or read-only."""
        write_bytes(path, save(self._state() | {"done": torch.tensor(self.done)}))

    def load(self, path: Path) -> None:
        """Resume from a checkpoint; if it cannot be read, training starts from the beginning."""
        try:
            saved = load_file(path, self.device)
        except SafetensorError:
            return
        self.done = int(saved["done"])
        for name, tensor in self._state().items():
            tensor.copy_(saved[name])
        self.some_dead = bool(self.reviving.any())


def stacks_of(members: Sequence[Member], d_in: int, d_out: int, device: str, workers: int = 1) -> list[list[int]]:
    """Indices of the members of each stack: one on a CPU, as many of one shape as free memory holds on a GPU.

    With several workers, each with a GPU, members of one shape are dealt to all of them. Members that align with each
    other are one stack everywhere, and no other is in it.
    """
    together: dict[Any, list[int]] = {}
    for i, member in enumerate(members):
        shape = i if device == "cpu" else _shape(member.condition)
        together.setdefault((member.condition.name, member.bank) if member.bank else shape, []).append(i)
    if device == "cpu":
        return list(together.values())
    free, _ = torch.cuda.mem_get_info()
    stacks = []
    for alike in together.values():
        first = members[alike[0]]
        fitting = max(1, int(0.7 * free / _bytes_of_member(first.condition, d_in, d_out)))
        size = len(alike) if first.bank else min(fitting, math.ceil(len(alike) / workers))
        stacks += [alike[i : i + size] for i in range(0, len(alike), size)]
    return stacks


def _can_hold(device: str, banks: Iterable[Bank]) -> bool:
    """Whether a GPU has room for all rows of the banks."""
    if device == "cpu":
        return False
    _, total = torch.cuda.mem_get_info()
    return sum(4 * math.prod(bank.shape) for bank in banks) <= HELD_SHARE * total


def _shape(condition: Condition) -> str:
    """The part of a condition that all members of a stack share."""
    whole = {key: value for key, value in condition.hyperparameters.items() if not isinstance(value, float)}
    # a loss whose weight is zero is left out of the formula, so that zeros change the computation
    absent = sorted(key for key, value in condition.hyperparameters.items() if value == 0)
    common = condition.model_dump(exclude={"name", "learning_rate", "hyperparameters", "consistency"})
    return canonical_json([common, whole, absent, condition.objective and condition.objective.assignment_interval])


def _bytes_of_member(condition: Condition, d_in: int, d_out: int) -> int:
    """Memory of a member in training: weights, gradients, Adam's moments and the tensors of a step."""
    weights = 4 * condition.d_sae * (d_in + d_out)
    return 4 * (weights + condition.batch_size * (12 * condition.d_sae + 8 * (d_in + d_out)))
