"""The DeepSpeed engine: ZeRO stages 0 to 3.

What differs from a plain `deepspeed.initialize`, and why:

- DeepSpeed makes fp32 master weights from the bf16 ones; Ingot writes the true fp32 initial weights into them
  (`fill`), so that each engine starts from the same numbers.
- At stage 3 the parameters of one module at a time get memory and are cut at once: no rank ever holds the whole model.
- At stage 0 in bf16 DeepSpeed wraps the optimizer in one made for fp16: gradients of all micro-batches are added up
  and reduced in
  bf16, and a norm that is not finite silently skips the step. Stages 1 to 3 add up and reduce in fp32. So Ingot runs
  stage 0 with fp32 parameters and computes in bf16 through `Bf16Compute`, which makes stage 0 agree with the others.
- The loss that it is given is a sum over targets divided by their global count; DeepSpeed's own division by the
  accumulation steps is switched off, and its average over ranks is undone by a factor.
"""

import contextlib
import io
import logging
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn

from ingot.parallel.catalog import Shard, flat_shards
from ingot.parallel.engines.deepspeed_extensions import build_communication
from ingot.parallel.engines.engine import (
    Batch,
    Bf16Compute,
    Engine,
    MakeOptimizer,
    Shares,
    whole_frozen_shards,
    whole_tensor_shards,
)
from ingot.parallel.engines.gradient_clipping import clip_gradients
from ingot.parallel.engines.materialization import materialise, shared_places, tie
from ingot.parallel.memory_plan import BUCKET
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import create_state, set_learning_rate, set_step

# Keys of a DeepSpeed configuration that follow from Ingot's own settings, and where those are set.
OWNED_KEYS = {
    "train_batch_size": "batch.global_size",
    "train_micro_batch_size_per_gpu": "batch.micro_size",
    "gradient_accumulation_steps": "batch.global_size and batch.micro_size",
    "gradient_clipping": "optimizer.max_grad_norm",
    "bf16": "parallel.precision",
    "bfloat16": "parallel.precision",
    "fp16": "parallel.precision",
    "amp": "parallel.precision",
    "torch_autocast": "parallel.precision",
    "data_types": "parallel.precision",
    "communication_data_type": "parallel.precision",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload",
    "zero_optimization.offload_param": "parallel.offload",
}


def check_settings(settings: dict) -> None:
    """Refuses raw DeepSpeed settings that contradict Ingot's own.

    Raises:
        ValueError: names each such key and the setting to use instead.
    """
    zero = settings.get("zero_optimization", {})
    given = set(settings) | {f"zero_optimization.{key}" for key in zero if isinstance(zero, dict)}
    wrong = [f"parallel.deepspeed.{key} (set {OWNED_KEYS[key]} instead)" for key in sorted(given) if key in OWNED_KEYS]
    if wrong:
        raise ValueError("these DeepSpeed settings follow from Ingot's own and cannot be given: " + ", ".join(wrong))


def check_disk_offload() -> None:
    """
    Raises:
        ValueError: this machine lacks what DeepSpeed needs to keep the optimizer on a disk.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        possible = AsyncIOBuilder().is_compatible(verbose=False)
    if not possible:
        raise ValueError(
            "parallel.offload_dir needs DeepSpeed's async_io operator, which cannot be built here; install libaio with "
            "its headers (Debian: libaio-dev), or leave parallel.offload_dir out to offload to the host's memory"
        )


class ZeroEngine(Engine):
    """A module under DeepSpeed.

    Args:
        module: on the meta device, cut into this rank's `shares`.
        make_optimizer: makes the optimizer of the module, once its parameters have memory.
        stage: ZeRO stage, 0 to 3.
        precision: `bf16` or `fp32`, of the computation.
        micro_batch, num_micro_batches: sequences of a micro-batch, and the most micro-batches of a rank in a step.
        max_grad_norm: global gradient norm above which gradients are scaled down; 0 for never.
        offload: `none`, `optimizer` or `all` (parameters too): what rests in the host's memory, or, with
            `offload_folder`, there on a disk.
        settings: further DeepSpeed settings, as its documentation names them.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        mesh: Mesh,
        shares: Shares,
        stage: int,
        precision: str,
        micro_batch: int,
        num_micro_batches: int,
        max_grad_norm: float,
        offload: str = "none",
        offload_folder: str | None = None,
        settings: dict | None = None,
    ):
        super().__init__(module, mesh, shares)
        self.stage, self.max_grad_norm = stage, max_grad_norm
        self.separate_sums = stage == 1 and precision == "bf16"  # of gradients, in fp32
        check_settings(settings or {})
        if offload_folder is not None:
            check_disk_offload()
        os.environ.setdefault("DS_LOG_LEVEL", "warning")
        import deepspeed
        from deepspeed.accelerator import get_accelerator
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # It still calls collectives by names that torch 2.13 has renamed.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        low_precision = precision == "bf16" and stage > 0
        config = {
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 1 << 62,
            **(settings or {}),
            "train_batch_size": micro_batch * num_micro_batches * mesh.num_data,
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": num_micro_batches,
            "gradient_clipping": max_grad_norm if stage > 0 else 0.0,
            "zero_optimization": {
                # DeepSpeed's own linear function for stage 3 adds the bias after rounding the product to bf16;
                # torch's does not.
                "memory_efficient_linear": False,
                "reduce_bucket_size": min(BUCKET, sum(p.numel() for p in module.parameters())),
                **_offloaded(offload, offload_folder),
                **(settings or {}).get("zero_optimization", {}),
                "stage": stage,
            },
            # A step is never skipped silently: the loop sees a norm that is not finite and stops.
            "bf16": {"enabled": low_precision, "check_grad_overflow": False},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }
        groups = _Groups(mesh)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        dtype = torch.bfloat16 if low_precision else torch.float32
        with contextlib.redirect_stdout(io.StringIO()):  # its memory reports, printed whatever the log level
            build_communication()
            if stage == 3:
                deepspeed.init_distributed(get_accelerator().communication_backend_name(), dist_init_required=False)
                self._materialise_in_parts(config, groups, dtype)
            else:
                materialise(module, mesh.device, dtype)
            named = [(name, p, shapes[name]) for name, p in module.named_parameters()]
            self._parameters = [each for each in named if each[1].requires_grad]
            self._frozen = [each for each in named if not each[1].requires_grad]
            for name, parameter, _ in named:
                parameter.model_parallel = mesh.tensor > 1 and name in shares.counted
            self.basic_optimizer = make_optimizer(module)
            compute = Bf16Compute(module) if precision == "bf16" and stage == 0 else module
            self.engine, *_ = deepspeed.initialize(
                model=compute, optimizer=self.basic_optimizer, config=config, mpu=groups, dist_init_required=False
            )
        self.optimizer = self.engine.optimizer  # DeepSpeed's wrapper, or at stage 0 the one we gave
        create_state(self.basic_optimizer, self._master_parameters())
        if stage in (1, 2):
            self.optimizer._lazy_init_hp_params_optimizer_state()  # links the states to the parameters' fragments

    def accumulate(self, batch: Batch, num_targets: int, last: bool) -> torch.Tensor:
        self.engine.set_gradient_accumulation_boundary(last)  # its own count knows one length of steps alone
        loss_sum = self.engine(**batch)
        self.engine.backward(loss_sum * (self.mesh.num_data / num_targets), scale_wrt_gas=False)
        if self.separate_sums:
            for _, parameter, _ in self._parameters:
                parameter.grad = None
        if not last:
            self.engine.step()  # not at the boundary: DeepSpeed counts the micro-batch and no more
        return loss_sum.detach()

    def step(self, learning_rate: float, number: int | None = None) -> float:
        set_learning_rate(self.basic_optimizer, learning_rate, number)
        norm = None
        if self.stage == 0:
            norm = clip_gradients(self.module, self.shares, self.mesh, self.max_grad_norm)
        self.engine.step()
        return float(self.engine.get_global_grad_norm() if norm is None else norm)

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.engine(**batch)

    def own_shards(self) -> list[Shard]:
        if self.stage == 0:
            return whole_tensor_shards(self.module, self.basic_optimizer)
        shards = []
        for name, parameter, shape in self._parameters:
            start, fragments = self._fragments(parameter)
            for kind, fragment in fragments.items():
                prefix = "model" if kind == "parameter" else f"optimizer/{kind}"
                shards += flat_shards(f"{prefix}/{name}", shape, start, fragment)
        return shards

    def frozen_shards(self) -> list[Shard]:
        if self.stage < 3:
            return whole_frozen_shards(self.module)
        shards = []
        for name, parameter, shape in self._frozen:
            part = parameter.ds_tensor
            start = dist.get_rank(parameter.ds_process_group) * part.numel()
            length = max(0, min(part.numel(), parameter.ds_numel - start))
            shards += flat_shards(f"model/{name}", shape, start, part.data.narrow(0, 0, length))
        return shards

    def refresh(self, step: int) -> None:
        set_step(self.basic_optimizer, step)
        if self.stage in (1, 2):
            self.optimizer.update_lp_params()
        elif self.stage == 3:
            for index in range(len(self.optimizer.fp32_partitioned_groups_flat)):
                self.optimizer._reassign_or_swap_out_partitioned_parameters(index)
            persistent = self.optimizer.persistent_parameters
            if persistent:
                persistent[0].partition(persistent)
                persistent[0].all_gather(persistent)

    def _master_parameters(self) -> list[torch.Tensor]:
        """The fp32 tensors that the basic optimizer steps on."""
        if self.stage == 3:
            return list(self.optimizer.fp32_partitioned_groups_flat)
        return [p for group in self.basic_optimizer.param_groups for p in group["params"]]

    def _fragments(self, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
        """This rank's flat fragment of a parameter: where it starts in the flattened parameter, and the 1-D fp32 master
        and optimizer states, without padding. Empty where this rank holds nothing of it."""
        if self.stage == 3:
            group, offset, length = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
            start = dist.get_rank(parameter.ds_process_group) * length
            length = max(0, min(length, parameter.ds_numel - start))  # the last rank's part is padded
            master = self.optimizer.fp32_partitioned_groups_flat[group]
            tensors = {"parameter": master.data, **self._states_of(master)}
            return start, {k: t.narrow(0, offset, length) for k, t in tensors.items()} if length else {}
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, {}
        states = {key: mapping.optim_fragment[key] for key in mapping.get_optim_state_keys()}
        return mapping.lp_fragment_address.start, {"parameter": mapping.hp_fragment.data, **states}

    def _states_of(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.basic_optimizer.state[master]
        return {key: value for key, value in states.items() if value.shape == master.shape and key != "step"}

    def _materialise_in_parts(self, config: dict, groups: "_Groups", dtype: torch.dtype) -> None:
        import deepspeed

        places = shared_places(self.module)
        for part in list(self.module.modules()):
            own = dict(part.named_parameters(recurse=False))
            if not any(parameter.is_meta for parameter in own.values()):
                continue
            for name, parameter in own.items():
                memory = torch.zeros(parameter.shape, dtype=dtype, device=self.mesh.device)
                setattr(part, name, nn.Parameter(memory, requires_grad=parameter.requires_grad))
            shell = nn.ParameterList(dict(part.named_parameters(recurse=False)).values())
            group = groups.get_data_parallel_group()
            deepspeed.zero.Init(
                shell,
                data_parallel_group=group,
                mem_efficient_linear=False,
                config_dict_or_path=config,
                dtype=dtype,
                mpu=groups,
            )
        tie(places)


def _offloaded(what: str, folder: str | None) -> dict:
    """DeepSpeed's settings for it."""
    where = {"device": "cpu"} if folder is None else {"device": "nvme", "nvme_path": folder}
    parts = {"none": [], "optimizer": ["optimizer"], "all": ["optimizer", "param"]}[what]
    return {f"offload_{part}": where for part in parts}


class _Groups:
    """What DeepSpeed calls an mpu: it asks for the tensor and data ranks by these names."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh

    def get_model_parallel_rank(self) -> int:
        return self.mesh.tensor_rank

    def get_model_parallel_world_size(self) -> int:
        return self.mesh.tensor

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self.mesh.tensor_group

    def get_data_parallel_rank(self) -> int:
        return self.mesh.data_rank

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.num_data

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self.mesh.data_group
