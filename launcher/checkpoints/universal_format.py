"""Converts a checkpoint of DeepSpeed into its universal format, without executing anything that stands in it.

Runs as a program of its own: DeepSpeed's converter reads pickles. Here torch reads them with its restricted unpickler,
which makes tensors and plain values, and objects of the few classes that DeepSpeed puts into a checkpoint.
"""

import os
from pathlib import Path

os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # also where a caller asks for something else


def main() -> None:
    import deepspeed.checkpoint.ds_to_universal as converter
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([fragment_address, ZeroStageEnum, LossScaler, DynamicLossScaler])
    options = converter.parse_arguments()
    save, output = converter._save_checkpoint, Path(options.output_folder).resolve()

    def save_inside(file_path: str, value: object) -> None:
        if not Path(file_path).resolve().is_relative_to(output):
            raise ValueError(f"a parameter's name leads out of the folder: {file_path}")
        save(file_path, value)

    converter._save_checkpoint = save_inside
    # In this process: another one would not know the classes.
    options.num_extract_workers = options.num_merge_workers = 1
    converter.main(options)


if __name__ == "__main__":
    main()
