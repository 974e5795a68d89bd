"""Searches the layouts of a model on a number of devices, and ranks those that fit by an estimate of their speed.

python launcher/plan.py --config configs/gpt2-124m.yaml --plan.ranks 64 --plan.memory_gb 80
"""

if not __package__:  # run as a file
    import _clone  # noqa: F401

from ingot.launcher.config.parser import parse
from ingot.launcher.config.plan import PlanConfig
from ingot.launcher.runtime.exit_codes import DONE, bad_input, run_main


def main(argv: list[str]) -> int:
    with bad_input():
        config = parse(PlanConfig, argv, __doc__)
        from ingot.launcher.planning.layout_search import check, search

        check(config)
        print("\n".join(search(config, config.plan)))
    return DONE


if __name__ == "__main__":
    run_main(main)
