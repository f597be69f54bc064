import socket

import pytest

from manifests.errors import ConfigError
from manifests.ray_address import ALONE, ray_address


def test_what_is_given_goes_before_the_environment_and_that_before_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_address(None) == ray_address("") == ALONE
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert (ray_address(None), ray_address("local")) == ("auto", "local")


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_somebody_must_listen_there(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        assert ray_address(address) == address
    with pytest.raises(ConfigError, match=f"^{address}: no Ray cluster answers"):
        ray_address(address)


@pytest.mark.parametrize("address", ["nonsense", "host:", ":6379", "host:port", "ray://host"])
def test_other_words_are_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match=f"^{address}: no address of a Ray cluster; give HOST:PORT"):
        ray_address(address)


def test_a_port_that_is_too_large() -> None:
    with pytest.raises(ConfigError, match="no Ray cluster answers"):
        ray_address("127.0.0.1:99999")
