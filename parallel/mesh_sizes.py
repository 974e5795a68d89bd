"""The sizes of the mesh, without torch, so that a command line can check them at once."""


def sizes(world_size: int, tensor: int = 1, data_shard: int | None = None) -> tuple[int, int, int]:
    """The sizes of the axes data_replicate, data_shard and tensor for `world_size` processes.

    Args:
        data_shard: None means all data ranks.

    Raises:
        ValueError: the product of the sizes is not the world size. The message lists the possible values.
    """
    if tensor < 1 or world_size % tensor:
        raise ValueError(
            f"parallel.tensor {tensor} does not divide the {world_size} processes of the world; it can be "
            f"{_divisors(world_size)}"
        )
    num_data = world_size // tensor
    data_shard = num_data if data_shard is None else data_shard
    if data_shard < 1 or num_data % data_shard:
        raise ValueError(
            f"parallel.data_shard {data_shard} does not divide the {num_data} data ranks ({world_size} processes / "
            f"parallel.tensor {tensor}); it can be {_divisors(num_data)}"
        )
    return num_data // data_shard, data_shard, tensor


def _divisors(number: int) -> str:
    divisors = [str(d) for d in range(1, number + 1) if number % d == 0]
    return divisors[0] if len(divisors) == 1 else f"{', '.join(divisors[:-1])} or {divisors[-1]}"
