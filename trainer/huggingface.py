"""Hugging Face checkpoints in and out: safetensors of the LLaMA family and of PLaMo, whole or in several files."""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flopcast.errors import InputError
from flopcast.files import sync_folder, write_atomically
from flopcast.simulator.blocks.transformer import TransformerBlock
from flopcast.simulator.huggingface import read_config
from flopcast.simulator.model import Model
from flopcast.simulator.textfile import read_text
from flopcast.trainer.attention import permuted_heads, published_heads
from flopcast.trainer.constants import numerics_of
from flopcast.trainer.files import writing
from flopcast.trainer.model import parameter_tensors
from flopcast.trainer.numerics import Numerics

READABLE = ("llama", "mistral", "plamo", "qwen2", "qwen3")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
FILE_BYTES = 5 * 10**9  # a file of a saved checkpoint, as Hugging Face cuts them

_LAYER = {
    "norm2": "post_attention_layernorm",
    **{name: f"self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    **{name: f"self_attn.{name}" for name in ("q_norm", "k_norm")},
    **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
_ROOT = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


class Checkpoint(Mapping[str, torch.Tensor]):
    """The weights in a Hugging Face folder by the trainer's parameter names, each read when it is asked for.

    ``model`` is what its config.json describes, ``numerics`` the constants that go with it. Raises InputError for a
    folder, a file or a tensor that is not as it should be.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.model = read_config(self.folder)
        config = _config(self.folder)
        _check_readable(config, self.folder)
        self.kind = str(config["model_type"])
        self.numerics = numerics_of(config, str(self.folder))
        self._files = _files(self.folder)
        names = [published_name(name, self.kind) for name in self]
        missing = [name for name in names if name not in self._files]
        if missing:
            raise InputError(
                f"{self.folder}: lacks {missing[0]} and {len(missing) - 1} more; fetch the whole checkpoint"
            )
        # A tied head is the embedding, and old checkpoints hold the frequencies of RoPE: neither is a parameter.
        unknown = sorted(self._files.keys() - names - {_ROOT["head"] + ".weight"})
        unknown = [name for name in unknown if not name.endswith("rotary_emb.inv_freq")]
        if unknown:
            raise InputError(
                f"{self.folder}: holds {unknown[0]} and {len(unknown) - 1} more that a {self.kind} of its config.json "
                "does not have; give the config.json of these weights"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = parameter_tensors(self.model)[name].shape
        published = published_name(name, self.kind)
        path = self._files[published]
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(published)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: {published} cannot be read ({error}); fetch the file again") from None
        if tuple(tensor.shape) != shape:
            raise InputError(f"{path}: {published} has shape {list(tensor.shape)}; config.json says {list(shape)}")
        return _reordered(name, tensor, self.model, back=False)

    def __iter__(self) -> Iterator[str]:
        return iter(parameter_tensors(self.model))

    def __len__(self) -> int:
        return len(parameter_tensors(self.model))


def save(
    model: Model,
    numerics: Numerics,
    weights: Iterable[tuple[str, torch.Tensor]],
    folder: str | Path,
    dtype: torch.dtype = torch.bfloat16,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Write whole tensors by parameter name as a Hugging Face folder of type llama or plamo.

    The folder appears under its name when all of it is on the disk. Raises InputError for a model that neither type
    describes, a folder that holds something already, and one that cannot be written.
    """
    config = config_of(model, numerics, dtype)
    folder = Path(folder).resolve()
    check_empty(folder)
    temporary = _temporary(folder)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _write(model, config, weights, temporary, dtype, file_bytes)
        temporary.replace(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be written ({error}); make room or name another folder") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """Raise InputError where something is in the way of a folder to be written."""
    try:
        is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error}); name another folder") from None
    if not is_free:
        raise InputError(f"{folder}: exists already and is not overwritten; remove it or name another folder")


def check_writable(folder: Path) -> None:
    """Raise InputError where :func:`save` could not make its folder, by making it and taking it away again."""
    temporary = _temporary(folder)
    with writing(folder, "name another folder"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        temporary.rmdir()


def _temporary(folder: Path) -> Path:
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.partial")


def _write(
    model: Model,
    config: Mapping[str, Any],
    weights: Iterable[tuple[str, torch.Tensor]],
    folder: Path,
    dtype: torch.dtype,
    file_bytes: int,
) -> None:
    kind = str(config["model_type"])
    parts: list[tuple[Path, list[str]]] = []
    pending: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"{len(parts)}.partial"
        path.touch()
        mode = path.stat().st_mode  # as the umask gives it; safetensors puts a file in its place that only we may read
        save_file(pending, path, metadata={"format": "pt"})
        path.chmod(mode)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        parts.append((path, list(pending)))
        pending.clear()

    for name, tensor in weights:
        own = _reordered(name, tensor.detach().to("cpu", dtype), model, back=True).contiguous()
        if pending and size + own.nbytes > file_bytes:
            flush()
            size = 0
        pending[published_name(name, kind)] = own
        size, total = size + own.nbytes, total + own.nbytes
    flush()
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(parts, start=1):
        final = SINGLE if len(parts) == 1 else f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        path.replace(folder / final)
        weight_map |= dict.fromkeys(names, final)
    if len(parts) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomically(folder / INDEX, json.dumps(index, indent=2).encode())
    write_atomically(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())


def config_of(model: Model, numerics: Numerics, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json of a model of type llama or plamo. Raises InputError where neither describes it."""
    blocks = list(model.kinds)
    block = blocks[0]
    refusal = InputError(f"model '{model.name}' is neither of type llama nor plamo; only those can be saved")
    if len(blocks) > 1 or not isinstance(block, TransformerBlock):
        raise refusal
    attention, mlp = block.attention, block.mlp
    rms = block.norm == model.norm == "rmsnorm" and model.final_norm and not model.embedding_norm
    plain = not (attention.fused_qkv or attention.qk_norm or attention.window) and attention.rotary_share == 1.0
    if not (rms and plain and mlp.gated and model.positions == "rotary" and not model.head_bias):
        raise refusal
    if numerics.activation_of(True) != "silu":
        raise InputError(f"model '{model.name}' has the activation {numerics.activation}; only silu can be saved")
    config: dict[str, Any] = {
        "hidden_size": model.hidden,
        "intermediate_size": mlp.intermediate,
        "max_position_embeddings": model.context,
        "num_attention_heads": attention.num_heads,
        "num_hidden_layers": model.num_layers,
        "rms_norm_eps": numerics.norm_eps,
        "tie_word_embeddings": model.tied_embeddings,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vocab_size": model.vocab_size,
    }
    biased = attention.qkv_bias or attention.output_bias or mlp.bias
    if block.parallel and block.num_norms == 1 and attention.kv_layout == "tiled" and not biased:
        shared = attention.num_heads // attention.num_kv_heads
        if (
            numerics.rope_theta != 10000.0
            or numerics.rope_scaling
            or attention.head_dim * attention.num_heads != model.hidden
        ):
            raise refusal
        return {"architectures": ["PlamoForCausalLM"], "model_type": "plamo", "n_shared_head": shared, **config}
    if block.parallel or block.num_norms != 2 or attention.qkv_bias != attention.output_bias:
        raise refusal
    if attention.kv_layout == "tiled":
        raise refusal
    if numerics.rope_scaling is not None:
        scaling = dataclasses.asdict(numerics.rope_scaling)
        original = int(scaling.pop("original_context"))
        config["rope_scaling"] = {"rope_type": "llama3", "original_max_position_embeddings": original, **scaling}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": attention.qkv_bias,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "mlp_bias": mlp.bias,
        "num_key_value_heads": attention.num_kv_heads,
        "rope_theta": numerics.rope_theta,
        **config,
    }


def published_name(name: str, kind: str) -> str:
    """The name that a checkpoint of this type gives to one of the trainer's parameters."""
    stem, _, last = name.rpartition(".")
    if not stem.startswith("layers."):
        return f"{_ROOT[stem]}.{last}"
    _, number, own = stem.split(".")
    if kind == "plamo":
        part = "norm" if own == "norm1" else _LAYER[own]
        return f"model.layers.layers.{number}.{part}.{last}"
    part = "input_layernorm" if own == "norm1" else _LAYER[own]
    return f"model.layers.{number}.{part}.{last}"


def _reordered(name: str, tensor: torch.Tensor, model: Model, back: bool) -> torch.Tensor:
    """Query heads in the trainer's order, or ``back`` in the checkpoint's: rows of q, columns of o."""
    if not name.endswith((".q.weight", ".q.bias", ".o.weight")):
        return tensor
    block = model.layers[int(name.split(".")[1])]
    assert isinstance(block, TransformerBlock)
    order = published_heads(block.attention)
    if back:
        order = [order.index(head) for head in range(len(order))]
    return permuted_heads(tensor, order, block.attention.head_dim, 1 if name.endswith(".o.weight") else 0)


def read_numerics(path: Path) -> Numerics:
    """The constants in a ``config.json``, or in that of a folder, of any type that :func:`read_config` knows."""
    return numerics_of(_config(path), str(path))


def _config(path: Path) -> dict[str, Any]:
    """A config.json that :func:`read_config` reads, as it is."""
    file = path / "config.json" if path.is_dir() else path
    config: dict[str, Any] = json.loads(read_text(file, "a Hugging Face config.json"))
    return config


def _check_readable(config: Mapping[str, Any], path: Path) -> None:
    if config["model_type"] not in READABLE:
        known = ", ".join(READABLE)
        raise InputError(f"{path}: weights of type '{config['model_type']}' cannot be read; those of {known} can")


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    if (folder / INDEX).is_file():
        try:
            names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            return {str(name): folder / Path(file).name for name, file in names.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / INDEX}: is not an index of safetensors ({error}); fetch it again") from None
    path = folder / SINGLE
    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a folder with {SINGLE} or {INDEX}") from None
