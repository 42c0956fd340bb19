"""bfloat16 where the device has it, and a refusal where it would be emulated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import keras
import pytest

from stages.backbones import build_backbone
from stages.errors import StageError
from stages.precision import emulates_bfloat16, set_precision

INTEL = "flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n"
ARM = "Features\t: fp asimd bf16 i8mm\n"
OLDER = "flags\t\t: fpu avx2 avx512f avx512_bitalg\n"


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that says what the CPU has, beside no GPU."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr("stages.precision.CPU_INFO", path)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    return path


@pytest.fixture(autouse=True)
def single_again() -> object:
    yield
    set_precision(mixed=False)


@pytest.mark.parametrize("flags", [INTEL, ARM])
def test_a_cpu_that_has_bfloat16_computes_in_it(cpu: Path, flags: str) -> None:
    cpu.write_text(flags)
    set_precision(mixed=True)
    assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"


def test_a_cpu_that_would_emulate_it_is_refused_with_the_way_out(cpu: Path) -> None:
    cpu.write_text(OLDER)
    with pytest.raises(StageError, match=r"no bfloat16 .*; set train\.mixed_precision=false"):
        set_precision(mixed=True)
    assert keras.mixed_precision.global_policy().name == "float32"
    set_precision(mixed=False)


def test_a_gpu_does_not_emulate_it(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.write_text(OLDER)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [SimpleNamespace()])
    assert not emulates_bfloat16()


def test_what_is_not_known_is_let_pass(cpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not emulates_bfloat16(), "no Linux"
    cpu.write_text(OLDER)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert not emulates_bfloat16()


def test_depthwise_kernels_stay_in_single_precision(cpu: Path) -> None:
    cpu.write_text(INTEL)
    set_precision(mixed=True)
    layers = build_backbone("efficientnet_lite0", "none", (32, 32)).layers
    kinds = {type(layer): layer.compute_dtype for layer in layers}
    assert kinds[keras.layers.DepthwiseConv2D] == "float32"
    assert kinds[keras.layers.Conv2D] == "bfloat16"
