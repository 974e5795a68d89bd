"""The sizes of the mesh, without torch, so that a command line can check them at once."""


def sizes(world_size: int, tensor: int = 1, shard: int | None = None) -> tuple[int, int, int]:
    """data_replicate, data_shard and tensor of a world.

    Args:
        shard: None is all data ranks.

    Raises:
        ValueError: they do not multiply to the world size; the message lists what would.
    """
    if tensor < 1 or world_size % tensor:
        raise ValueError(
            f"parallel.tensor {tensor} does not divide the {world_size} processes of the world; it can be "
            f"{_any_of(world_size)}"
        )
    num_data = world_size // tensor
    shard = num_data if shard is None else shard
    if shard < 1 or num_data % shard:
        raise ValueError(
            f"parallel.data_shard {shard} does not divide the {num_data} data ranks ({world_size} processes / "
            f"parallel.tensor {tensor}); it can be {_any_of(num_data)}"
        )
    return num_data // shard, shard, tensor


def _any_of(number: int) -> str:
    divisors = [str(d) for d in range(1, number + 1) if number % d == 0]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
