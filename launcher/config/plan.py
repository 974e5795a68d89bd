"""What launcher/plan.py can be told."""

from dataclasses import dataclass, field

from ingot.launcher.config.pretrain import TrainConfig


@dataclass
class Plan:
    """The devices, and what is known of their speed. The defaults are those of machines with eight H100."""

    ranks: int = 8
    """Number of devices."""
    memory_gb: float = 80.0
    """Memory of a device, in 10^9 bytes."""
    devices_per_node: int = 8
    """Devices of one machine; tensor ranks stay within it."""
    tflops: float = 400.0
    """What a device reaches in matrix products of this model, in 10^12 FLOP a second; 40 to 60 % of the data sheet."""
    node_gb_per_second: float = 300.0
    """What a device sends to the others of its machine, in 10^9 bytes a second."""
    network_gb_per_second: float = 40.0
    """What a device sends to other machines, in 10^9 bytes a second."""
    top: int = 12
    """How many layouts are shown."""


@dataclass
class PlanConfig(TrainConfig):
    """A training run's configuration, of which model, data and batch count, and the devices. parallel is what is
    looked for; of it only engine-independent settings are read: precision and offload."""

    plan: Plan = field(default_factory=Plan)
