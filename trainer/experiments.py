"""Controlled experiments: one change at a time, the same seeds, loss curves with their spread, in one command.

``python -m flopcast.trainer.experiments CONFIG.toml --variants base q4 --seeds 0 1 2 --ranks 4 --output FOLDER``

Every variant starts from the same weights and reads the same sequences in the same order as the base of its seed, so
gaps are paired: what a seed does to both cancels. A run that is complete already is not run again.
"""

import argparse
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flopcast.errors import InputError, nearest
from flopcast.files import write_atomically
from flopcast.trainer.launch import Ranks
from flopcast.trainer.log import records, steps
from flopcast.trainer.settings import read_settings

Array = NDArray[np.float64]

BASE = "base"
Z_LOSS = 1e-4  # PaLM's coefficient (Chowdhery et al., arXiv:2204.02311, section 5)
LAST_SHARE = 0.1  # of the steps, over which a final loss is averaged
TIMEOUT_S = 24 * 3600.0


def variant_flags(name: str, strategy: str) -> list[str]:
    """The flags that make a variant of the base, which has none of the changes; InputError for an unknown name.

    ``strategy``: the base's, whose 4-bit AllGather, if it has one, is one of the changes.
    """
    strategy = strategy.removesuffix("+q4")
    changes: dict[str, dict[str, str]] = {
        BASE: {},
        "qk-norm": {"model.qk_norm": "true"},
        "z-loss": {"optimizer.z_loss": str(Z_LOSS)},
        "q4": {"plan.strategy": f"{strategy}+q4"},
    }
    if name not in changes:
        raise InputError(f"variant '{name}' is unknown; {nearest(name, list(changes))}")
    base = {"model.qk_norm": "false", "optimizer.z_loss": "0.0", "plan.strategy": strategy}
    return [f"--{field}={value}" for field, value in {**base, **changes[name]}.items()]


@dataclass(frozen=True)
class Gap:
    """A variant beside the base: positive where the variant's loss is higher.

    ``training``: the mean loss over the last tenth of the steps; it holds the z-loss where there is one.
    ``validation``: the last validation loss, cross-entropy alone, None where the runs had none.
    """

    variant: str
    training: "PairedGap"
    validation: "PairedGap | None"


@dataclass(frozen=True)
class PairedGap:
    """One kind of loss, by seed: the variant's, the base's, their differences; spreads are sample deviations."""

    losses: list[float]
    gaps: list[float]
    gap: float
    gap_std: float | None
    base_std: float | None

    @classmethod
    def of(cls, variant: Array, base: Array) -> "PairedGap":
        """From the losses [seeds] of a variant and of the base."""
        gaps = variant - base
        return cls(variant.tolist(), gaps.tolist(), float(gaps.mean()), _spread(gaps), _spread(base))


def run_all(
    config: Path, flags: Sequence[str], variants: Sequence[str], seeds: Sequence[int], num_ranks: int, output: Path
) -> None:
    """Every variant with every seed, one after the other, each into ``output/VARIANT-seed-S``."""
    strategy = read_settings(config, [*flags]).plan.strategy
    for seed in seeds:
        for variant in variants:
            folder = output / f"{variant}-seed-{seed}"
            chosen = [*flags, *variant_flags(variant, strategy), f"--seed={seed}", f"--output={folder}"]
            if len(_losses(folder)) == read_settings(config, chosen).optimizer.num_steps:
                continue
            with Ranks([str(config), *chosen], num_ranks, folder / "errors") as ranks:
                ranks.check(TIMEOUT_S)


def _losses(folder: Path) -> list[float]:
    try:
        return [record["loss"] for record in steps(folder).values()]
    except FileNotFoundError:
        return []


def curves(output: Path, variants: Sequence[str], seeds: Sequence[int]) -> dict[str, Array]:
    """The loss of every step, [seeds, steps] per variant."""
    return {v: np.array([_losses(output / f"{v}-seed-{seed}") for seed in seeds]) for v in variants}


def compare(losses: Mapping[str, Array], validation: Mapping[str, Array]) -> list[Gap]:
    """Every variant beside the base, from training losses [seeds, steps] and last validation losses [seeds] or []."""
    return [
        Gap(
            variant,
            PairedGap.of(_final(curve), _final(losses[BASE])),
            PairedGap.of(validation[variant], validation[BASE]) if len(validation[variant]) else None,
        )
        for variant, curve in losses.items()
    ]


def _final(curve: Array) -> Array:
    last = max(round(curve.shape[1] * LAST_SHARE), 1)
    return np.asarray(curve[:, -last:].mean(axis=1))


def _spread(values: Array) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def last_validation(output: Path, variant: str, seeds: Sequence[int]) -> Array:
    """The last validation loss of every seed; none at all where a run had none."""
    found = []
    for seed in seeds:
        events = [r["loss"] for r in records(output / f"{variant}-seed-{seed}") if r.get("event") == "validation"]
        found += events[-1:]
    return np.array(found if len(found) == len(seeds) else [])


def smoothed(curve: Array, window: int) -> Array:
    """The mean of each step and the ``window - 1`` before it, along the last axis: [..., steps - window + 1]."""
    sums = np.cumsum(np.concatenate([np.zeros((*curve.shape[:-1], 1)), curve], axis=-1), axis=-1)
    return np.asarray((sums[..., window:] - sums[..., :-window]) / window)


def document(losses: Mapping[str, Array], gaps: Sequence[Gap], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The result as JSON holds it."""
    return {
        "settings": dict(settings),
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "cuda": torch.cuda.is_available()},
        "gaps": [asdict(gap) for gap in gaps],
        "losses": {variant: np.round(curve, 5).tolist() for variant, curve in losses.items()},
    }


def sentence(gap: Gap) -> str:
    """``q4: training +0.0210 +- 0.0013, validation +0.0190 +- 0.0011 nats (mean and deviation over 3 seeds)``."""
    kinds = {"training": gap.training, "validation": gap.validation}
    parts = [f"{kind} {g.gap:+.4f} +- {g.gap_std or 0.0:.4f}" for kind, g in kinds.items() if g is not None]
    return f"{gap.variant}: {', '.join(parts)} nats (mean and deviation over {len(gap.training.gaps)} seeds)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 done, 2 for bad input or a run that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--variants", nargs="+", default=[BASE, "qk-norm", "z-loss", "q4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--result", type=Path, help="the figure and the JSON document, without a suffix")
    chosen, flags = parser.parse_known_args(arguments)
    try:
        variants = [BASE, *(variant for variant in chosen.variants if variant != BASE)]
        run_all(chosen.config, flags, variants, chosen.seeds, chosen.ranks, chosen.output)
        settings = read_settings(chosen.config, flags).model_dump()
    except InputError as error:
        print(f"flopcast: {error}", file=sys.stderr)
        return 2
    losses = curves(chosen.output, variants, chosen.seeds)
    gaps = compare(losses, {v: last_validation(chosen.output, v, chosen.seeds) for v in variants})
    from flopcast.trainer.experiment_figure import draw

    result = chosen.result or chosen.output / "experiments"
    found = document(losses, gaps, {"ranks": chosen.ranks, "seeds": chosen.seeds, **settings})
    write_atomically(result.with_suffix(".json"), json.dumps(found, indent=1).encode() + b"\n")
    draw(losses, gaps, result.with_suffix(".png"))
    for gap in gaps:
        print(sentence(gap))
    return 0


if __name__ == "__main__":
    sys.exit(main())
