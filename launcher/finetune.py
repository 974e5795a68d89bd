"""Fine-tunes a released or own model on a task.

python launcher/finetune.py --config configs/finetune/sst2.yaml --init.model FOLDER --task.train train.tsv
deepspeed launcher/finetune.py --config configs/finetune/sst2.yaml --parallel.zero_stage 2 --method.kind lora
torchrun --nproc_per_node 2 launcher/finetune.py --config configs/finetune/sst2.yaml --parallel.engine fsdp
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

import os

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import bad_input, run_main
from ingot.launcher.runtime.loading_note import say_loading
from ingot.launcher.tasks.registry import described


def main(argv: list[str]) -> int:
    with bad_input():
        config = parse(FinetuneConfig, argv, f"{__doc__}\n{described()}")
        config.check(int(os.environ.get("WORLD_SIZE", 1)))
    # torch and all the rest only now: --help and mistakes are answered at once
    say_loading("torch, transformers and DeepSpeed" if config.parallel.engine == "zero" else "torch and transformers")
    from ingot.launcher.finetuning.finetune_run import finetune

    return finetune(config)


if __name__ == "__main__":
    run_main(main)
