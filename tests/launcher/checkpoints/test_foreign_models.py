"""Checkpoints of transformers' modules that DeepSpeed, torch DCP and the Trainer have written, and of a Llama with the
names of torchtitan: weights and moments to the last bit, and training goes on as it would there."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

from ingot.launcher import checkpoint
from ingot.launcher.checkpoints.foreign_formats import STATES
from ingot.launcher.config.parser import to_yaml
from ingot.launcher.config.pretrain import CorpusSource, Data, TrainConfig
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.model.config import ModelConfig
from ingot.model.transformer import LanguageModel
from ingot.parallel import mesh as meshes
from ingot.parallel.checkpoint import read_manifest, read_tensor
from tests.model.huggingface_models import OURS, theirs
from tests.ranks import run_ranks

STEPS = 2
IDS = [torch.randint(5, 91, (2, 16), generator=torch.Generator().manual_seed(step)) for step in range(STEPS + 1)]


def optimizer_of(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.1)


def train(module, optimizer, ids, loss_of=lambda module, ids: module(input_ids=ids, labels=ids).loss):
    for batch in ids:
        loss_of(module, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(family):
    """A tiny model of transformers after STEPS steps, and its optimizer."""
    module = theirs(family).train()
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    optimizer = optimizer_of(module)
    train(module, optimizer, IDS[:STEPS])
    return module, optimizer


def save_dcp(folder, module, optimizer):
    model_state, optimizer_state = get_state_dict(module, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=str(folder), no_dist=True)


def import_into(tmp_path, source, config, family, *more):
    """The folder of the imported checkpoint."""
    whole = TrainConfig(model=config, data=Data(train=[CorpusSource("corpus")]))
    (tmp_path / "config.yaml").write_text(to_yaml(whole))
    line = ["import", source, "--config", tmp_path / "config.yaml", "--output", tmp_path / "ours", *more]
    assert checkpoint.main([*map(str, line), *(["--family", family] if family else [])]) == 0
    (folder,) = (tmp_path / "ours/checkpoints").glob("step-*")
    return folder


def opened(folder, config, step=STEPS):
    """Our model and an AdamW with the state of a checkpoint."""
    manifest = read_manifest(folder)
    assert manifest["step"] == step
    module = LanguageModel(config)
    parameters = dict(module.named_parameters())
    names = {f"model/{n}" for n in parameters} | {f"optimizer/{s}/{n}" for s in STATES for n in parameters}
    assert manifest["tensors"].keys() == names
    optimizer = optimizer_of(module)
    for name, parameter in parameters.items():
        parameter.data.copy_(read_tensor(folder, manifest, f"model/{name}"))
        moments = {state: read_tensor(folder, manifest, f"optimizer/{state}/{name}").clone() for state in STATES}
        optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
    return module, optimizer


def our_loss(module, ids):
    return module(input_ids_BT=ids, labels_BT=torch.roll(ids, -1, 1).masked_fill_(last(ids), -100)) / (ids.numel() - 2)


def last(ids):
    """Where a row has no next token."""
    return torch.arange(ids.shape[1]).expand_as(ids) == ids.shape[1] - 1


def same_steps(module, optimizer, ours, our_optimizer, logits):
    """After one more step of both, the models predict the same."""
    train(module, optimizer, IDS[STEPS:])
    train(ours, our_optimizer, IDS[STEPS:], our_loss)
    with torch.no_grad():
        expected = logits(module.eval())
        found = ours.eval()(input_ids_BT=IDS[0])
    assert torch.allclose(found, expected, atol=2e-4), (found - expected).abs().max()


def hf_logits(module):
    return module(input_ids=IDS[0]).logits


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_torch_dcp(family, tmp_path):
    module, optimizer = trained(family)
    save_dcp(tmp_path / "dcp", module, optimizer)
    config = replace(OURS[family], dropout=0.0, attention_dropout=0.0)
    ours, our_optimizer = opened(import_into(tmp_path, tmp_path / "dcp", config, family), config)
    same_steps(module, optimizer, ours, our_optimizer, hf_logits)


def test_the_moments_are_those_of_the_source_to_the_last_bit(tmp_path):
    """GPT-2 has one transposed matrix for queries, keys and values."""
    module, optimizer = trained("gpt2")
    save_dcp(tmp_path / "dcp", module, optimizer)
    folder = import_into(tmp_path, tmp_path / "dcp", OURS["gpt2"], "gpt2")
    manifest = read_manifest(folder)
    fused = module.transformer.h[1].attn.c_attn.weight
    for place, value in (("model", fused), *((f"optimizer/{s}", optimizer.state[fused][s]) for s in STATES)):
        names = [f"{place}/blocks.1.attention.{part}.weight" for part in ("query", "key", "value")]
        assert torch.equal(torch.cat([read_tensor(folder, manifest, name) for name in names]), value.detach().T)


def test_names_of_compiled_and_wrapped_modules(tmp_path):
    module, optimizer = trained("llama")
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model_state, optimizer_state = get_state_dict(module, optimizer, options=options)
    wrapped = lambda key: key.replace("layers.", "layers._orig_mod.").replace("mlp.", "_checkpoint_wrapped_module.mlp.")  # noqa: E731
    state = {wrapped(key): value for key, value in (model_state | optimizer_state).items()}
    dcp.save(state, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    opened(import_into(tmp_path, tmp_path / "dcp", OURS["llama"], "llama"), OURS["llama"])


def test_a_folder_of_the_model_and_one_of_the_optimizer(tmp_path):
    """As the Trainer has them with FSDP."""
    module, optimizer = trained("llama")
    model_state, optimizer_state = get_state_dict(module, optimizer)
    for name, state in (
        ("pytorch_model_fsdp_0", {"model": model_state}),
        ("optimizer_0", {"optimizer": optimizer_state}),
    ):
        dcp.save(state, checkpoint_id=str(tmp_path / "theirs" / name), no_dist=True)
    folder = import_into(tmp_path, tmp_path / "theirs", OURS["llama"], "llama")
    ours, our_optimizer = opened(folder, OURS["llama"])
    same_steps(module, optimizer, ours, our_optimizer, hf_logits)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_checkpoint_of_the_trainer(family, tmp_path):
    from transformers import Trainer, TrainingArguments

    module = theirs(family)
    data = [{"input_ids": row, "labels": row} for ids in IDS for row in ids]
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "report_to": "none", "save_steps": STEPS}
    settings |= {"weight_decay": 0.1, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}
    trainer = Trainer(module, TrainingArguments(str(tmp_path / "theirs"), **settings), train_dataset=data)
    trainer.train()
    folder = import_into(tmp_path, tmp_path / f"theirs/checkpoint-{STEPS}", OURS[family], family)
    ours, our_optimizer = opened(folder, OURS[family])
    with torch.no_grad():
        expected = module.eval()(input_ids=IDS[0]).logits
        assert torch.allclose(ours.eval()(input_ids_BT=IDS[0]), expected, atol=1e-5)
    name, mine = (
        ("bert.embeddings.word_embeddings", "embedding.token")
        if family == "bert"
        else ("transformer.wte", "embedding.token")
    )
    states = trainer.optimizer.optimizer.state if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer.state
    pairs = {f"{name}.weight": f"{mine}.weight"}
    norm = "bert.encoder.layer.2.output.LayerNorm.bias" if family == "bert" else "transformer.h.2.ln_2.bias"
    pairs[norm] = "blocks.2.mlp_norm.bias"  # one that is not decayed
    theirs_by_name, ours_by_name = dict(module.named_parameters()), dict(ours.named_parameters())
    for source, target in pairs.items():
        for state in STATES:
            expected = states[theirs_by_name[source]][state]
            assert torch.equal(our_optimizer.state[ours_by_name[target]][state], expected), (target, state)
            assert expected.any()


def save_with_deepspeed(folder: Path, stage: int) -> dict:
    """Trains transformers' Llama under DeepSpeed and saves it. Returns its state, gathered by DeepSpeed's own means."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    meshes.start("cpu")
    module = theirs("llama").train()
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 100_000},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = optimizer_of(module)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings, dist_init_required=False)
    for ids in IDS[:STEPS]:
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(str(folder))
    state = {}
    for name, parameter in module.named_parameters():
        values = {"weight": safe_get_full_fp32_param(parameter)}
        values |= {moment: safe_get_full_optimizer_state(parameter, moment) for moment in STATES}
        state[name] = {key: value.clone().numpy() for key, value in values.items()}
    meshes.stop()
    return state


@pytest.mark.distributed
@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 3))])
def test_deepspeed(stage, tmp_path):
    expected = run_ranks(save_with_deepspeed, 2, tmp_path / "theirs", stage)[0]
    folder = import_into(tmp_path, tmp_path / "theirs", OURS["llama"], "llama")
    manifest = read_manifest(folder)
    assert manifest["step"] == STEPS
    names = {"self_attn.q_proj": "attention.query", "mlp.up_proj": "mlp.up", "post_attention_layernorm": "mlp_norm"}
    pairs = {f"model.layers.{n}.{a}.weight": f"blocks.{n}.{b}.weight" for n in range(4) for a, b in names.items()}
    pairs |= {"lm_head.weight": "head.weight", "model.embed_tokens.weight": "embedding.token.weight"}
    for theirs_name, ours in pairs.items():
        for key, value in expected[theirs_name].items():
            place = f"model/{ours}" if key == "weight" else f"optimizer/{key}/{ours}"
            assert torch.equal(read_tensor(folder, manifest, place), torch.from_numpy(value)), place


class MetaAttention(nn.Module):
    """Attention as in Meta's Llama: neighbouring elements of a head are rotated together."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.theta = config.num_attention_heads, config.kv_heads, config.rope_theta
        size = config.head_size
        self.wq = nn.Linear(config.hidden_size, self.heads * size, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.kv_heads * size, bias=False)
        self.wv = nn.Linear(config.hidden_size, self.kv_heads * size, bias=False)
        self.wo = nn.Linear(self.heads * size, config.hidden_size, bias=False)

    def rotate(self, x):
        size, length = x.shape[-1], x.shape[1]
        angles = torch.outer(torch.arange(length), self.theta ** (-torch.arange(0, size, 2) / size))
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)[:, None]
        return torch.view_as_real(turned).flatten(-2)

    def forward(self, x):
        q, k, v = (
            w(x).unflatten(-1, (n, -1))
            for w, n in zip((self.wq, self.wk, self.wv), (self.heads, self.kv_heads, self.kv_heads), strict=True)
        )
        q, k, v = (each.transpose(1, 2) for each in (self.rotate(q), self.rotate(k), v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).flatten(-2))


class MetaLlama(nn.Module):
    """A Llama with the names of torchtitan."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        norm = lambda: nn.RMSNorm(config.hidden_size, config.norm_eps)  # noqa: E731
        linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleDict()
        for number in range(config.num_hidden_layers):
            up, down = (config.hidden_size, config.mlp_size), (config.mlp_size, config.hidden_size)
            forward = nn.ModuleDict({"w1": linear(*up), "w2": linear(*down), "w3": linear(*up)})
            parts = {"attention": MetaAttention(config), "feed_forward": forward}
            self.layers[str(number)] = nn.ModuleDict({**parts, "attention_norm": norm(), "ffn_norm": norm()})
        self.norm, self.output = norm(), linear(config.hidden_size, config.vocab_size)

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers.values():
            x = x + layer["attention"](layer["attention_norm"](x))
            y, mlp = layer["ffn_norm"](x), layer["feed_forward"]
            x = x + mlp["w2"](nn.functional.silu(mlp["w1"](y)) * mlp["w3"](y))
        return self.output(self.norm(x))


def meta_loss(module, ids):
    return nn.functional.cross_entropy(module(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def test_a_llama_of_torchtitan(tmp_path):
    config = OURS["llama"]
    torch.manual_seed(0)
    module = MetaLlama(config)
    optimizer = optimizer_of(module)
    train(module, optimizer, IDS[:STEPS], meta_loss)
    model_state, optimizer_state = get_state_dict(
        module, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True)
    )
    dcp.save({**model_state, "optimizer": optimizer_state}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    ours, our_optimizer = opened(import_into(tmp_path, tmp_path / "dcp", config, "torchtitan"), config)
    with torch.no_grad():
        assert torch.allclose(ours(input_ids_BT=IDS[0]), module(IDS[0]), atol=1e-5)
    train(module, optimizer, IDS[STEPS:], meta_loss)
    train(ours, our_optimizer, IDS[STEPS:], our_loss)
    with torch.no_grad():
        assert torch.allclose(ours(input_ids_BT=IDS[0]), module(IDS[0]), atol=2e-4)


def test_weights_alone_are_imported_and_said_to_be_alone(tmp_path, capsys):
    theirs("gpt2").save_pretrained(tmp_path / "released")
    folder = import_into(tmp_path, tmp_path / "released", OURS["gpt2"], "gpt2")
    assert "has weights alone, without an optimizer" in capsys.readouterr().out
    assert all(name.startswith("model/") for name in read_manifest(folder)["tensors"])
    (tmp_path / "second").mkdir()
    dcp.save({"model": theirs("gpt2").state_dict()}, checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    import_into(tmp_path / "second", tmp_path / "dcp", OURS["gpt2"], "gpt2")
    assert "has weights alone, without an optimizer" in capsys.readouterr().out


def refusal(tmp_path, *arguments) -> str:
    with pytest.raises(BadInput) as error:
        import_into(tmp_path, *arguments)
    assert not (tmp_path / "ours").exists()
    return str(error.value)


def test_sources_that_do_not_fit(tmp_path):
    released, llama = tmp_path / "released", OURS["llama"]
    theirs("llama").save_pretrained(released)
    save_dcp(tmp_path / "dcp", *trained("llama"))
    assert "family is 'opt'; choose one of gpt2, llama" in refusal(tmp_path, released, llama, "opt")
    assert "is none of family gpt2: " in refusal(tmp_path, released, llama, "gpt2")
    assert "name the family of its model with --family" in refusal(tmp_path, released, llama, None)
    assert "Name the family of its model with --family" in refusal(tmp_path, tmp_path / "dcp", llama, None)
    other = replace(llama, rope_theta=77.0)
    assert "config.json is of another model than the configuration: rope_theta is 500.0 there and 77.0 here" in refusal(
        tmp_path, released, other, "llama"
    )
    fewer = replace(llama, num_hidden_layers=3)
    assert "is of another model; it also has: model.model.layers.3" in refusal(
        tmp_path, tmp_path / "dcp", fewer, "llama"
    )
    more = replace(llama, num_hidden_layers=5)
    assert "has no model.layers.4" in refusal(tmp_path, tmp_path / "dcp", more, "llama")
    wider = replace(llama, intermediate_size=96)
    assert "is [80, 32] there and [96, 32] here" in refusal(tmp_path, tmp_path / "dcp", wider, "llama")
    (tmp_path / "empty").mkdir()
    assert "is no checkpoint of DeepSpeed" in refusal(tmp_path, tmp_path / "empty", llama, "llama")


class Evil:
    """Does something when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize("kind", ["dcp", "trainer", "deepspeed"])
def test_no_pickle_is_executed(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    if kind == "dcp":
        (source / ".metadata").write_bytes(pickle.dumps(Evil()))
        expected = "is damaged, or no metadata of torch DCP: it contains posix.mkdir"
    elif kind == "trainer":
        theirs("gpt2").save_pretrained(source)
        torch.save({"state": Evil(), "param_groups": []}, source / "optimizer.pt")
        expected = "optimizer.pt is damaged, or contains more than tensors"
    else:
        for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            torch.save({"module": Evil(), "optimizer_state_dict": Evil()}, source / name)
        expected = "DeepSpeed cannot convert"
    assert expected in refusal(tmp_path, source, OURS["gpt2"], "gpt2")
    assert not (tmp_path / "evil-was-here").exists()


def test_metadata_that_lead_elsewhere(tmp_path):
    save_dcp(tmp_path / "dcp", *trained("gpt2"))
    content = (tmp_path / "dcp/.metadata").read_bytes()
    name = b"__0_0.distcp"
    assert content.count(name) >= 1
    (tmp_path / "dcp/.metadata").write_bytes(content.replace(name, b"../outside.x"))
    assert "names a file outside of its folder: '../outside.x'" in refusal(
        tmp_path, tmp_path / "dcp", OURS["gpt2"], "gpt2"
    )
    (tmp_path / "dcp/.metadata").write_bytes(content)
    (tmp_path / "dcp/__0_0.distcp").unlink()
    os.mkfifo(tmp_path / "dcp/__0_0.distcp")
    assert "is a named pipe, not a regular file" in refusal(tmp_path, tmp_path / "dcp", OURS["gpt2"], "gpt2")
