"""Chats by a template: ids and spans of transformers, the same prompt in training and later, and hostile templates."""

import json

import pytest

from ingot.data.tokenizers import chat as chats
from ingot.data.tokenizers.chat import ChatEncoder
from ingot.data.tokenizers.huggingface_export import export_tokenizer
from ingot.data.tokenizers.load import load_tokenizer

TALK = [
    {"role": "system", "content": "print the order"},
    {"role": "user", "content": "  for value in self  "},
    {"role": "assistant", "content": "return None"},
    {"role": "user", "content": "while 1: index"},
    {"role": "assistant", "content": " import token\n"},
]
TURNS = """\
{% for m in messages %}
{{- '<|start|>' + m['role'] + '\n' }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<|end|>{% endgeneration %}
{%- else %}{{ m.content | trim }}<|end|>{% endif %}
{{- '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}
"""
PLAIN = TURNS.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Only the last answer shows that nothing was thought, as in Qwen 3.
THINKING = PLAIN.replace("{{ m.content", "{% if loop.last %}{{ '<think>\\n\\n</think>\\n' }}{% endif %}{{ m.content", 1)
FUNCTIONS = """\
{%- set ns = namespace(system='') %}
{%- for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor %}
{{- bos_token + ns.system | tojson + dict(a=1) | tojson(indent=1) }}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}
{{- '[' ~ loop.index0 ~ ']' ~ m.content.strip() ~ (eos_token if m.role == 'assistant' else '') }}
{%- endfor %}
"""


def with_template(folder, template: str | None, target):
    """A copy of a tokenizer with the template, and with tokens for the ends of turns."""
    tokenizer = load_tokenizer(folder)._tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(target)
    return load_tokenizer(target)


def spelled(tokenizer, ids) -> str:
    return tokenizer._tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("template", [TURNS, PLAIN, FUNCTIONS])
def test_ids_are_those_of_transformers_and_a_prompt_begins_what_is_learned(template, gpt2_like, tmp_path):
    tokenizer = with_template(gpt2_like, template, tmp_path / "t")
    encoder, theirs = ChatEncoder(tokenizer), tokenizer._tokenizer
    ((found,),) = encoder.whole([(TALK, "here")])
    expected = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=template == TURNS)
    assert found.ids.tolist() == expected["input_ids"]
    if template == TURNS:
        assert found.learned.tolist() == [bool(flag) for flag in expected["assistant_masks"]]
    for count in (2, 4):
        (prompt,) = encoder.prompts([(TALK[:count], "here")])
        assert prompt.tolist() == theirs.apply_chat_template(TALK[:count], add_generation_prompt=True)["input_ids"]
        assert found.ids[: len(prompt)].tolist() == prompt.tolist()
        assert not found.learned[len(prompt) - 1]
        assert found.learned[len(prompt)]


def test_what_the_assistant_said_is_what_it_adds(gpt2_like, tmp_path):
    plain = with_template(gpt2_like, PLAIN, tmp_path / "plain")
    ((found,),) = ChatEncoder(plain).whole([(TALK, "here")])
    assert spelled(plain, found.ids[found.learned]) == "return None<|end|>\nimport token<|end|>\n"
    marked = ChatEncoder(with_template(gpt2_like, TURNS, tmp_path / "marked"))
    ((same,),) = marked.whole([(TALK, "here")])
    assert same.ids.tolist() == found.ids.tolist()
    assert spelled(plain, same.ids[same.learned]) == "return None<|end|>import token<|end|>"


def test_a_template_that_writes_a_turn_differently_later_gives_a_text_for_each_answer(gpt2_like, tmp_path):
    tokenizer = with_template(gpt2_like, THINKING, tmp_path / "t")
    (found,) = ChatEncoder(tokenizer).whole([(TALK, "here")])
    thought = "<think>\n\n</think>\n"
    assert [spelled(tokenizer, each.ids[each.learned]) for each in found] == [
        f"{thought}return None<|end|>\n",
        f"{thought}import token<|end|>\n",
    ]
    assert thought + "return" not in spelled(tokenizer, found[1].ids)
    odd = with_template(gpt2_like, "{{ messages | length }}" + PLAIN, tmp_path / "odd")
    with pytest.raises(ValueError, match=r"line 7: the chat template of .*odd writes what comes before .*generation"):
        list(ChatEncoder(odd).whole([(TALK, "line 7")]))


def test_a_special_token_that_is_spelled_in_a_message_is_text(tokenizer, gpt2_like, tmp_path):
    tokenizer = tokenizer.with_chat_template()
    asked = [
        *TALK[:3],
        {"role": "user", "content": "a <|end|></s> b<s>"},
        {"role": "assistant", "content": "</s> x <|end|>"},
    ]
    for each, start in ((tokenizer, 1), (with_template(gpt2_like, TURNS, tmp_path / "t"), 0)):
        ((found,),) = ChatEncoder(each).whole([(asked, "here")])
        ((usual,),) = ChatEncoder(each).whole([(TALK, "here")])
        special = set(each.special_pieces.values())
        count = sum(int(i) in special for i in found.ids)
        assert count == sum(int(i) in special for i in usual.ids) == len(TALK) * (2 - start) + start
        text = each.decode(found.ids)
        assert "a <|end|></s> b<s>" in text
        assert each.decode(found.ids[found.learned]) == "return None" + "</s> x <|end|>"
    with pytest.raises(ValueError, match=r"line 3: a message has a character of private use"):
        list(ChatEncoder(tokenizer).prompts([([{"role": "user", "content": "\U00100001"}], "line 3")]))


def test_the_default_template_is_the_same_in_transformers(tokenizer, tmp_path):
    export_tokenizer(tokenizer, tmp_path, causal=True, chats=True)
    from transformers import AutoTokenizer

    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), tokenizer.with_chat_template()
    ((found,),) = ChatEncoder(tokenizer).whole([(TALK, "here")])
    expected = theirs.apply_chat_template(TALK, return_dict=True, return_assistant_tokens_mask=True)
    assert found.ids.tolist() == expected["input_ids"]
    assert found.learned.tolist() == [bool(flag) for flag in expected["assistant_masks"]]
    assert tokenizer.decode(found.ids[found.learned]) == "return None import token\n"
    assert found.ids[found.learned][-1] == tokenizer.eos_id == ChatEncoder(tokenizer).end_ids[0]


def test_an_answer_ends_with_what_the_template_or_the_settings_name(gpt2_like, tmp_path):
    tokenizer = with_template(gpt2_like, TURNS, tmp_path / "t")
    end = tokenizer.find("<|end|>")
    assert tokenizer.end_ids == (0,)
    assert ChatEncoder(tokenizer).end_ids == (0, end)
    (tmp_path / "t/generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0]}))
    assert load_tokenizer(tmp_path / "t").end_ids == (7, 0)
    (tmp_path / "t/generation_config.json").write_text("[")
    with pytest.raises(ValueError, match=r"generation_config.json is not (JSON|a JSON object)"):
        print(load_tokenizer(tmp_path / "t").end_ids)


HOSTILE = {
    "time": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "too much|more than 1 s",
    ),
    "memory": ("{% set x = 'a' * 99999 %}{{ (x * 99999) | length }}", "MemoryError"),
    "growing": (
        "{% set n = namespace(x='a') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "Memory|more than 1 s",
    ),
    "attributes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "namespace": ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "SecurityError"),
    "functions": ("{{ raise_exception.__globals__.x }}", "SecurityError"),
    "changes": ("{{ messages.clear() }}", "SecurityError"),
    "files": ("{% include '/etc/passwd' %}", "no loader|TypeError"),
    "refusal": (
        "{{ raise_exception('roles must alternate') }}",
        "line 5: .*refuses the messages: .*roles must alternate",
    ),
    "syntax": ("{% for %}", "cannot be used: TemplateSyntaxError"),
    "length": ("x" * 1_000_001, "has 1,000,001 characters; at most 1,000,000"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_cannot_run_code_or_without_end(name, tokenizer, tmp_path, monkeypatch):
    template, message = HOSTILE[name]
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    if "more than 1 s" in message:  # the others end by themselves
        monkeypatch.setattr(chats, "SECONDS", 1)
    with pytest.raises(ValueError, match=message):
        list(ChatEncoder(load_tokenizer(tmp_path)).prompts([(TALK, "line 5")]))


def test_a_chat_is_the_same_text_on_every_day(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    (ids,) = ChatEncoder(load_tokenizer(tmp_path)).prompts([(TALK, "here")])
    assert tokenizer.decode(ids) == "26 Jul 2024"
