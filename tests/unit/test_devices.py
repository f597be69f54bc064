"""Where to compute, and whether there is what compiling needs."""

import pytest
import torch

from manifests.errors import ConfigError
from mgeldm.devices import check_compiler


@pytest.mark.parametrize(("device", "variable", "usual"), [("cpu", "CXX", r"g\+\+"), ("cuda", "CC", "gcc or clang")])
def test_a_machine_without_a_compiler(monkeypatch: pytest.MonkeyPatch, device: str, variable: str, usual: str) -> None:
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match=rf"and {usual} is not there; install it, name another in {variable}, or"):
        check_compiler(torch.device(device))
    monkeypatch.setenv(variable, "mine")
    with pytest.raises(ConfigError, match="mine is not there"):
        check_compiler(torch.device(device))
    monkeypatch.setenv(variable, "/bin/sh")
    check_compiler(torch.device(device))
