import pytest
import torch

from lspread.lit.precision import choose_precision


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "value", "reason"),
    [
        (True, True, "bf16-mixed", "AMX"),
        (False, True, "bf16-mixed", "AVX-512"),
        (False, False, "32-true", "no bfloat16"),
        (None, None, "32-true", "no bfloat16"),
    ],
)
def test_cpu(amx, avx512_bf16, value, reason, monkeypatch):
    for name, flag in (("_is_amx_tile_supported", amx), ("_is_avx512_bf16_supported", avx512_bf16)):
        if flag is None:
            monkeypatch.delattr(torch.cpu, name, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, name, lambda flag=flag: flag, raising=False)
    choice = choose_precision("cpu")
    assert choice.value == value
    assert reason in choice.reason


@pytest.mark.parametrize("accelerator", ["auto", "gpu", "cuda"])
@pytest.mark.parametrize(("native", "value"), [(True, "bf16-mixed"), (False, "32-true")])
def test_cuda_asks_for_native_units(accelerator, native, value, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    choice = choose_precision(accelerator)
    assert choice.value == value
    assert "Some GPU" in choice.reason


def test_a_gpu_does_not_matter_to_a_cpu_run(monkeypatch):
    expected = choose_precision("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_precision("cpu") == expected


def test_unknown_accelerators_get_float32():
    assert choose_precision("tpu").value == "32-true"
