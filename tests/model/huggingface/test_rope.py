"""Every scaling of rotary positions, beyond the original length, in the words of transformers 4 and 5, both ways."""

import json

import pytest

from ingot.model.config import RopeScaling
from ingot.model.huggingface.load import load
from ingot.model.huggingface.save import save
from tests.model.huggingface_models import TOLERANCE, agree, auto_of, imported, opened, theirs

BASE = {"rope_theta": 500.0}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.5, 1.9, 2.5, 3.0, 4.0], "long_factor": [1.5, 2, 3, 4, 6, 8, 9, 12.0]}
OLD, ORIGINAL = 24, "original_max_position_embeddings"
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, ORIGINAL: OLD}
SCALINGS = {
    "linear": ({"rope_type": "linear", "factor": 3.0}, {"factor": 3.0}),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.5}, {"factor": 2.5, "original_max_position_embeddings": OLD}),
    "llama3": (
        {"rope_type": "llama3", **LLAMA3},
        {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": OLD},
    ),
    "yarn": (
        {"rope_type": "yarn", "factor": 3.0, ORIGINAL: OLD, "beta_fast": 4.0, "beta_slow": 0.5},
        {"factor": 3.0, "original_max_position_embeddings": OLD, "beta_fast": 4.0, "beta_slow": 0.5},
    ),
    "yarn-mscale": (
        {"rope_type": "yarn", "factor": 3.0, ORIGINAL: OLD, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False},
        {"factor": 3.0, "original_max_position_embeddings": OLD, "attention_factor": 1.0520704, "truncate": False},
    ),
    "yarn-factor": (
        {"rope_type": "yarn", "factor": 3.0, ORIGINAL: OLD, "attention_factor": 1.3},
        {"factor": 3.0, "original_max_position_embeddings": OLD, "attention_factor": 1.3},
    ),
    "longrope": (
        {"rope_type": "longrope", "factor": 3.0, ORIGINAL: OLD, **LONG},
        {
            "factor": 3.0,
            "original_max_position_embeddings": OLD,
            "short_factor": LONG["short_factor"],
            "long_factor": LONG["long_factor"],
        },
    ),
}


def scaled(name: str):
    # A dynamic scaling knows no original length but this one; the other kinds keep theirs.
    longest = {"max_position_embeddings": OLD} if name == "dynamic" else {}
    return theirs("llama", rope_parameters={**BASE, **SCALINGS[name][0]}, **longest)


def cases_beyond() -> list[tuple[str, str]]:
    """All but packed ones of the scalings that depend on the longest document: theirs are run one by one."""
    cases = [(name, case) for name in SCALINGS for case in ("plain", "packed", "right")]
    return [(name, case) for name, case in cases if case != "packed" or name not in ("dynamic", "longrope")]


@pytest.mark.parametrize(("name", "case"), cases_beyond())
def test_a_scaling_is_theirs_beyond_the_original_length(name, case, tmp_path):
    other = scaled(name)
    assert agree(imported(other, tmp_path), other, "llama", case) <= TOLERANCE


@pytest.mark.parametrize("name", SCALINGS)
def test_a_scaling_means_what_a_person_would_say_and_goes_back(name, tmp_path):
    mine = imported(scaled(name), tmp_path / "theirs")
    wanted = RopeScaling(rope_type=name.split("-")[0], **SCALINGS[name][1])
    if wanted.attention_factor is not None:
        assert mine.config.rope_scaling.attention_factor == pytest.approx(wanted.attention_factor, rel=1e-6)
        wanted.attention_factor = mine.config.rope_scaling.attention_factor
    assert mine.config.rope_scaling == wanted
    assert mine.config.rope_theta == 500.0
    save(mine, tmp_path / "back")
    assert agree(mine, opened(tmp_path / "back", auto_of("llama")), "llama", "plain") <= TOLERANCE


def rewrite(folder, **changes):
    """Changes settings in a file; None removes one."""
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("name", SCALINGS)
def test_the_words_of_transformers_4_mean_the_same(name, key, tmp_path):
    new = imported(scaled(name), tmp_path)
    scaling = {**SCALINGS[name][0]}
    scaling[key] = scaling.pop("rope_type")
    rewrite(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=scaling)
    assert load(tmp_path).config == new.config


def test_what_is_written_has_both_generations_words(tmp_path):
    save(imported(scaled("llama3"), tmp_path / "theirs"), tmp_path / "back")
    values = json.loads((tmp_path / "back/config.json").read_text())
    assert values["rope_theta"] == 500.0
    assert values["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}
    assert values["rope_parameters"] == {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}


def test_an_original_length_beside_the_scaling_counts(tmp_path):
    """Phi's way of saying it, which transformers lets win."""
    imported(scaled("longrope"), tmp_path)
    scaling = {key: value for key, value in SCALINGS["longrope"][0].items() if key not in (ORIGINAL, "factor")}
    rewrite(tmp_path, rope_parameters=None, rope_theta=500.0, rope_scaling=scaling, **{ORIGINAL: 12})
    found = load(tmp_path).config.rope_scaling
    assert (found.original_max_position_embeddings, found.factor) == (12, 6.0)


def test_modernberts_two_bases_in_both_generations_words(tmp_path):
    other = theirs("modernbert")
    new = imported(other, tmp_path)
    assert (new.config.rope_theta, new.config.local_rope_theta) == (700.0, 200.0)
    rewrite(tmp_path, rope_parameters=None, layer_types=None, global_attn_every_n_layers=3)
    rewrite(tmp_path, global_rope_theta=700.0, local_rope_theta=200.0)
    assert load(tmp_path).config == new.config
    rewrite(tmp_path, global_attn_every_n_layers=2, global_rope_theta=None, local_rope_theta=None)
    old = load(tmp_path).config
    assert (old.layer_pattern, old.rope_theta, old.local_rope_theta) == ("GL", 160_000.0, 10_000.0)


def test_a_scaled_modernbert_goes_both_ways(tmp_path):
    scaling = {"rope_type": "linear", "factor": 2.0}
    kinds = {"full_attention": 700.0, "sliding_attention": 200.0}
    other = theirs("modernbert", rope_parameters={k: {"rope_theta": base, **scaling} for k, base in kinds.items()})
    mine = imported(other, tmp_path / "theirs")
    assert mine.config.rope_scaling == RopeScaling("linear", 2.0)
    save(mine, tmp_path / "back")
    for each in (other, opened(tmp_path / "back", auto_of("modernbert"))):
        assert agree(mine, each, "modernbert", "plain") <= TOLERANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "rope_type is 'proportional'.*'longrope'"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5; supported is 1\.0"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "one set for all layers"),
        ({"rope_parameters": [1]}, "rope_parameters is .1."),
    ],
)
def test_what_cannot_be_represented_is_refused(changes, message, tmp_path):
    theirs("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_dynamic_scaling_that_starts_elsewhere_cannot_be_written(tmp_path):
    mine = imported(scaled("dynamic"), tmp_path / "theirs")
    mine.config.max_position_embeddings = 2 * OLD
    with pytest.raises(ValueError, match=r"rope_scaling is .*'original_max_position_embeddings': 24"):
        save(mine, tmp_path / "out", family="llama")
    assert not (tmp_path / "out").exists()
