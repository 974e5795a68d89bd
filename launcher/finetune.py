"""Fine-tunes a released or own model on a task.

python launcher/finetune.py --config configs/finetune/sst2.yaml --init.path FOLDER --task.train train.tsv
deepspeed launcher/finetune.py --config configs/finetune/sst2.yaml --parallel.zero_stage 2 --method.kind lora
torchrun --nproc_per_node 2 launcher/finetune.py --config configs/finetune/sst2.yaml --parallel.engine fsdp
"""

import sys
from pathlib import Path

if (
    __name__ == "__main__"
):  # as a script, the repository leads the import path, not launcher/, whose files could hide libraries
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os

from launcher.cli import parse
from launcher.exits import bad_input, run_main
from launcher.finetune_config import FinetuneConfig


def main(argv: list[str]) -> int:
    with bad_input():
        config = parse(FinetuneConfig, argv, __doc__)
        config.check(int(os.environ.get("WORLD_SIZE", 1)))
    # torch and all the rest only now: --help and mistakes are answered at once
    from launcher.finetuning import finetune

    return finetune(config)


if __name__ == "__main__":
    run_main(main)
