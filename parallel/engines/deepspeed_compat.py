"""All interfaces of DeepSpeed that are not documented and that the ZeRO engine uses. Read from DeepSpeed 0.19.8.

A new version of DeepSpeed may change them without notice. `PRIVATE` says what each class or function is for, and
`ATTRIBUTES` what each attribute is that a real engine sets on its optimizer and parameters.
tests/parallel/engines/test_deepspeed_compat.py names what has changed. (Decorators of DeepSpeed hide the parameters of
some functions; the tests of the engines call them.)
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ingot.parallel.mesh import sum_over_ranks
from ingot.parallel.private_interfaces import PrivateInterface

READ_FROM = "0.19.8"

PRIVATE = (
    PrivateInterface(
        "deepspeed.runtime.engine",
        "DeepSpeedEngine.set_gradient_accumulation_boundary",
        "steps with different numbers of micro-batches",
        ("is_boundary",),
    ),
    PrivateInterface(
        "deepspeed.runtime.engine",
        "DeepSpeedEngine.backward",
        "with scale_wrt_gas=False, a loss that is already divided by all targets of the step",
    ),
    PrivateInterface(
        "deepspeed.runtime.engine", "DeepSpeedEngine.get_global_grad_norm", "the gradient norm before clipping"
    ),
    PrivateInterface(
        "deepspeed.runtime.engine",
        "DeepSpeedEngine._do_optimizer_sanity_check",
        "decides which class stage 1 becomes in bf16",
        ("basic_optimizer",),
    ),
    PrivateInterface(
        "deepspeed.runtime.engine", "ZERO_OPTIMIZATION", "the answer that means the class of stages 1 and 2"
    ),
    PrivateInterface("deepspeed.runtime.engine", "BFLOAT16", "the answer that means BF16_Optimizer"),
    PrivateInterface(
        "deepspeed.runtime.zero.partition_parameters",
        "Init",
        "partitions the parameters of one module at a time, so that no rank holds the whole model",
        ("module", "data_parallel_group", "mem_efficient_linear", "config_dict_or_path", "dtype", "mpu"),
    ),
    PrivateInterface(
        "deepspeed.runtime.zero.stage_1_and_2",
        "DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state",
        "links the optimizer states to the fragments of parameters before the first step, for checkpoints",
    ),
    PrivateInterface(
        "deepspeed.runtime.zero.stage_1_and_2",
        "DeepSpeedZeroOptimizer.update_lp_params",
        "copies the fp32 master weights into the bf16 parameters of all ranks after a checkpoint was loaded",
    ),
    PrivateInterface(
        "deepspeed.runtime.zero.stage3",
        "DeepSpeedZeroOptimizer_Stage3._reassign_or_swap_out_partitioned_parameters",
        "copies the fp32 master weights of a group into the bf16 partitions after a checkpoint was loaded",
    ),
    PrivateInterface(
        "deepspeed.runtime.zero.stage3",
        "DeepSpeedZeroOptimizer_Stage3.get_param_id",
        "finds a parameter in grad_position",
        ("param",),
    ),
    PrivateInterface(
        "deepspeed.utils.tensor_fragment",
        "tensor_fragment.get_optim_state_keys",
        "the names of the optimizer states of a fragment",
    ),
    PrivateInterface(
        "deepspeed.runtime.utils",
        "is_model_parallel_parameter",
        "reads the attribute model_parallel of a parameter, to count it once in the gradient norm over tensor ranks",
        ("p",),
    ),
    PrivateInterface(
        "deepspeed.ops.op_builder", "AsyncIOBuilder", "whether this machine can build the operator for offload to disk"
    ),
    PrivateInterface(
        "deepspeed.ops", "__compatible_ops__", "whether this machine can build the operator for communication on CPUs"
    ),
    PrivateInterface(
        "deepspeed.accelerator", "get_accelerator", "the names of the device and of the communication backend"
    ),
)

ATTRIBUTES = {
    1: {
        "optimizer.reduce_gradients": "reduces gradients to the ranks that need them; BF16_Optimizer has none",
        "optimizer.use_grad_accum_attribute": "whether gradients are added up in fp32 beside those of a micro-batch",
    },
    3: {
        "parameter.ds_tensor": "this rank's flat partition",
        "parameter.ds_numel": "number of elements of the whole parameter",
        "parameter.ds_process_group": "the ranks that hold the partitions",
        "parameter.partition": "frees the whole parameter",
        "parameter.all_gather": "restores the whole parameter",
        "optimizer.fp32_partitioned_groups_flat": "the flat fp32 master weights of each group",
        "optimizer.grad_position": "group, offset and length of a parameter in the master weights",
        "optimizer.persistent_parameters": "the parameters that are never partitioned",
    },
    2: {
        "parameter._hp_mapping": "this rank's fragment of the fp32 master weights and optimizer states, or None",
        "parameter._hp_mapping.lp_fragment_address.start": "where the fragment starts in the flat parameter",
        "parameter._hp_mapping.hp_fragment": "its fp32 master weights",
        "parameter._hp_mapping.optim_fragment": "its optimizer states",
    },
}
"""Attributes that DeepSpeed sets on its optimizer and on the parameters while it builds an engine, and what they are.
They are listed by stage; stage 1 also has those of stage 2."""


def missing_attributes(stage: int, optimizer: Any, parameter: Any) -> list[str]:
    """Those of `ATTRIBUTES` that a real optimizer and parameter lack, each with what it is."""
    missing = []
    for path, what in ATTRIBUTES[stage].items():
        owner, *names = path.split(".")
        try:
            reduce(getattr, names, optimizer if owner == "optimizer" else parameter)
        except AttributeError:
            missing.append(f"{path} is gone at stage {stage}: {what}")
    return missing


class DataAndTensorGroups:
    """What DeepSpeed calls an mpu: an object whose methods of these names give the data and tensor ranks."""

    def __init__(self, *, data: dist.ProcessGroup, tensor: dist.ProcessGroup):
        self.data, self.tensor = data, tensor

    def get_model_parallel_rank(self) -> int:
        return self.tensor.rank()

    def get_model_parallel_world_size(self) -> int:
        return self.tensor.size()

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self.tensor

    def get_data_parallel_rank(self) -> int:
        return self.data.rank()

    def get_data_parallel_world_size(self) -> int:
        return self.data.size()

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.data


def quiet_logs() -> None:
    """Lets DeepSpeed log warnings and errors only, and hides a warning of torch that it causes."""
    os.environ.setdefault("DS_LOG_LEVEL", "warning")
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # It calls collectives by names that torch 2.13 has replaced.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def can_offload_to_disk() -> bool:
    """Whether this machine can build DeepSpeed's operator async_io."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        return AsyncIOBuilder().is_compatible(verbose=False)


def cpu_communication_builder() -> Any:
    """The builder of shared-memory communication among ranks on CPUs. None: not needed, or cannot be built here."""
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if get_accelerator().device_name() != "cpu":
        return None
    builder = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):
        return None
    return builder


def init_distributed() -> None:
    """Tells DeepSpeed that the default process group is there. `initialize` does it too, but `partition` is earlier.

    On a CPU each rank makes a shared buffer of 66 MB in /dev/shm, which DeepSpeed never removes (`shared_close` in its
    csrc/cpu/comm/shm.cpp has no caller). Once all ranks have opened all buffers the names are not needed any more:
    the memory is freed with the last process, however that ends.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    deepspeed.init_distributed(get_accelerator().communication_backend_name(), dist_init_required=False)
    sum_over_ranks([0])  # each rank comes here with all buffers open
    with contextlib.suppress(OSError):  # there is none on a GPU, or another user's
        shared_buffer(dist.get_rank()).unlink()


def shared_buffer(rank: int) -> Path:
    """The name of a rank's shared buffer, as `shm_initialize` in csrc/cpu/comm/shm.cpp makes it."""
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    return Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}")


@contextlib.contextmanager
def one_class_for_stages_1_and_2() -> Iterator[None]:
    """While an engine is built: stage 1 in bf16 with fp32 gradients becomes DeepSpeedZeroOptimizer, as with offload.

    By itself it becomes BF16_Optimizer, which all-reduces fp32 gradients after the backward pass, not beside it. No
    public setting decides that. DeepSpeedZeroOptimizer has what is needed: it adds gradients up in fp32 in
    `grad_accum` of each parameter, and reduces them in the last backward pass of a step.
    """
    from deepspeed.runtime import engine

    decide = engine.DeepSpeedEngine._do_optimizer_sanity_check

    def decide_for_zero(self: Any, basic_optimizer: Any) -> Any:
        answer = decide(self, basic_optimizer)
        return engine.ZERO_OPTIMIZATION if answer == engine.BFLOAT16 else answer

    engine.DeepSpeedEngine._do_optimizer_sanity_check = decide_for_zero
    try:
        yield
    finally:
        engine.DeepSpeedEngine._do_optimizer_sanity_check = decide


def partition(
    parameters: Sequence[nn.Parameter], config: dict, groups: DataAndTensorGroups, dtype: torch.dtype
) -> None:
    """Stage 3: replaces whole parameters, in place, by this rank's partition of each."""
    import deepspeed

    deepspeed.zero.Init(
        nn.ParameterList(parameters),
        data_parallel_group=groups.data,
        mem_efficient_linear=False,
        config_dict_or_path=config,
        dtype=dtype,
        mpu=groups,
    )


def mark_tensor_parallel(parameter: nn.Parameter, is_counted: bool) -> None:
    """Tells DeepSpeed's gradient norm whether this tensor rank adds its part of a parameter."""
    parameter.model_parallel = is_counted  # type: ignore[attr-defined]  # DeepSpeed reads it


def link_states_to_fragments(optimizer: Any) -> None:
    """Stages 1 and 2: makes the optimizer states, which must be there, part of the fragments."""
    optimizer._lazy_init_hp_params_optimizer_state()


def master_groups(optimizer: Any) -> list[torch.Tensor]:
    """Stage 3: this rank's fp32 master weights, one flat tensor for each group of parameters."""
    return list(optimizer.fp32_partitioned_groups_flat)


def frozen_partition(parameter: Any) -> tuple[int, torch.Tensor]:
    """Stage 3: where this rank's part of a frozen parameter starts in the flat parameter, and the part, not padded."""
    part = parameter.ds_tensor
    start = dist.get_rank(parameter.ds_process_group) * part.numel()
    length = max(0, min(part.numel(), parameter.ds_numel - start))
    return start, part.data.narrow(0, 0, length)


def master_position(optimizer: Any, parameter: Any) -> tuple[int, int, int, int]:
    """Stage 3: where this rank's part of a parameter is.

    Returns:
        Its start in the flat parameter; the number of the group in `master_groups`; its offset there; and its length
        without padding, which is 0 where this rank holds nothing of it.
    """
    group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = dist.get_rank(parameter.ds_process_group) * length
    return start, group, offset, max(0, min(length, parameter.ds_numel - start))  # the last rank's part is padded


def fragment(parameter: Any) -> tuple[int, dict[str, torch.Tensor]]:
    """Stages 1 and 2: this rank's fragment of a parameter.

    Returns:
        Its start in the flat parameter; and flat views of its fp32 master weights (`parameter`) and of each optimizer
        state. No views: this rank holds nothing of it.
    """
    mapping = parameter._hp_mapping
    if mapping is None:
        return 0, {}
    states = {key: mapping.optim_fragment[key] for key in mapping.get_optim_state_keys()}
    return mapping.lp_fragment_address.start, {"parameter": mapping.hp_fragment.data, **states}


def copy_masters_to_parameters(optimizer: Any, stage: int) -> None:
    """Copies the fp32 master weights into the parameters that the module computes with, on all ranks."""
    if stage in (1, 2):
        optimizer.update_lp_params()
        return
    for index in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(index)
    persistent = optimizer.persistent_parameters
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)
