"""Continues texts with a trained GPT, or fills their masks with a trained BERT.

python launcher/generate.py --checkpoint runs/demo --prompt "def " --max_tokens 64 --top_p 0.9
python launcher/generate.py --checkpoint runs/demo --prompts prompts.jsonl --num_samples 4 --output texts.jsonl
python launcher/generate.py --checkpoint runs/demo-bert --prompt "import <mask>"
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        options = parse(GenerateOptions, argv, __doc__)
        options.check()
        from ingot.launcher.inference.generation import generate_texts

        generate_texts(options)
    return DONE


if __name__ == "__main__":
    run_main(main)
