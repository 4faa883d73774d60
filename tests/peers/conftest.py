"""Peers promote ranks and warn of deprecations in their own code: allowed on these pages."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _as_peers_run():
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        yield
