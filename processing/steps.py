# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""One step of the optimiser: on a batch in pieces, with gradients clipped, and with an answer to what goes wrong in
long runs (values that are not finite, a loss scale that collapses, memory that runs out)."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors.torch import save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .checkpoints import write_whole


SKIPPED_STEPS = 20  # in a row, of fp16: the loss scale has then fallen by 2 ** 20, which no healthy run needs


def rising_average(decay: float) -> Callable:
    """A `multi_avg_fn` of `AveragedModel`: exponential averages whose decay rises to `decay` as (1 + steps) /
    (10 + steps), so that those of early epochs are not half made of the weights of the start."""

    def average(averaged: list[torch.Tensor], current: list[torch.Tensor], steps: torch.Tensor) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)

    return average


class OptimizerStep:
    """Takes the steps of a run.

    Args:
        accelerator: an `Accelerator`.
        models: what was prepared and has gradients; with several processes they exchange them once per step.
        optimizer, scheduler: both prepared.
        parameters: whose gradients are clipped.
        max_grad_norm: to this norm.
        averaged: a `torch.optim.swa_utils.AveragedModel` of the first model without its wrapper, or None.
        halve: whether to go on with smaller pieces when memory runs out.
        rows_folder: where the rows are kept on which a run stops.
    """

    def __init__(
        self,
        accelerator,
        models: list,
        optimizer,
        scheduler,
        parameters: list,
        *,
        max_grad_norm: float,
        averaged,
        halve: bool,
        rows_folder: Path,
    ):
        self.accelerator = accelerator
        self.models = models
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.parameters = parameters
        self.max_grad_norm = max_grad_norm
        self.averaged = averaged
        self.halve = halve
        self.rows_folder = rows_folder

    def __call__(self, losses_of: Callable[[dict], dict], batch: dict, state: dict) -> dict[str, float]:
        """Takes one step, and counts it.

        Args:
            losses_of: gives the losses of a batch, means over its rows, None for one that is switched off; `loss`
                among them is followed downhill.
            batch: one step's share of this process; its rows count alike, or by `weight` where there is one.
            state: `step`, `skipped` (fp16 steps in a row without an effect) and `pieces` (in how many parts the batch
                is computed) are read and written.

        Returns:
            Each loss as the mean of the batch, and `gradient_norm` before clipping.

        Raises:
            ValueError: one sentence, when a loss or gradient is not finite; the weights are those before the step.
            RuntimeError: out of memory, when halving is off or cannot help.
        """
        while True:
            try:
                means = self._backward(losses_of, batch, state)
                break
            except RuntimeError as error:
                # A process by itself cannot change its pieces: the others would wait for it for ever.
                helps = state["pieces"] < len(batch["name"]) and self.accelerator.num_processes == 1
                if not (self.halve and helps and should_reduce_batch_size(error)):
                    raise
            self._halve(batch, state)  # only here are the error, and the tensors it held, gone

        norm = self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm).item()
        if not math.isfinite(norm) and self.accelerator.scaler is None:
            self._stop("gradient norm", norm, batch, state)
        self.optimizer.step()
        if self.accelerator.optimizer_step_was_skipped:
            state["skipped"] += 1
            if state["skipped"] >= SKIPPED_STEPS:
                scale = self.accelerator.scaler.get_scale()
                raise ValueError(
                    f"{SKIPPED_STEPS} steps in a row overflowed in fp16 (loss scale {scale} at step {state['step']}): "
                    "use --mixed_precision bf16, or lower --learning_rate."
                )
        else:
            state["skipped"] = 0
            self.scheduler.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.accelerator.unwrap_model(self.models[0]))
        self.optimizer.zero_grad()
        state["step"] += 1
        # An overflow of fp16, whose step was skipped, has no norm that could be averaged.
        return {**means, "gradient_norm": norm} if math.isfinite(norm) else means

    def _backward(self, losses_of, batch, state) -> dict[str, float]:
        """Leaves the gradient of the batch's mean loss: each piece counts by its rows."""
        means: dict[str, float] = {}
        pieces = split_batch(batch, self._agreed(state["pieces"], len(batch["name"])))
        for number, piece in enumerate(pieces, 1):
            share = piece["weight"].sum().item() if "weight" in batch else len(piece["name"]) / len(batch["name"])
            with contextlib.ExitStack() as stack:
                if number < len(pieces):
                    for model in self.models:
                        stack.enter_context(self.accelerator.no_sync(model))
                losses = {name: loss for name, loss in losses_of(piece).items() if loss is not None}
                for name, loss in losses.items():
                    means[name] = means.get(name, 0.0) + share * loss.item()
                if not math.isfinite(losses["loss"].item()):
                    self._stop("loss", losses["loss"].item(), piece, state)
                self.accelerator.backward(share * losses["loss"])
        return means

    def _agreed(self, pieces: int, rows: int) -> int:
        """No more pieces than the process with the fewest rows can make: where processes share BatchNorm statistics,
        each waits for the others in every piece."""
        if pieces == 1 or self.accelerator.num_processes == 1:
            return pieces
        counts = self.accelerator.gather(torch.tensor([rows], device=self.accelerator.device))
        return min(pieces, int(counts.min()))

    def _halve(self, batch, state) -> None:
        self.optimizer.zero_grad()
        clear_device_cache(garbage_collection=True)
        state["pieces"] *= 2
        rows = -(-len(batch["name"]) // state["pieces"])
        self.accelerator.print(f"\nout of memory at step {state['step']}: going on with {rows} pictures at once")

    def _stop(self, what: str, value: float, batch: dict, state: dict) -> None:
        name = f"step-{state['step']:08d}-process-{self.accelerator.process_index}"
        folder = save_rows(batch, self.rows_folder / name)
        raise ValueError(
            f"the {what} is {value} at step {state['step']}: look at the rows in {folder}; if they are sound, lower "
            "--learning_rate and start anew."
        )


def split_batch(batch: dict, pieces: int) -> list[dict]:
    """The rows of a batch in so many parts of nearly one size; fewer where there are fewer rows."""
    cuts = np.array_split(np.arange(len(batch["name"])), min(pieces, len(batch["name"])))
    return [{key: values[cut[0] : cut[-1] + 1] for key, values in batch.items()} for cut in cuts]


def save_rows(batch: dict, folder: Path) -> Path:
    """Keeps rows as the model saw them: `rows.safetensors` and, with names and sentences, `rows.json`. Where the
    pixels of some rows are not finite, only those."""
    bad = [i for i, pixels in enumerate(batch["pixel_values"]) if not pixels.isfinite().all()]
    columns = {key: [values[i] for i in bad or range(len(values))] for key, values in batch.items()}
    tensors = {key: torch.stack(values).cpu() for key, values in columns.items() if torch.is_tensor(values[0])}

    def write(draft: Path) -> None:
        save_file(tensors, draft / "rows.safetensors")
        words = {key: values for key, values in columns.items() if key not in tensors}
        (draft / "rows.json").write_text(json.dumps(words, indent=2))

    write_whole(folder, write)
    return folder


def mean_over_processes(accelerator, values: dict[str, float]) -> dict[str, float]:
    """Each value as the mean of all processes' values; all must call it, with the same keys."""
    if accelerator.num_processes == 1:
        return dict(values)
    tensor = torch.tensor(list(values.values()), dtype=torch.float64, device=accelerator.device)
    return dict(zip(values, accelerator.reduce(tensor, "mean").tolist(), strict=True))


def share_buffers(accelerator, model: torch.nn.Module) -> None:
    """Gives all processes the first one's BatchNorm statistics. Each has those of its own batches after a step, while
    only the first one's are saved: what is evaluated would not be what is kept."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            broadcast(buffer)
