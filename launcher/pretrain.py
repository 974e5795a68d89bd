"""Pretrains a GPT or BERT.

deepspeed launcher/pretrain.py --config configs/demo.yaml --run.steps 20 --parallel.zero_stage 3
torchrun --nproc_per_node 2 launcher/pretrain.py --config configs/demo.yaml --parallel.engine fsdp
python launcher/pretrain.py --config configs/demo.yaml
"""

import os

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.runtime.exit_codes import bad_input, run_main
from ingot.launcher.runtime.loading_note import say_loading


def main(argv: list[str]) -> int:
    with bad_input():
        config = parse(TrainConfig, argv, __doc__)
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        config.check(config.run.dry_run_ranks or world_size if config.run.dry_run else world_size)
    # torch and all the rest only now: --help and mistakes are answered at once
    say_loading("torch and DeepSpeed" if config.parallel.engine == "zero" and not config.run.dry_run else "torch")
    if config.run.dry_run:
        from ingot.launcher.planning.dry_run import dry_run

        return dry_run(config, config.run.dry_run_ranks or world_size)
    from ingot.launcher.training.pretrain_run import pretrain

    return pretrain(config)


if __name__ == "__main__":
    run_main(main)
