"""Settings of small training runs for the tests, on generated text."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from flopcast.trainer.regression.text import write_sources
from flopcast.trainer.settings import Settings, set_field, settings, to_toml

MODEL = str(files("flopcast.trainer.regression") / "short-model.toml")
NUM_DOCUMENTS = 60


def table(folder: Path, **fields: Any) -> dict[str, Any]:
    """A run of 6 steps into ``folder/run`` on text in ``folder``; ``plan__strategy="ddp"`` overrides a field."""
    sources = write_sources(folder / "text", NUM_DOCUMENTS, seed=0)
    data: dict[str, Any] = {
        "output": str(folder / "run"),
        "model": {"name": MODEL},
        "plan": {"strategy": "zero3", "seq_len": 32, "micro_batch": 2, "global_batch": 4, "dtype": "fp32"},
        "optimizer": {"num_steps": 6, "learning_rate": 5e-3, "warmup_steps": 2},
        "data": {"folder": str(folder / "data"), "vocab_size": 400, "sources": sources},
    }
    for name, value in fields.items():
        set_field(data, name.replace("__", "."), value)
    return data


def run_settings(folder: Path, **fields: Any) -> Settings:
    return settings(table(folder, **fields), "test")


def write_config(path: Path, folder: Path, **fields: Any) -> None:
    """The same run as a TOML file."""
    path.write_text(to_toml(table(folder, **fields)))
