"""The DeepSpeed engine: ZeRO stages 0 to 3.

The differences from a plain `deepspeed.initialize`, and their reasons:

- DeepSpeed makes its fp32 master weights from bf16 weights. Ingot writes the fp32 initial weights into them
  (`initialize`), so that all engines start from the same numbers.
- At stage 3 the parameters get memory and are partitioned one module at a time, so that no rank holds the whole model.
- At stage 0 in bf16 DeepSpeed uses an optimizer that was made for fp16: it accumulates and reduces gradients in bf16,
  and it skips a step with a norm that is not finite, without a message. Stages 1 to 3 accumulate and reduce in fp32. So
  Ingot runs stage 0 with fp32 parameters and computes in bf16 with `Bf16Compute`. Stage 0 then agrees with the others.
- The loss is a sum over targets, divided by their number over all ranks. So DeepSpeed's division by the accumulation
  steps is switched off, and a factor cancels its average over ranks.
"""

import contextlib
import io
from typing import Any

import torch
from torch import nn

from ingot.parallel.engines import deepspeed_compat as compat
from ingot.parallel.engines.bf16 import Bf16Compute
from ingot.parallel.engines.deepspeed_extensions import build_communication
from ingot.parallel.engines.engine import (
    Batch,
    Engine,
    LocalParameters,
    MakeOptimizer,
    unsharded_frozen,
    unsharded_state,
)
from ingot.parallel.engines.gradient_clipping import clip_gradients
from ingot.parallel.engines.materialization import materialize, shared_parameters, tie_weights
from ingot.parallel.engines.partial_gradients import sum_partial_gradients
from ingot.parallel.memory_plan import BUCKET, PERSISTENT, reduces_to_owners
from ingot.parallel.mesh import Mesh
from ingot.parallel.optimizer import create_state, set_learning_rate, set_step
from ingot.parallel.tensor_shards import TensorShard, flat_shards

# Keys of a DeepSpeed configuration that Ingot sets from its own options, and these options.
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
    "communication_data_type": "parallel.reduce_dtype",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer": "parallel.offload",
    "zero_optimization.offload_param": "parallel.offload",
}


def check_settings(settings: dict) -> None:
    """Refuses DeepSpeed settings that Ingot sets from its own options.

    Raises:
        ValueError: names each such key and the option to use instead.
    """
    zero = settings.get("zero_optimization", {})
    given = set(settings) | {f"zero_optimization.{key}" for key in zero if isinstance(zero, dict)}
    wrong = [f"parallel.deepspeed.{key} (set {OWNED_KEYS[key]} instead)" for key in sorted(given) if key in OWNED_KEYS]
    if wrong:
        raise ValueError("Ingot sets these DeepSpeed settings from its own options: " + ", ".join(wrong))


def check_disk_offload() -> None:
    """
    Raises:
        ValueError: this machine lacks what DeepSpeed needs to keep the optimizer on a disk.
    """
    if not compat.can_offload_to_disk():
        raise ValueError(
            "parallel.offload_dir needs DeepSpeed's async_io operator, which cannot be built here; install libaio with "
            "its headers (Debian: libaio-dev), or leave parallel.offload_dir out to offload to the host's memory"
        )


class ZeroEngine(Engine):
    """A module trained by DeepSpeed.

    Args:
        module: on the meta device, already split over the tensor ranks. From stage 1 on without partial gradients:
            DeepSpeed divides each gradient among the data ranks as soon as autograd has it.
        make_optimizer: makes the optimizer of the module, after its parameters have got memory.
        stage: ZeRO stage, 0 to 3.
        precision: of the computation, `bf16` or `fp32`.
        micro_batch, num_micro_batches: sequences in a micro-batch, and the largest number of micro-batches of a rank in
            a step.
        max_grad_norm: global gradient norm above which gradients are scaled down; 0 means no clipping.
        offload: what is kept in the host's memory: `none`, `optimizer`, or `all` (parameters too).
        offload_folder: a folder on a disk, which is used instead of the host's memory.
        reduce_dtype: in which gradients are reduced, `fp32` or `bf16`.
        settings: further DeepSpeed settings, as its documentation names them.
    """

    def __init__(
        self,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        mesh: Mesh,
        local_parameters: LocalParameters,
        stage: int,
        precision: str,
        micro_batch: int,
        num_micro_batches: int,
        max_grad_norm: float,
        offload: str = "none",
        offload_folder: str | None = None,
        reduce_dtype: str = "fp32",
        settings: dict | None = None,
    ):
        super().__init__(module, mesh, local_parameters)
        assert stage == 0 or not local_parameters.partial
        self.stage, self.max_grad_norm = stage, max_grad_norm
        # DeepSpeed then keeps fp32 sums of the gradients of all parameters until they are reduced.
        self.adds_up_apart = stage == 1 and precision == "bf16"
        check_settings(settings or {})
        if offload_folder is not None:
            check_disk_offload()
        compat.quiet_logs()
        import deepspeed

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
                # DeepSpeed's linear function for stage 3 rounds the product to bf16 before it adds the bias; torch's
                # does not.
                "memory_efficient_linear": False,
                "reduce_bucket_size": min(BUCKET, sum(p.numel() for p in module.parameters())),
                "stage3_param_persistence_threshold": PERSISTENT,
                "use_multi_rank_bucket_allreduce": not reduces_to_owners(mesh.num_data),
                # DeepSpeed's own default is stage 3 only. Without it stage 2 waits for each reduction, and stage 1
                # begins to reduce after the backward pass. On CPUs nothing runs beside the computation.
                "overlap_comm": stage == 3 or mesh.device.type == "cuda",
                **_offload_settings(offload, offload_folder),
                **(settings or {}).get("zero_optimization", {}),
                "stage": stage,
            },
            # No step is skipped: the training loop sees a norm that is not finite, and stops.
            "bf16": {"enabled": low_precision, "check_grad_overflow": False},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": reduce_dtype,
        }
        groups = compat.DataAndTensorGroups(data=mesh.data_group, tensor=mesh.tensor_group)
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        dtype = torch.bfloat16 if low_precision else torch.float32
        # It prints memory reports at every log level.
        with contextlib.redirect_stdout(io.StringIO()), compat.one_class_for_stages_1_and_2():
            build_communication()
            compat.init_distributed()
            if stage == 3:
                self._materialize_in_parts(config, groups, dtype)
            else:
                materialize(module, mesh.device, dtype)
            named = [(name, p, shapes[name]) for name, p in module.named_parameters()]
            self._parameters = [each for each in named if each[1].requires_grad]
            self._frozen = [each for each in named if not each[1].requires_grad]
            for name, parameter, _ in named:
                compat.mark_tensor_parallel(parameter, mesh.tensor > 1 and name in local_parameters.counted)
            self.basic_optimizer = make_optimizer(module)
            compute = Bf16Compute(module) if precision == "bf16" and stage == 0 else module
            self.engine, *_ = deepspeed.initialize(
                model=compute, optimizer=self.basic_optimizer, config=config, mpu=groups, dist_init_required=False
            )
        self.optimizer = self.engine.optimizer  # DeepSpeed's wrapper; at stage 0 the basic optimizer itself
        create_state(self.basic_optimizer, self._master_parameters())
        if stage in (1, 2):
            compat.link_states_to_fragments(self.optimizer)

    def forward_backward(self, batch: Batch, num_targets: int, is_last: bool) -> torch.Tensor:
        # DeepSpeed's own count assumes the same number of micro-batches in each step.
        self.engine.set_gradient_accumulation_boundary(is_last)
        loss_sum = self.engine(**batch)
        self.engine.backward(loss_sum * (self.mesh.num_data / num_targets), scale_wrt_gas=False)
        if not is_last:
            self.engine.step()  # not at the boundary, so DeepSpeed only counts the micro-batch
        return loss_sum.detach()

    def step(self, learning_rate: float, number: int | None = None) -> torch.Tensor:
        set_learning_rate(self.basic_optimizer, learning_rate, number)
        norm = None
        if self.stage == 0:
            sum_partial_gradients(self.module, self.local_parameters.partial)
            norm = clip_gradients(self.module, self.local_parameters, self.mesh, self.max_grad_norm)
        if self.adds_up_apart:
            self.optimizer.zero_grad()  # what was reduced is in this rank's part; the step needs room
        self.engine.step()
        return torch.as_tensor(self.engine.get_global_grad_norm() if norm is None else norm)

    @torch.no_grad()
    def forward(self, batch: Batch) -> torch.Tensor:
        return self.engine(**batch)

    def local_shards(self) -> list[TensorShard]:
        if self.stage == 0:
            return unsharded_state(self.module, self.basic_optimizer)
        shards = []
        for name, parameter, shape in self._parameters:
            start, fragments = self._fragments(parameter)
            for kind, fragment in fragments.items():
                prefix = "model" if kind == "parameter" else f"optimizer/{kind}"
                shards += flat_shards(f"{prefix}/{name}", shape, start, fragment)
        return shards

    def frozen_shards(self) -> list[TensorShard]:
        if self.stage < 3:
            return unsharded_frozen(self.module)
        shards = []
        for name, parameter, shape in self._frozen:
            shards += flat_shards(f"model/{name}", shape, *compat.frozen_partition(parameter))
        return shards

    def sync_from_shards(self, step: int) -> None:
        set_step(self.basic_optimizer, step)
        if self.stage:
            compat.copy_masters_to_parameters(self.optimizer, self.stage)

    def _master_parameters(self) -> list[torch.Tensor]:
        """The fp32 tensors that the basic optimizer updates."""
        if self.stage == 3:
            return compat.master_groups(self.optimizer)
        return [p for group in self.basic_optimizer.param_groups for p in group["params"]]

    def _fragments(self, parameter: nn.Parameter) -> tuple[int, dict[str, torch.Tensor]]:
        """This rank's flat fragment of a parameter: its start in the flat parameter, and flat views of the fp32 master
        weights and optimizer states, without padding. No views: this rank holds nothing of it."""
        if self.stage < 3:
            return compat.fragment(parameter)
        start, group, offset, length = compat.master_position(self.optimizer, parameter)
        if not length:
            return start, {}
        master = compat.master_groups(self.optimizer)[group]
        tensors = {"parameter": master.data, **self._states_of(master)}
        return start, {kind: tensor.narrow(0, offset, length) for kind, tensor in tensors.items()}

    def _states_of(self, master: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.basic_optimizer.state[master]
        return {key: value for key, value in states.items() if value.shape == master.shape and key != "step"}

    def _materialize_in_parts(self, config: dict, groups: compat.DataAndTensorGroups, dtype: torch.dtype) -> None:
        """Gives memory to the parameters of one module and partitions them, before the next module gets memory."""
        shared = shared_parameters(self.module)
        for part in list(self.module.modules()):
            own = dict(part.named_parameters(recurse=False))
            if not any(parameter.is_meta for parameter in own.values()):
                continue
            for name, parameter in own.items():
                memory = torch.zeros(parameter.shape, dtype=dtype, device=self.mesh.device)
                setattr(part, name, nn.Parameter(memory, requires_grad=parameter.requires_grad))
            compat.partition(list(part.parameters(recurse=False)), config, groups, dtype)
        tie_weights(shared)


def _offload_settings(what: str, folder: str | None) -> dict[str, Any]:
    """DeepSpeed's settings for `ZeroEngine`'s arguments offload and offload_folder."""
    device = {"device": "cpu"} if folder is None else {"device": "nvme", "nvme_path": folder}
    parts = {"none": [], "optimizer": ["optimizer"], "all": ["optimizer", "param"]}[what]
    return {f"offload_{part}": device for part in parts}
