"""A training of next to no steps is told, as nothing may come of it."""

from pyro_vae.runs.config import Config
from pyro_vae.runs.few_steps import tell_few_steps


def test_a_schedule_that_ends_at_0_in_few_steps_is_told(capsys):
    tell_few_steps(Config(epochs=1), 100)
    assert "1 step in all, of 100 rows, and its learning rate is 0: nothing is trained" in capsys.readouterr().err
    tell_few_steps(Config(epochs=2), 200)
    assert "4 steps in all, of 128 rows, the last at a learning rate of 0" in capsys.readouterr().err
    for config, rows in ((Config(epochs=5), 100), (Config(epochs=1, schedule="constant"), 100)):
        tell_few_steps(config, rows)
    assert capsys.readouterr().err == ""
