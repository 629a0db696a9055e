# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""BatchNorm over the batches of all processes, for training: small batches on many processes then count as one."""

import torch
import torch.distributed
from torch import nn
from torch.distributed.nn.functional import all_reduce


class ProcessBatchNorm2d(nn.BatchNorm2d):
    """What `torch.nn.SyncBatchNorm` computes, which itself refuses to run on CPUs. Gradients pass through the sums of
    all processes. `(batch_size, channels, height, width)` in and out; in eval mode a plain BatchNorm."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(hidden_states)
        values = hidden_states.float()  # sums in half precision would lose the small terms
        count = torch.tensor(float(values.numel() // values.shape[1]), device=values.device)
        torch.distributed.all_reduce(count)
        mean = all_reduce(values.sum((0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(hidden_states.dtype)


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Makes the BatchNorms of a model share statistics, under the same names in the state dictionary: by torch's own
    class where it runs, else by ours."""
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.__class__ = ProcessBatchNorm2d  # it has the same parts, so weights and settings stay as they are
    return model
