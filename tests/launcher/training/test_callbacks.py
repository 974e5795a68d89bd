"""Callbacks: what each logger writes, who is told what, and that the handlers of signals are restored."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ingot.launcher import pretrain
from ingot.launcher.runtime import exit_codes
from ingot.launcher.runtime.stop_signals import StopSignals
from ingot.launcher.training import setup
from ingot.launcher.training.callbacks.best_checkpoint import EarlyStopping
from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.launcher.training.callbacks.log_file import LogFile
from ingot.launcher.training.callbacks.metrics_file import MetricsFile, read_records
from ingot.launcher.training.callbacks.registry import loggers
from ingot.launcher.training.callbacks.tensorboard import TensorBoard
from ingot.launcher.training.callbacks.terminal import Terminal
from ingot.parallel import checkpoint
from tests.full_disk import full_disk
from tests.launcher.runs import write_config

TRAIN = {
    "loss": 2.5, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens_per_second": 1234.5, "mfu": None,
    "tflops_per_device": 0.5, "step_seconds": 0.25,
}  # fmt: skip
ALL_CALLS = [
    ("train_start", 0),
    ("step_end", 3),
    ("log", "train", {"step": 3}),
    ("message", "text"),
    ("figure", "curves", "a figure", 3),
    ("evaluate", 3, {"loss": 1.0}),
    ("train_end", 3, {"loss": 1.0}),
    ("close",),
]


class Recorder(Callback):
    """A toy logger: it keeps what it is told."""

    def __init__(self, stop: bool = False):
        self.calls: list[tuple] = []
        self.stop = stop

    def on_train_start(self, step: int) -> bool:
        self.calls.append(("train_start", step))
        return False

    def on_step_end(self, step: int) -> None:
        self.calls.append(("step_end", step))

    def on_log(self, kind: str, record: dict[str, Any]) -> None:
        self.calls.append(("log", kind, record))

    def on_message(self, text: str) -> None:
        self.calls.append(("message", text))

    def on_figure(self, name: str, figure: Any, step: int) -> None:
        self.calls.append(("figure", name, figure, step))

    def on_evaluate(self, step: int, scores: dict[str, float]) -> bool:
        self.calls.append(("evaluate", step, scores))
        return self.stop

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        self.calls.append(("train_end", step, scores))

    def close(self) -> None:
        self.calls.append(("close",))

    def of(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == name]


def test_metrics_file_has_a_json_object_per_record_and_null_for_nan(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "older"}\n')
    logger = MetricsFile(tmp_path, 0)
    logger.on_log("train", {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "name": "x"})
    logger.on_message("not a record")
    logger.on_log("eval", {"step": 2, "loss": 0.25})
    logger.close()
    older, train, evaluation = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert older == {"kind": "older"}
    assert train.pop("time") > 1e9
    assert train == {"kind": "train", "step": 1, "loss": None, "grad_norm": None, "name": "x"}
    assert (evaluation["kind"], evaluation["step"], evaluation["loss"]) == ("eval", 2, 0.25)


SPEED = {"step_seconds": 20.0, "tflops_per_device": 0.12345, "mfu": None}


def test_log_file_has_a_line_with_time_per_record_and_message(tmp_path):
    logger = LogFile(tmp_path, 400)
    logger.on_log("train", {"step": 3, **TRAIN, **SPEED})
    logger.on_log("train", {"step": 400, **TRAIN, **SPEED, "mfu": 0.4321})
    logger.on_log("eval", {"step": 3, "loss": 2.0, "seconds": 1.5, "count": 7})
    logger.on_log("checkpoint", {"step": 3, "path": "a/b", "seconds": 0.125})
    logger.on_log("event", {"step": 3, "event": "start", "steps": 9})
    logger.on_message("for people")
    logger.close()
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(line[4] == "-" and line[13] == ":" for line in lines)  # 2026-01-31 12:00:00
    assert [line[20:] for line in lines] == [
        "step 3/400 (1%)  loss 2.5000  lr 1.00e-03  norm 0.50  1,234 tokens/s, 0.123 TFLOP/s  left 2:12:20",
        "step 400/400 (100%)  loss 2.5000  lr 1.00e-03  norm 0.50  1,234 tokens/s, MFU 43.2%  left 0:00:00",
        "step 3  validation: loss 2.0000",
        "step 3  checkpoint a/b, training waited 0.12 s",
        "step 3  start  steps 9",
        "for people",
    ]


def test_a_line_without_its_end_does_not_swallow_the_next_one(tmp_path):
    (tmp_path / "log.txt").write_text("the end is mis")
    LogFile(tmp_path, 1).on_message("next")
    first, second = (tmp_path / "log.txt").read_text().splitlines()
    assert (first, second[20:]) == ("the end is mis", "next")
    whole, torn = '{"kind": "train", "step": 1, "loss": 0.5}', '{"kind": "eval", "st'
    (tmp_path / "metrics.jsonl").write_text(f"{whole}\n{torn}")
    MetricsFile(tmp_path, 1).on_log("train", {"step": 2, "loss": 0.25})
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 2]
    assert torn not in (tmp_path / "metrics.jsonl").read_text()


def test_a_full_disk_stops_no_logger_for_ever_and_leaves_no_part_of_a_line(tmp_path, capfd):
    recorder = Recorder()
    callbacks = Callbacks([MetricsFile(tmp_path, 0), LogFile(tmp_path, 9), TensorBoard(tmp_path, 0), recorder])
    callbacks.log("train", {"step": 1, **TRAIN})
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size + 10):
        for step in (2, 3, 4):
            callbacks.log("train", {"step": step, **TRAIN})
    callbacks.log("train", {"step": 5, **TRAIN})
    callbacks.close()
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [1, 5]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    said = [text for (text,) in recorder.of("message")]
    assert sorted(text.split()[0] for text in said) == ["LogFile", "MetricsFile", "TensorBoard"]  # once each
    assert all("File too large" in text for text in said)
    assert not callbacks.failing
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_whose_logs_cannot_be_written_still_saves(corpus, tmp_path, monkeypatch):
    """The folder of a run is removed under it. It is made again, with all that a run's folder has."""

    class Remover(Callback):
        def on_step_end(self, step: int) -> None:
            if step == 1:
                shutil.rmtree(tmp_path / "runs/tiny")

    monkeypatch.setattr(setup, "loggers", lambda folder, **counts: [*loggers(folder, **counts), Remover()])
    options = ["--run.steps", "3", "--run.save_every", "3", "--parallel.engine", "fsdp"]
    assert pretrain.main(["--config", str(write_config(tmp_path, corpus)), *options]) == exit_codes.DONE
    run = tmp_path / "runs/tiny"
    assert checkpoint.resolve(run).name == "step-00000003"
    assert (run / "config.yaml").is_file()
    assert (run / "tokenizer").is_dir()
    assert "was gone, and was made again" in (run / "log.txt").read_text()
    monkeypatch.undo()
    assert pretrain.main(["--config", str(run / "config.yaml"), "--run.steps", "4"]) == exit_codes.DONE


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "config.yaml", ".lock"])
def test_a_folder_in_place_of_a_file_is_one_message_before_anything_is_trained(corpus, tmp_path, name):
    (tmp_path / "runs/tiny" / name).mkdir(parents=True)
    with pytest.raises(exit_codes.BadInput, match=name):
        pretrain.main(["--config", str(write_config(tmp_path, corpus)), "--parallel.engine", "fsdp"])
    assert not (tmp_path / "runs/tiny/checkpoints").exists()


def test_a_lock_that_is_a_link_does_not_overwrite_what_it_leads_to(corpus, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "precious").write_text("content")
    (tmp_path / "runs/tiny/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(exit_codes.BadInput, match=r"\.lock is no regular file"):
        pretrain.main(["--config", str(write_config(tmp_path, corpus)), "--parallel.engine", "fsdp"])
    assert (tmp_path / "precious").read_text() == "content"


def test_tensorboard_has_curves_of_metrics_and_scores_and_figures(tmp_path):
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path, 0)
    logger.on_log("train", {"step": 1, **TRAIN, "samples": 8})
    logger.on_log("eval", {"step": 2, "loss": 2.0, "my_score": 0.5, "num_targets": 3})
    logger.on_log("event", {"step": 2, "event": "start", "steps": 9})
    figure = Figure()
    figure.subplots().plot([1, 2])
    logger.on_figure("curves", figure, 2)
    logger.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    speed = [f"train/speed/{name}" for name in ("tokens_per_second", "step_seconds", "tflops_per_device")]
    optimizer = ["train/optimizer/grad_norm", "train/optimizer/learning_rate"]
    assert sorted(board.Tags()["scalars"]) == sorted(["train/loss", *speed, "eval/loss", "eval/my_score", *optimizer])
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 2.5)]
    assert board.Tags()["images"] == ["curves"]


def test_tensorboard_drops_the_steps_that_a_resumed_run_repeats(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, value in ((0, 1.0), (2, 5.0)):
        time.sleep(1 - time.time() % 1)  # files are read in the order of their names, which begin with the second
        logger = TensorBoard(tmp_path, start)
        for step in range(start + 1, start + 5):
            logger.on_log("train", {"step": step, "loss": value})
        logger.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    seen = {event.step: event.value for event in board.Scalars("train/loss")}
    assert seen == {1: 1.0, 2: 1.0, 3: 5.0, 4: 5.0, 5: 5.0, 6: 5.0}
    assert len(board.Scalars("train/loss")) == 6


def test_without_a_terminal_each_record_is_a_line_on_standard_error(capsys):
    logger = Terminal(steps=5, step=0)
    logger.on_step_end(1)
    logger.on_log("train", {"step": 1, **TRAIN, **SPEED})
    logger.on_message("for people")
    logger.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert "step 1/5 (20%)  loss 2.5000" in said.err
    assert "for people\n" in said.err


def test_all_callbacks_are_told_everything_in_their_order():
    recorders = [Recorder(), Recorder()]
    callbacks = Callbacks(recorders[:1])
    callbacks.add(*recorders[1:])
    for name, *arguments in ALL_CALLS:
        getattr(callbacks, name)(*arguments)
    callbacks.event(4, "resumed", rank=1)
    for recorder in recorders:
        assert recorder.calls == [*ALL_CALLS, ("log", "event", {"step": 4, "event": "resumed", "rank": 1})]


@pytest.mark.parametrize("stops", [(False, False), (True, False), (False, True)])
def test_evaluate_asks_all_and_is_true_if_one_asks_to_stop(stops):
    recorders = [Recorder(stop) for stop in stops]
    assert Callbacks(recorders).evaluate(1, {}) is any(stops)
    assert [len(recorder.calls) for recorder in recorders] == [1, 1]


def test_early_stopping_asks_to_stop_after_patience_evaluations_without_a_better_one():
    class Best(Callback):
        metric, step, is_new, scores = "loss", 4, False, {"loss": 1.0}

    recorder, best = Recorder(), Best()
    stopping = EarlyStopping(best, Callbacks([recorder]), patience=2, every=2)
    assert [stopping.on_evaluate(step, {}) for step in (4, 6, 8)] == [False, False, True]
    ((kind, record),) = recorder.of("log")
    assert (kind, record["step"]) == ("event", 8)
    assert record["event"].startswith("loss has not improved since step 4")
    assert [stopping.on_train_start(step) for step in (4, 7, 8, 9)] == [False, False, True, True]  # when started again
    best.is_new = True
    assert not stopping.on_evaluate(8, {})


def test_a_new_logger_receives_all_of_a_run(corpus, tmp_path, monkeypatch):
    recorder = Recorder()

    def with_recorder(folder: Path, *, steps: int, step: int) -> list[Callback]:
        return [*loggers(folder, steps=steps, step=step), recorder]

    monkeypatch.setattr(setup, "loggers", with_recorder)
    config = write_config(tmp_path, corpus)
    options = ["--run.steps", "3", "--run.eval_every", "2", "--run.save_every", "2", "--parallel.engine", "fsdp"]
    assert pretrain.main(["--config", str(config), *options]) == exit_codes.DONE
    assert recorder.of("train_start") == [(0,)]
    assert recorder.of("step_end") == [(1,), (2,), (3,)]
    logged = recorder.of("log")
    steps = {kind: [record["step"] for k, record in logged if k == kind] for kind, _ in logged}
    assert steps == {"event": [0], "train": [1, 2, 3], "eval": [2, 3], "checkpoint": [2, 3]}
    assert [step for step, _ in recorder.of("evaluate")] == [2, 3]
    assert recorder.of("train_end") == recorder.of("evaluate")[-1:]
    assert recorder.of("message")[-1][0].startswith("done: validation loss ")
    assert recorder.calls[-1] == ("close",)
    assert recorder.of("close") == [()]
    lines = map(json.loads, (tmp_path / "runs/tiny/metrics.jsonl").read_text().splitlines())
    written = [{name: value for name, value in line.items() if name != "time"} for line in lines]
    assert written == [{"kind": kind, **record} for kind, record in logged]


def test_signals_ask_to_stop_and_the_handlers_are_restored():
    def own(number: int, frame: object) -> None:
        raise AssertionError("the handler from before must not be called within the context")

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    original = {number: signal.signal(number, own) for number in numbers}
    try:
        for number in numbers:
            with StopSignals() as signals:
                assert not signals.requested
                os.kill(os.getpid(), number)
                assert signals.requested
            assert [signal.getsignal(n) for n in numbers] == [own, own, own]
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert [signal.getsignal(n) for n in numbers] == [own, own, own]
    finally:
        for number, handler in original.items():
            signal.signal(number, handler)
