from ingot.launcher.config.reference import COMMANDS, PATH, reference
from ingot.launcher.config.schema.options import options


def test_the_reference_is_what_the_types_say():
    assert PATH.read_text() == reference(), (
        "docs/configuration.md is stale; python -m ingot.launcher.config.reference writes it"
    )


def test_every_option_is_explained():
    for command, cls in COMMANDS.items():
        for option in options(cls):
            assert len(option.meaning.split()) >= 2, f"{command}: {option.name}"
