# Copyright 2026 The TAMISeg authors.
# SPDX-License-Identifier: Apache-2.0
"""The files for `accelerate launch --config_file`: Accelerate's own launcher reads them, and what they ask for can be
done to the real model, on the meta device and in a group of processes that is only pretended."""

from pathlib import Path

import pytest
import torch
import torch.distributed
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import train_hf
from modeling_tamiseg import TAMISegConfig, TAMISegForImageSegmentation

from .benchmarks.bench_scale import Sizes, measure, memory, sent, sent_by_batch_norm


FILES = Path(__file__).parent.parent / "experiments" / "accelerate"


@pytest.fixture
def eight_processes():
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    yield
    torch.distributed.destroy_process_group()


def read(name: str):
    """What `accelerate launch` makes of a file, and the file; an unknown key or value is an error there."""
    arguments = launch_command_parser().parse_args(["--config_file", str(FILES / name), "train_hf.py"])
    arguments, config, _ = _validate_launch_command(arguments)
    return arguments, config


def test_two_machines_start_sixteen_processes():
    arguments, config = read("ddp.yaml")
    environment = prepare_multi_gpu_env(arguments)
    assert config.distributed_type == DistributedType.MULTI_GPU and config.num_processes == 16
    assert (arguments.nnodes, arguments.nproc_per_node) == ("2", "8")
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_fsdp2_shards_the_real_model(eight_processes, monkeypatch):
    arguments, config = read("fsdp2.yaml")
    assert config.distributed_type == DistributedType.FSDP and config.num_processes == 8
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    with torch.device("meta"):
        model = TAMISegForImageSegmentation(TAMISegConfig())
    whole = sum(p.numel() for p in model.parameters())
    plugin.set_auto_wrap_policy(model)
    shards_alone = fsdp2_prepare_auto_wrap_policy(plugin, model)  # refuses a class that the model has not
    mesh = init_device_mesh("cpu", (8,))
    for module in reversed(list(model.modules())):
        if module is model or shards_alone(module):
            fully_shard(module, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    alone = [type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)]
    assert len(alone) == 1 + 12 + 3 + 1 + 4  # the root, layers of BERT, stages of ResNet, alignment, scales
    here = sum(p.to_local().numel() for p in model.parameters())
    assert whole / 8 <= here < 1.001 * whole / 8  # a little more, where eight do not divide


def test_deepspeed_shares_gradients_and_moments(monkeypatch):
    arguments, config = read("deepspeed_zero2.yaml")
    assert config.distributed_type == DistributedType.DEEPSPEED
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    for name, value in prepare_deepspeed_cmd_env(arguments)[1].items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == 2 and plugin.deepspeed_config["gradient_clipping"] == 1.0
    assert plugin.deepspeed_config["zero_optimization"]["offload_optimizer"]["device"] == "none"


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_training_says_that_it_does_not_share_weights_out(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ValueError, match="keeps the whole weights on each process"):
        train_hf.main(["--stage", "finetune", "--cpu", "true", "--output_dir", str(tmp_path)])


def test_memory_and_communication_by_hand():
    sizes = Sizes(trained=80, frozen=160, buffers=5, activations=7, channels=10)
    assert [memory(sizes, "DDP", n) for n in (1, 8)] == [80 + 160 + 240 + 12, 80 + 160 + 320 + 12]
    assert memory(sizes, "ZeRO-2", 8) == 80 + 160 + 30 + 12 and memory(sizes, "FSDP2", 8) == 10 + 20 + 30 + 12
    assert [sent(sizes, "DDP", n) for n in (1, 8)] == [0, 140] and sent(sizes, "FSDP2", 8) == 350
    assert sent_by_batch_norm(sizes, 1) == 0 and sent_by_batch_norm(sizes, 8) == 4 * 7 * 2.5 * 10


def test_activations_grow_with_the_batch_and_weights_do_not():
    one, two = (measure(TAMISegConfig(), 64, batch_size) for batch_size in (1, 2))
    with torch.device("meta"):
        model = TAMISegForImageSegmentation(TAMISegConfig())
    assert two.trained == one.trained == sum(p.nbytes for p in model.parameters() if p.requires_grad)
    assert 1.9 < two.activations / one.activations <= 2
