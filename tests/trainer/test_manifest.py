"""Which checkpoints a run goes on from, and what it says of the others."""

import json
from pathlib import Path
from typing import Any

import pytest

from flopcast.errors import InputError
from flopcast.trainer.description import constants
from flopcast.trainer.manifest import check_description, read_manifest
from flopcast.trainer.numerics import Numerics, RopeScaling

SCALING = RopeScaling(8.0, 1.0, 4.0, 8192)
MODEL = "164,032 parameters in 2 layers of hidden 64 (6c702aaf)"


def refusal(folder: Path, manifest: dict[str, Any], numerics: Numerics) -> str:
    """Why a run of these constants does not go on from the manifest; "" where it does."""
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "shards": {}, **manifest}))
    try:
        check_description(
            read_manifest(folder, "remove it"), {"model": MODEL, "constants": constants(numerics)}, folder
        )
    except InputError as error:
        return str(error)
    return ""


def manifest_of(numerics: Numerics) -> dict[str, Any]:
    return {"model": MODEL, "constants": constants(numerics)}


@pytest.mark.parametrize("numerics", [Numerics(), Numerics(20000.0), Numerics(rope_scaling=SCALING)])
def test_a_run_goes_on_with_its_own_constants_only(tmp_path: Path, numerics: Numerics) -> None:
    assert refusal(tmp_path, manifest_of(numerics), numerics) == ""
    other = refusal(tmp_path, manifest_of(numerics), Numerics(30000.0, rope_scaling=numerics.rope_scaling))
    theta = f"{numerics.rope_theta:.0f}"
    assert other.endswith(
        f": rope_theta is {theta} in the checkpoint and 30000 in this run; go on with the same constants"
    )


def test_scaling_that_only_one_has_is_said_in_words(tmp_path: Path) -> None:
    words = "factor 8, low_freq_factor 1, high_freq_factor 4, original_context 8192"
    stretched, plain = Numerics(rope_scaling=SCALING), Numerics()
    assert f"rope_scaling is none in the checkpoint and {words} in" in refusal(tmp_path, manifest_of(plain), stretched)
    assert f"rope_scaling is {words} in the checkpoint and none in" in refusal(tmp_path, manifest_of(stretched), plain)


def test_small_constants_and_activations_are_said(tmp_path: Path) -> None:
    assert "norm_eps is 1e-06 in the checkpoint and 1e-05 in" in refusal(
        tmp_path, manifest_of(Numerics()), Numerics(norm_eps=1e-5)
    )
    assert "activation is 'silu' in the checkpoint and 'gelu' in" in refusal(
        tmp_path, manifest_of(Numerics()), Numerics(activation="gelu")
    )
