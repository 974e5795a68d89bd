"""What the subcommands of `launcher/checkpoint.py` do. Each takes its options and returns an exit code."""

import argparse
import fnmatch
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from ingot.launcher.checkpoints.export import export as export_huggingface
from ingot.launcher.checkpoints.foreign_formats import STATES, read_foreign
from ingot.launcher.checkpoints.foreign_names import check_config, foreign_model
from ingot.launcher.config.aliases import modernize_manifest
from ingot.launcher.config.export import ExportOptions
from ingot.launcher.config.parser import parse
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.planning.footprint import footprint_of, layout_of
from ingot.launcher.runtime.exit_codes import BAD_INPUT, DONE
from ingot.model.huggingface.files import read_config
from ingot.model.transformer import LanguageModel
from ingot.parallel.checkpoint import CheckpointError, committed, open_newest, read_manifest, resolve, step_name
from ingot.parallel.checkpoint.format import stored_shards
from ingot.parallel.checkpoint.manifest import MANIFEST
from ingot.parallel.checkpoint.run_folder import left_behind
from ingot.parallel.checkpoint.single_process import OpenCheckpoint, differences, find_problems, write_checkpoint
from ingot.parallel.tensor_shards import Rectangle, TensorShard

DIFFERENT = 1


def list_run(options: argparse.Namespace) -> int:
    folder = options.run / "checkpoints" if (options.run / "checkpoints").is_dir() else options.run
    found = committed(folder)
    if not found:
        raise CheckpointError(f"{options.run} holds no checkpoint: neither manifest.json nor checkpoints/step-*")
    print(f"{'step':>10}  {'tokens':>16}  {'GB':>9}  {'files':>6}  layout")
    for path in found:
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            print(f"{int(path.name[5:]):10}  {error}")
            continue
        size = _bytes(manifest) / 1e9
        tokens = manifest.get("tokens", 0)
        print(f"{manifest['step']:10}  {tokens:16,}  {size:9.3f}  {len(manifest['files']):6}  {_layout(manifest)}")
    for left in left_behind(folder):
        print(f"  {left.name}: {_why(left.name)}")
    return DONE


def _why(name: str) -> str:
    if name.startswith("."):
        return "left by an interrupted save"
    return "damaged, kept for inspection" if ".damaged-" in name else "of a branch that the run has left"


def _bytes(manifest: dict) -> int:
    return sum(file["bytes"] for file in manifest["files"].values())


def _layout(manifest: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in manifest.get("layout", {}).items()) or "unknown"


def show(options: argparse.Namespace) -> int:
    path, manifest = open_newest(options.checkpoint)
    print(
        f"{path}: step {manifest['step']}, {manifest.get('tokens', 0):,} tokens, cursor {manifest.get('cursor', 0):,}"
    )
    print(f"layout: {_layout(manifest)}")
    files = {name: number for number, name in enumerate(manifest["files"])}
    print(f"{len(files)} files, {_bytes(manifest):,} bytes; a part is shown with the number of its file")
    chosen = {n: e for n, e in manifest["tensors"].items() if fnmatch.fnmatchcase(n, options.tensor)}
    if not chosen:
        raise CheckpointError(
            f"no tensor of {path} matches {options.tensor}; the first one is {next(iter(manifest['tensors']))}"
        )
    for name, entry in chosen.items():
        digest = f"  {entry['digest']}" if options.digests else ""
        print(f"{name}  {entry['dtype']} {entry['shape']}{digest}  {_parts(name, entry, files)}")
    total = sum(math.prod(e["shape"]) for n, e in chosen.items() if n.startswith("model/"))
    print(f"{len(chosen)} tensors, {total:,} parameters")
    return DONE


def _parts(name: str, entry: dict, files: dict[str, int], most: int = 8) -> str:
    """Which file has which part: `file[start:stop, ...]`, with `:` for a whole dim."""
    parts = []
    found = sorted(stored_shards(name, entry), key=lambda piece: piece.rectangle.offset)
    for piece in found[:most]:
        sides = zip(piece.rectangle.offset, piece.rectangle.shape, entry["shape"], strict=True)
        inner = ", ".join(":" if n == whole else f"{o}:{o + n}" for o, n, whole in sides)
        parts.append(f"{files[piece.file]}[{inner}]")
    more = len(found) - most
    return " ".join(parts) + (f" and {more} more" if more > 0 else "")


def verify(options: argparse.Namespace) -> int:
    total = 0
    for path in [each for given in options.checkpoint for each in _all_of(given)]:
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            print(error)
            total += 1
            continue
        # Each file is read twice: for its sha256, and for the digests of its tensors.
        with tqdm(total=2 * _bytes(manifest), unit="B", unit_scale=True, desc="verifying") as bar:
            found = find_problems(path, manifest, bar.update)
        for problem in found:
            print(problem)
        print(
            f"{path}: {len(found)} problems" if found else f"{path}: intact, {len(manifest['tensors'])} digests agree"
        )
        total += len(found)
    return BAD_INPUT if total else DONE


def _all_of(path: Path) -> list[Path]:
    """The checkpoint at a path; of a run all of them, with the best ones of a fine-tuning run."""
    if (path / MANIFEST).exists():
        return [path]
    folders = [path / "checkpoints", path / "best"] if (path / "checkpoints").is_dir() else [path]
    return [each for folder in folders for each in committed(folder)] or [resolve(path)]


def diff(options: argparse.Namespace) -> int:
    opened = [open_newest(options.one), open_newest(options.other)]
    paths, manifests = [path for path, _ in opened], [modernize_manifest(manifest) for _, manifest in opened]
    only = "model/" if options.weights else ""
    tensors = [{n: e for n, e in m["tensors"].items() if n.startswith(only)} for m in manifests]
    lines = [f"{name}: in {paths[0]} only" for name in tensors[0].keys() - tensors[1].keys()]
    lines += [f"{name}: in {paths[1]} only" for name in tensors[1].keys() - tensors[0].keys()]
    both = sorted(tensors[0].keys() & tensors[1].keys())
    alike = [n for n in both if tensors[0][n]["shape"] == tensors[1][n]["shape"]]
    for name in sorted({*both} - {*alike}):
        lines.append(f"{name}: {tensors[0][name]['shape']} and {tensors[1][name]['shape']}")
    with OpenCheckpoint(paths[0], manifests[0]) as one, OpenCheckpoint(paths[1], manifests[1]) as other:
        for found in differences(one, other, alike):
            lines.append(f"{found.name}: largest difference {found.largest:.3g}, relative norm {found.relative:.3g}")
    settings = [dict(_flat(m.get("config", {}))) for m in manifests]
    for key in sorted(settings[0].keys() | settings[1].keys()):
        a, b = (each.get(key) for each in settings)
        if a != b:
            print(f"setting {key}: {a} and {b}")
    print("\n".join(sorted(lines)) if lines else f"{len(both)} tensors are equal")
    return DIFFERENT if lines else DONE


def _flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def average(options: argparse.Namespace) -> int:
    found = [open_newest(each) for each in options.checkpoint]
    paths = [path for path, _ in found]
    coefficients = options.coefficients or [1 / len(paths)] * len(paths)
    if len(coefficients) != len(paths):
        raise ValueError(f"{len(coefficients)} coefficients for {len(paths)} checkpoints; give one for each")
    manifests = [modernize_manifest(manifest) for _, manifest in found]
    shapes = [{n: e["shape"] for n, e in m["tensors"].items() if n.startswith("model/")} for m in manifests]
    for path, each in zip(paths, shapes, strict=True):
        if each != shapes[0]:
            odd = sorted(n for n in {*each, *shapes[0]} if each.get(n) != shapes[0].get(n))
            raise ValueError(f"{path} is of another model than {paths[0]}: {', '.join(odd[:5])}")

    def means() -> Iterator[TensorShard]:
        opened = [OpenCheckpoint(path, manifest) for path, manifest in zip(paths, manifests, strict=True)]
        for name in shapes[0]:
            for shard in opened[0].rows(name):
                total = shard.tensor.float() * coefficients[0]
                for coefficient, each in zip(coefficients[1:], opened[1:], strict=True):
                    total += coefficient * each.read(name, shard.rectangle).float()
                yield TensorShard(name, shard.global_shape, shard.rectangle, total)
        for each in opened:
            each.__exit__()

    metadata = _metadata_of(manifests[0]) | {"averaged": [str(path) for path in paths], "shares": coefficients}
    _new_run(options.output, manifests[0]["step"], means(), metadata)
    if (tokenizer := paths[0].parents[1] / "tokenizer").is_dir():
        shutil.copytree(tokenizer, options.output / "tokenizer")
    print(f"{options.output}: the mean of {len(paths)} checkpoints, weights without an optimizer; for run.init_from")
    return DONE


def _metadata_of(manifest: dict) -> dict:
    return {k: v for k, v in manifest.items() if k not in ("format", "version", "step", "files", "tensors", "layout")}


def _new_run(output: Path, step: int, shards: Iterator[TensorShard], metadata: dict) -> None:
    _check_new(output)
    write_checkpoint(output / "checkpoints" / step_name(step), shards, step=step, metadata=metadata)


def _check_new(output: Path) -> None:
    if output.exists():
        raise ValueError(f"{output} exists; give the name of a new folder with --output")


def export(options: argparse.Namespace) -> int:
    if options.format == "huggingface":
        export_huggingface(ExportOptions(str(options.checkpoint), str(options.output)))
        print(f"wrote {options.output}")
        return DONE
    import torch.distributed.checkpoint as dcp

    path, manifest = open_newest(options.checkpoint)
    _check_new(options.output)
    with OpenCheckpoint(path, manifest) as opened:
        tensors = {name: _whole(opened, name) for name in opened.manifest["tensors"]}
        dcp.save(tensors, checkpoint_id=str(options.output), no_dist=True)
    print(f"{options.output}: {len(tensors)} tensors, with the names that they have in {path}")
    return DONE


def _whole(opened: OpenCheckpoint, name: str) -> torch.Tensor:
    shape = tuple(opened.manifest["tensors"][name]["shape"])
    return opened.read(name, Rectangle((0,) * len(shape), shape))


def import_checkpoint(options: argparse.Namespace) -> int:
    _check_new(options.output)
    config = parse(TrainConfig, ["--config", str(options.config)], "")
    model = foreign_model(config.model, options.family)
    for folder in (options.source, options.source.parent):
        if (folder / "config.json").exists():
            check_config(config.model, model, read_config(folder), str(folder / "config.json"))
            break
    metadata = {"cursor": 0, "tokens": 0, "config": config.to_dict(), "imported": str(options.source)}
    with read_foreign(options.source, model) as found:
        step = options.step if options.step is not None else found.step or 0
        _new_run(options.output, step, found.shards, metadata)
        if found.has_moments:
            print(f"{options.output}: {len(model.shapes)} parameters with {' and '.join(STATES)}, at step {step}")
        else:
            print(
                f"{options.output}: {len(model.shapes)} parameters. {options.source} has weights alone, without an "
                "optimizer: a run starts from them with run.init_from, and cannot be resumed from them"
            )
    return DONE


def plan(options: argparse.Namespace) -> int:
    path, manifest = open_newest(options.checkpoint)
    config = parse(TrainConfig, ["--config", str(options.config)], "")
    config.check(options.ranks)
    with torch.device("meta"):
        shapes = {f"model/{name}": [*p.shape] for name, p in LanguageModel(config.model).named_parameters()}
    wanted = dict(shapes)
    for state in STATES:
        wanted |= {f"optimizer/{state}/{name[6:]}": shape for name, shape in shapes.items()}
    saved = {name: entry["shape"] for name, entry in manifest["tensors"].items()}
    odd = [name for name in sorted({*wanted, *saved}) if saved.get(name) != wanted.get(name)]
    wrong = [f"{n}: {saved.get(n, 'missing')} there and {wanted.get(n, 'not in this model')} here" for n in odd]
    footprint, layout = footprint_of(config), layout_of(config, options.ranks)
    parts = layout.data_shard if layout.engine == "fsdp" else layout.num_data if layout.stage else 1
    width = 4 + 2 * layout.moment
    held = width * footprint.parameters / parts
    total = width * sum(math.prod(shape) for shape in shapes.values())
    print(f"{path} ({_layout(manifest)}) into {layout.name} on {options.ranks} ranks")
    print(
        f"  state: {total / 1e9:.3f} GB, fp32 weights and two moments; a rank reads and holds {held / 1e9:.3f} GB of it"
    )
    print("  while it reads, it needs more host memory only for a part of one tensor")
    if wrong:
        print("\n".join(f"  {line}" for line in wrong[:10]))
        print(f"  does NOT load: {len(wrong)} tensors do not fit")
        return BAD_INPUT
    print("  loads: all names and shapes fit")
    return DONE


COMMANDS = {
    "list": list_run,
    "show": show,
    "verify": verify,
    "diff": diff,
    "average": average,
    "export": export,
    "import": import_checkpoint,
    "plan": plan,
}
