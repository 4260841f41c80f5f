"""`train_demo`: from a folder of texts to the checkpoint that comes with the repository."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from pliant.errors import InterruptedJobError
from pliant.measurement import Progress, silent
from pliant.recipes.train_demo.config import DemoConfig
from pliant.recipes.train_demo.corpus import prepare_corpus
from pliant.recipes.train_demo.export import export_checkpoint
from pliant.recipes.train_demo.trainer import LOG_FILE, Trainer
from pliant.tune import StopRequest


def train_demo(config: DemoConfig, progress: Progress = silent) -> Path:
    """Train the demo model, or go on where the last run stopped; returns the checkpoint folder.

    One thread per process, `config.processes` processes that add their gradients after each step:
    a core that is busy elsewhere delays one sum per step, not every product. State is saved every
    `config.save_seconds`; a resumed run takes the same steps an uninterrupted one would. Sets
    torch to one thread in this process.

    Raises `DataError` for missing texts, `UsageError` for state of other settings, and
    `InterruptedJobError` when stopped by SIGINT or SIGTERM, after saving.
    """
    corpus = prepare_corpus(config)
    if config.processes == 1:
        _train(0, config, "", progress)
    else:
        _train_in_processes(config, progress)
    trainer = Trainer(config, corpus)
    done = trainer.progress
    if done.step < config.num_steps:
        raise InterruptedJobError(
            f"stopped after {done.step} of {config.num_steps} steps; "
            "the same command goes on from there"
        )
    export_checkpoint(
        trainer.model, config.shape, corpus.tokenizer, config.output, config.output.name
    )
    log = config.output / LOG_FILE
    log.write_bytes((config.state / LOG_FILE).read_bytes())
    return config.output


def _train_in_processes(config: DemoConfig, progress: Progress) -> None:
    # A new meeting point each time: gloo would read the addresses of a run that is over.
    meeting = config.state / f"meeting-{os.getpid()}-{time.monotonic_ns()}"
    context = spawn(
        _train,
        args=(config, meeting.resolve().as_uri(), progress),
        nprocs=config.processes,
        join=False,
    )
    with StopRequest() as stop:
        forwarded = False
        while not context.join(timeout=1.0):
            if stop.requested and not forwarded:
                for pid in context.pids():
                    os.kill(pid, signal.SIGINT)
                forwarded = True
    meeting.unlink(missing_ok=True)


def _train(rank: int, config: DemoConfig, meeting: str, progress: Progress) -> None:
    """Body of one process."""
    torch.set_num_threads(1)
    # Products of tiny gradients are a hundred times slower as denormals.
    torch.set_flush_denormal(True)
    if config.processes > 1:
        distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=config.processes
        )
    try:
        with StopRequest() as stop:
            trainer = Trainer(config, prepare_corpus(config), rank)
            trainer.run(stop, progress if rank == 0 else silent)
    finally:
        torch.set_flush_denormal(False)
        if config.processes > 1:
            distributed.destroy_process_group()
