"""The generate command on a new run: texts to standard output or a file, and refused options."""

import json

import pytest
import torch

import ingot
from ingot.launcher import generate, pretrain
from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.inference import generation
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.runtime import exit_codes
from tests.launcher.runs import launch, write_config


def trained(corpus, folder, objective):
    config = write_config(folder, corpus, objective=objective)
    arguments = ["--config", config, "--parallel.engine", "fsdp", "--run.steps", 8]
    assert pretrain.main([str(argument) for argument in arguments]) == exit_codes.DONE
    return folder / "runs/tiny"


@pytest.fixture(scope="module")
def gpt(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("gpt"), "clm")


@pytest.fixture(scope="module")
def bert(corpus, tmp_path_factory):
    return trained(corpus, tmp_path_factory.mktemp("bert"), "mlm")


def run(*arguments: object) -> None:
    assert generate.main([str(argument) for argument in arguments]) == exit_codes.DONE


def refusal(*arguments: object) -> str:
    with pytest.raises(exit_codes.BadInput) as caught:
        generate.main([str(argument) for argument in arguments])
    return str(caught.value)


def test_a_text_is_streamed(gpt, capsys):
    launched = launch(
        "python", "--checkpoint", gpt, "--prompt", "def ", "--max_tokens", 20, "--seed", 3, script="generate"
    )
    run("--checkpoint", gpt, "--prompt", "def ", "--max_tokens", 20, "--seed", 3)
    out = capsys.readouterr().out
    assert launched.stdout == out
    assert out.startswith("def ")
    assert len(out) > 15


def test_prompts_of_a_file_give_an_object_each(gpt, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "def ", "id": 7}\n\n{"prompt": "import os\\nimport sys\\n"}\n{"prompt": ""}\n')
    texts = {}
    for size in (1, 4):
        output = tmp_path / f"{size}.jsonl"
        options = ["--checkpoint", gpt, "--prompts", prompts, "--output", output, "--batch_size", size]
        run(*options, "--num_samples", 2, "--max_tokens", 12, "--top_k", 50, "--min_p", 0.01)
        texts[size] = [json.loads(line) for line in output.read_text().splitlines()]
    assert texts[1] == texts[4]
    assert [(t["prompt"][:4], t["sample"]) for t in texts[4]] == [
        (prompt, sample) for prompt in ("def ", "impo", "") for sample in (0, 1)
    ]
    assert texts[4][0]["id"] == texts[4][1]["id"] == 7
    assert texts[4][0]["text"] != texts[4][1]["text"]
    assert {t["num_tokens"] for t in texts[4] if t["finish"] == "length"} == {12}
    assert capsys.readouterr().out == ""

    run(
        "--checkpoint",
        gpt,
        "--prompts",
        prompts,
        "--num_samples",
        2,
        "--max_tokens",
        12,
        "--top_k",
        50,
        "--min_p",
        0.01,
    )
    shown = f"{generation.SEPARATOR}\n".join(f"{t['prompt']}{t['text']}\n" for t in texts[4])
    assert capsys.readouterr().out == shown


def test_a_stop_string_ends_the_text(gpt, tmp_path):
    output, common = tmp_path / "out.jsonl", ["--checkpoint", gpt, "--prompt", "def ", "--max_tokens", 40]
    run(*common, "--output", output)
    whole = json.loads(output.read_text())["text"]
    stop = whole[9:12]
    run(*common, "--output", output, "--stop", "never in there", stop)
    found = json.loads(output.read_text())
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish"] == "stop"
    run(*common, "--output", output, "--stop", json.dumps([stop]))
    assert json.loads(output.read_text()) == found


def test_type_and_start_reach_the_model(gpt, monkeypatch):
    seen = []

    def spy(model, prompts, *_, **__):
        seen.append((model.head.weight.dtype, list(prompts[0])))
        return iter(())

    monkeypatch.setattr("ingot.launcher.inference.generation.generate", spy)
    for more in ([], ["--dtype", "bfloat16"], ["--mark_start", "false"]):
        run("--checkpoint", gpt, "--prompt", "x", *more)
    marked = seen[0][1]
    unmarked = marked[1:]
    assert marked[0] == 2  # <s>
    assert seen == [(torch.float32, marked), (torch.bfloat16, marked), (torch.float32, unmarked)]


def test_a_chat_goes_through_the_template(gpt, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    chat = [{"role": "user", "content": "import os"}]
    lines = [{"prompt": "import os"}, {"messages": chat}, {"prompt": "<s>user:\nimport os</s>\nassistant:\n"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["--checkpoint", gpt, "--temperature", 0, "--max_tokens", 12, "--output", output]
    run(*common, "--prompts", prompts)
    _, chatted, _ = (json.loads(line)["text"] for line in output.read_text().splitlines())
    run(*common, "--prompt", "import os", "--chat", "true")
    assert json.loads(output.read_text())["text"] == chatted
    model, tokenizer = load_for_inference(str(gpt), None, torch.device("cpu"))
    tokenizer = tokenizer.with_chat_template()
    plain, chat_ids, spelled = generation.prompt_ids(GenerateOptions(str(gpt)), lines, tokenizer)
    assert tokenizer.decode(plain) == "import os"
    assert tokenizer.decode(chat_ids) == "user:\nimport os\nassistant:\n"
    assert (chat_ids.count(2), chat_ids.count(3)) == (1, 1)
    assert (spelled.count(2), spelled.count(3)) == (1, 0), "a special token that a prompt spells is text"
    assert tokenizer.decode(spelled) == lines[2]["prompt"]
    assert ingot.generate(model, tokenizer, "import os", max_tokens=12, temperature=0, chat=True) == chatted
    capsys.readouterr()
    run(*common[:-2], "--prompt", "import os", "--chat", "true")
    assert capsys.readouterr().out == chatted + "\n"
    prompts.write_text('{"messages": [{"role": "user"}]}\n')
    assert "line 1: the messages are" in refusal(*common, "--prompts", prompts)


def test_masks_are_filled(bert, tmp_path, capsys):
    run("--checkpoint", bert, "--prompt", "import <mask>, <mask>", "--top_k", 3)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in lines] == ["mask 1: ", "mask 2: "]
    output = tmp_path / "masks.jsonl"
    run("--checkpoint", bert, "--prompt", "import <mask>, <mask>", "--output", output)
    masks = json.loads(output.read_text())["masks"]
    assert [len(best) for best in masks] == [5, 5]
    assert masks[0][0]["probability"] >= masks[0][1]["probability"] > 0


def test_what_is_refused(gpt, bert, tmp_path):
    empty, broken = tmp_path / "empty.txt", tmp_path / "broken.jsonl"
    empty.write_text(" \n\n")
    broken.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    output = tmp_path / "out.jsonl"
    output.write_text("older\n")
    common = ["--checkpoint", gpt, "--output", output]
    assert "has no prompts" in refusal(*common, "--prompts", empty)
    assert 'broken.jsonl, line 2 is not a JSON object with a text "prompt"' in refusal(*common, "--prompts", broken)
    assert "No such file" in refusal(*common, "--prompts", tmp_path / "none.txt")
    assert "both given" in refusal(*common, "--prompts", empty, "--prompt", "a")
    assert "top_p is 0; it must be a number above 0 and at most 1" in refusal(*common, "--top_p", 0)
    message = refusal(*common, "--min_p", 2, "--max_tokens", -1)
    assert "min_p is 2; it must be a number from 0 to 1" in message
    assert "max_tokens is -1; it must be a whole number from 1" in message
    assert "stop string is empty" in refusal(*common, "--stop", '[""]')
    message = refusal(*common, "--num_samples", 0, "--batch_size", 0)
    assert "num_samples is 0" in message
    assert "batch_size is 0" in message
    assert "folder of output" in refusal("--checkpoint", gpt, "--output", tmp_path / "none/out.jsonl")
    assert "dtype" in refusal(*common, "--dtype", "float16")
    assert "device 'cuda:99' cannot be used here" in refusal(*common, "--device", "cuda:99")
    assert "device 'gpu' cannot be used here" in refusal(*common, "--device", "gpu")
    assert "needs <mask>" in refusal("--checkpoint", bert, "--prompt", "import os")
    assert "top_k is 0" in refusal("--checkpoint", bert, "--prompt", "<mask>", "--top_k", 0)
    assert output.read_text() == "older\n"


def test_a_prompt_beyond_learned_positions_is_refused_and_a_long_one_leaves_the_others_alone(corpus, tmp_path, capsys):
    config = write_config(tmp_path, corpus)
    arguments = ["--config", config, "--parallel.engine", "fsdp", "--run.steps", 1, "--model.positions", "learned"]
    assert pretrain.main([str(argument) for argument in arguments]) == exit_codes.DONE
    common = ["--checkpoint", tmp_path / "runs/tiny", "--max_tokens", 10, "--prompt"]
    assert "exceed the 64 positions of the model" in refusal(*common, "one two " * 100)
    run(*common, "one two")
    prompts, output = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("def\n" + "def " * 9 + "\nimport\n")
    common = ["--checkpoint", tmp_path / "runs/tiny", "--temperature", 0, "--max_tokens", 50, "--output", output]
    run(*common, "--prompts", prompts)
    assert "2 of 3" not in capsys.readouterr().err
    together = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["num_tokens"] == 50 or each["finish"] == "eos" for each in together] == [True, False, True]
    for each in together:
        run(*common, "--prompt", each["prompt"])
        assert json.loads(output.read_text()) == each
    assert "1 of 1 prompts leave room for fewer than 50 new tokens: prompt 1 (" in capsys.readouterr().err
