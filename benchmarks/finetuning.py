"""Fine-tuning, compared with the Trainer of transformers: losses, accuracy, and examples per second.

python benchmarks/finetuning.py --model FOLDER --train train.tsv --test test.tsv losses speed accuracy

`losses`: the first steps of both without dropout, on the same examples in the same order; the Trainer pads them.
`speed`: examples per second with dropout; the Trainer uses dynamic padding. `accuracy`: one epoch of --examples
examples with both, for each of --seeds. `methods`: each method of Ingot on the same number of examples. The files are
those of SST-2, with the columns sentence and label.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401
import numpy as np
import torch

BATCH, RATE = 32, 5e-5
METHODS = {
    "full": ["--optimizer.learning_rate", 1e-4],
    "full, layer decay 0.8": ["--optimizer.learning_rate", 1e-4, "--method.layer_decay", 0.8],
    "full, unfreezing": ["--optimizer.learning_rate", 1e-4, "--method.unfreeze_steps", 15],
    "full, label smoothing 0.1": ["--optimizer.learning_rate", 1e-4, "--loss.label_smoothing", 0.1],
    "full, R-Drop": ["--optimizer.learning_rate", 1e-4, "--method.r_drop", 1],
    "full, FGM": ["--optimizer.learning_rate", 1e-4, "--method.adversarial", "fgm"],
    "full, FreeLB": ["--optimizer.learning_rate", 1e-4, "--method.adversarial", "freelb"],
    "full, half of the blocks' weights 0": ["--optimizer.learning_rate", 1e-4, "--method.sparsity", 0.5],
    "LoRA, rank 8, attention": [
        "--optimizer.learning_rate", 1e-3, "--method.kind", "lora",
        "--method.target_modules", "[query, key, value, output]",
    ],
    "LoRA, rank 4": [
        "--optimizer.learning_rate", 1e-3, "--method.kind", "lora", "--method.r", 4, "--method.lora_alpha", 8,
        "--method.target_modules", "[query, key, value, output, up, down]",
    ],
    "AdaLoRA, rank 6 to 4": [
        "--optimizer.learning_rate", 3e-3, "--method.kind", "adalora", "--method.r", 4, "--method.init_r", 6,
    ],
    "IA3": ["--optimizer.learning_rate", 5e-3, "--method.kind", "ia3"],
    "adapters, bottleneck 8": ["--optimizer.learning_rate", 1e-3, "--method.kind", "adapters"],
    "prompt tuning, 20 tokens": ["--optimizer.learning_rate", 1e-2, "--method.kind", "prompt_tuning"],
    "P-tuning, 20 tokens": ["--optimizer.learning_rate", 2e-3, "--method.kind", "p_tuning"],
    "prefix tuning, 20 tokens": ["--optimizer.learning_rate", 1e-2, "--method.kind", "prefix_tuning"],
    "linear probe": ["--optimizer.learning_rate", 2e-3, "--method.kind", "linear_probe"],
}  # fmt: skip


def ours(
    options, steps: int, seed: int, dropout: float | None, precision: str, folder: Path, test: bool = False, more=()
):
    """The lines of metrics.jsonl of a run of ours."""
    given = [
        "--init.model", options.model, "--task.train", options.train, "--task.text_columns", "[sentence]",
        "--run.device", "cpu", "--run.dir", folder, "--run.name", f"{time.time_ns()}", "--run.seed", seed,
        "--run.steps", steps, "--run.log_every", 1, "--batch.global_size", BATCH, "--optimizer.learning_rate", RATE,
        "--optimizer.schedule", "constant", "--parallel.engine", "fsdp", "--parallel.precision", precision,
    ]  # fmt: skip
    given += [] if dropout is None else ["--task.dropout", dropout]
    given += [*(["--task.validation", options.test] if test else []), *more]
    script = Path(__file__).resolve().parents[1] / "launcher/finetune.py"
    subprocess.run([sys.executable, script, *map(str, given)], check=True, stderr=subprocess.DEVNULL)
    run = folder / given[given.index("--run.name") + 1]
    return [{**json.loads(line), "run": run.name} for line in (run / "metrics.jsonl").read_text().splitlines()]


class Theirs:
    """The Trainer on the same examples, in the order of our reader, from the same first classifier."""

    def __init__(self, options, steps: int, seed: int, dropout: float | None):
        import transformers

        from ingot.data.tasks.reader import TaskReader
        from ingot.data.tasks.task_data import TaskSettings
        from ingot.data.tokenizers.load import load_tokenizer
        from ingot.launcher.loading.base_model import open_base_model
        from ingot.launcher.tasks.classification import Classification

        transformers.utils.logging.disable_progress_bar()
        kind, settings = Classification(), TaskSettings(["sentence"], max_length=128)
        data = kind.read(options.train, settings, load_tokenizer(options.model))
        reader = TaskReader(data.examples, global_size=BATCH, micro_tokens=4096, labels="targets", seed=seed)
        order = reader.order(np.arange(steps * BATCH))
        self.rows = [
            {"input_ids": data.examples[n].ids.tolist(), "labels": int(data.examples[n].target)} for n in order
        ]
        extra = (
            {} if dropout is None else dict.fromkeys(["hidden_dropout_prob", "attention_probs_dropout_prob"], dropout)
        )
        self.model = transformers.AutoModelForSequenceClassification.from_pretrained(
            options.model, num_labels=len(data.labels), dtype=torch.float32, **extra
        )
        base = open_base_model(options.model, kind, data.labels, seed=seed)
        with torch.no_grad():
            for name, parameter in (("weight", self.model.classifier.weight), ("bias", self.model.classifier.bias)):
                shape = tuple(parameter.shape)
                parameter.copy_(base.part(f"head.classifier.{name}", (0,) * len(shape), shape))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
        self.losses, self.marks, self.seed, self.steps = [], [], seed, steps

    def train(self, folder: Path) -> None:
        import transformers

        outer = self

        class Observed(transformers.Trainer):
            def compute_loss(self, *args, **more):
                outer.marks.append(time.perf_counter())
                loss = super().compute_loss(*args, **more)
                outer.losses.append(float(loss[0] if isinstance(loss, tuple) else loss))
                return loss

        arguments = transformers.TrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=BATCH, max_steps=self.steps, learning_rate=RATE,
            weight_decay=0.01, lr_scheduler_type="constant", max_grad_norm=1.0, seed=self.seed, use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", train_sampling_strategy="sequential",
            adam_beta1=0.9, adam_beta2=0.999, adam_epsilon=1e-8, disable_tqdm=True,
        )  # fmt: skip
        trainer = Observed(
            self.model, arguments, train_dataset=self.rows,
            data_collator=transformers.DataCollatorWithPadding(self.tokenizer),
        )  # fmt: skip
        trainer.train()
        self.marks.append(time.perf_counter())

    @torch.no_grad()
    def accuracy(self, path: str) -> float:
        lines = [line.split("\t") for line in Path(path).read_text().splitlines()[1:]]
        self.model.eval()
        right = 0
        for first in range(0, len(lines), 64):
            part = lines[first : first + 64]
            inputs = self.tokenizer([text for text, _ in part], padding=True, truncation=True, return_tensors="pt")
            found = self.model(**inputs).logits.argmax(-1)
            right += int((found == torch.tensor([int(label) for _, label in part])).sum())
        return right / len(lines)


def compare_losses(options, folder: Path) -> None:
    lines = ours(options, options.steps, 1, 0.0, "fp32", folder)
    mine = [line["loss"] for line in lines if line["kind"] == "train"]
    theirs = Theirs(options, options.steps, 1, 0.0)
    theirs.train(folder)
    apart = max(abs(a - b) for a, b in zip(mine, theirs.losses, strict=True))
    print(f"losses of {options.steps} steps: {mine[0]:.4f} ... {mine[-1]:.4f}, at most {apart:.1e} apart (limit 1e-4)")


def compare_speed(options, folder: Path) -> None:
    found: dict[str, list[float]] = {"ours, fp32": [], "ours, bf16": [], "Trainer, fp32": []}
    for repeat in range(options.repeats):
        for precision in ("fp32", "bf16"):
            lines = ours(options, options.steps, 1 + repeat, None, precision, folder)
            seconds = [line["step_seconds"] for line in lines if line["kind"] == "train"][5:]
            found[f"ours, {precision}"].append(BATCH * len(seconds) / sum(seconds))
        theirs = Theirs(options, options.steps, 1 + repeat, None)
        theirs.train(folder)
        marks = theirs.marks[5:]
        found["Trainer, fp32"].append(BATCH * (len(marks) - 1) / (marks[-1] - marks[0]))
    base = statistics.median(found["Trainer, fp32"])
    for name, values in found.items():
        value = statistics.median(values)
        print(f"{name}: {value:.1f} examples/s ({min(values):.1f} to {max(values):.1f}), {value / base:.2f} times")


def compare_accuracy(options, folder: Path) -> None:
    steps = options.examples // BATCH
    found: dict[str, list[float]] = {"ours": [], "Trainer": []}
    for seed in options.seeds:
        lines = ours(options, steps, seed, None, "fp32", folder, test=True)
        found["ours"].append([line["accuracy"] for line in lines if line["kind"] == "eval"][-1])
        theirs = Theirs(options, steps, seed, None)
        theirs.train(folder)
        found["Trainer"].append(theirs.accuracy(options.test))
        learned = statistics.mean(line["loss"] for line in lines if line["kind"] == "train")
        print(
            f"seed {seed}: ours {found['ours'][-1]:.4f}, Trainer {found['Trainer'][-1]:.4f}; mean loss of all steps, "
            f"with dropout: ours {learned:.4f}, Trainer {statistics.mean(theirs.losses):.4f}",
            flush=True,
        )
    for name, values in found.items() if len(options.seeds) > 1 else ():
        print(f"{name}: {statistics.mean(values):.4f} +- {statistics.stdev(values):.4f} after {steps} steps")


def compare_methods(options, folder: Path) -> None:
    """Each method on the same examples, bf16, with a learning rate of its own."""
    steps = options.examples // BATCH
    print("| method | parameters that learn | accuracy | seconds |\n|---|---|---|---|")
    for name, given in METHODS.items():
        if options.only and name not in options.only:
            continue
        start = time.perf_counter()
        lines = ours(options, steps, 1, None, "bf16", folder, test=True, more=given)
        seconds = time.perf_counter() - start
        (log,) = [path / "log.txt" for path in folder.glob("*") if path.name == lines[0]["run"]]
        learning = re.search(r"([\d,]+) of ([\d,]+) parameters learn \((.*?)\)", log.read_text())
        accuracy = [line["accuracy"] for line in lines if line["kind"] == "eval"][-1]
        print(f"| {name} | {learning[1]} ({learning[3]}) | {accuracy:.4f} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["losses", "speed", "accuracy", "methods"])
    parser.add_argument("--model", required=True, help="a BERT in Hugging Face's form")
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--examples", type=int, default=12_000, help="of the comparison of accuracies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the comparison of accuracies")
    parser.add_argument("--only", nargs="+", choices=METHODS, help="of the methods")
    options = parser.parse_args()
    for what in options.what:
        with tempfile.TemporaryDirectory() as folder:
            comparison = {"losses": compare_losses, "speed": compare_speed, "accuracy": compare_accuracy}
            (comparison | {"methods": compare_methods})[what](options, Path(folder))


if __name__ == "__main__":
    main()
