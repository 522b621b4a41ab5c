"""How much memory is free."""

from pyro_vae.objectives import bound_objective as objective_module


def test_free_memory_is_a_plausible_number():
    free = objective_module.free_bytes(())
    assert free is None or 2**20 < free < 2**50
