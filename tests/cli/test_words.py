"""What a command line means: whole numbers, and options by the names that other tools give them."""

import pytest

from pyro_vae.cli.main import app, main
from pyro_vae.cli.words import MEANT, check_words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--run", "r", "--epochs", "1.5"], "--epochs takes a whole number, got 1.5"),
        (["train", "--run", "r", "--epochs=1.5"], "--epochs takes a whole number, got 1.5"),
        (["train", "--run", "r", "--epochs", "2.0"], "got 2.0"),
        (["train", "--run", "r", "--epochs", "1e2"], "got 1e2"),
        (["train", "--run", "r", "--batch-size", "nan"], "--batch-size takes a whole number, got nan"),
        (["train", "--run", "r", "--hidden", "8", "4.5"], "--hidden takes a whole number, got 4.5"),
        (["train", "--run", "r", "--hidden", "8,4.5"], "got 4.5"),
        (["train", "--run", "r", "--patience", "3.7"], "--patience takes a whole number, got 3.7"),
        (["train", "--run", "r", "--seed", "-0.5"], "got -0.5"),
        (["train", "--run", "r", "--num-samples", "10.5"], "--num-samples takes a whole number, got 10.5"),
        (["evaluate", "r", "--num-samples", "10.5"], "--num-samples takes a whole number, got 10.5"),
        (["encode", "r", "--rows", "2.5"], "--rows takes a whole number, got 2.5"),
        (["interpolate", "r", "--steps", "2.5"], "--steps takes a whole number, got 2.5"),
        (["train", "--run", "r", "--lr", "0.1"], "no option --lr: did you mean --learning-rate?"),
        (["train", "--run", "r", "--bs=8"], "no option --bs: did you mean --batch-size?"),
        (["train", "--run", "r", "--z_dim", "8"], "no option --z_dim: did you mean --latent-dim?"),
        (["train", "--train", "a.csv", "b.csv"], "--train takes one file, got 2: a.csv, b.csv. Join them"),
        (["train", "--data=a.csv", "--train", "b.csv"], "--train takes one file, got 2: a.csv, b.csv"),
        (
            ["train", "--train", "a.csv", "--test", "b.csv", "--test", "c.csv"],
            "--test takes one file, got 2: b.csv, c.csv",
        ),
        (["encode", "r", "--output", "a.npy"], "no option --output: did you mean --out?"),
    ],
)
def test_refused_by_name(words, says, capsys):
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--epochs", "3", "--learning-rate", "0.5", "--hidden", "8", "4", "--warmup", "0.1"],
        ["train", "--epochs=0x2", "--seed", "-1", "--prior-options.components=2"],
        ["train", "--num-samples", "1_000", "--checkpoint-minutes", "0.5", "--kl-options.beta", "2.5"],
        ["encode", "--rows", "5", "1.5"],  # a folder of that name
        ["train", "--train", "a.csv", "--validation", "b.csv", "--test", "a.csv"],
        ["nothing", "--lr", "1"],
        [],
    ],
)
def test_left_to_the_parser(words):
    check_words(app, words)


def test_no_name_of_another_tool_is_an_option_of_ours_that_it_would_hide():
    every = {
        name
        for command in ("train", "evaluate", "encode")
        for a in app[command].assemble_argument_collection()
        for name in a.names
    }
    assert {f"--{meant}" for meant in MEANT.values()} <= every
