"""Writes a run or checkpoint as a Hugging Face folder, which `transformers` opens: weights, settings and tokenizer.

python launcher/export.py --checkpoint runs/demo --output exported
python launcher/export.py --checkpoint runs/demo/checkpoints/step-00000320 --output exported --dtype bfloat16
python launcher/export.py --checkpoint runs/sst2 --output classifier                  # of a fine-tuning run, merged
python launcher/export.py --checkpoint runs/sst2-lora --output adapter --adapter true   # what LoRA has learned alone
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.export import ExportOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(ExportOptions, argv, __doc__)
        from ingot.launcher.checkpoints.export import export, export_adapter

        export_adapter(options) if options.adapter else export(options)
    print(f"wrote {options.output}")
    return DONE


if __name__ == "__main__":
    run_main(main)
