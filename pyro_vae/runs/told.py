"""What is said of an evaluation beside its number: method and measure, reasons to doubt it, the command to run next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import is_loose
from pyro_vae.evidence.importance.pareto import LEAST, LOW_ESS
from pyro_vae.programs.measure import dominating

from .evaluations import is_new
from .progress import format_unfinished

MEASURES = {"counting": "a log probability", "Lebesgue": "a log density, which moves with the scale of x"}
MIXED = "a log density in some columns of x, a log probability in others"


def next_command(evidence: dict[str, Any], run: Path, out: Path | None = None) -> str:
    """Format the command that may believe more rows: annealing, more of it, or enough samples for a k̂."""
    of = evidence.get("evaluation", {})
    words = ["pyro-vae evaluate", shlex.quote(str(run))]
    words += words_of_rows(of.get("split") or "test", of.get("rows"), evidence)
    words += ["--out", shlex.quote(str(out))] if out else []
    if "num_chains" in evidence:
        more = f"--num-temperatures {4 * evidence['num_temperatures']} --num-chains {2 * evidence['num_chains']}"
        return " ".join([*words, "--method annealing", more])
    if evidence.get("num_samples", LEAST) < LEAST:
        return " ".join([*words, "--num-samples 5000"])
    return (
        " ".join([*words, "--method annealing"])
        + "   (where latents are discrete: --method auto, or --proposal defensive)"
    )


def words_of_rows(split: str, rows: int | None, evidence: Mapping[str, Any]) -> list[str]:
    """Return the options of a command that name the rows of an evaluation: its split, or the file of new rows.

    Example:
        >>> words_of_rows("validation", 5, {}), words_of_rows("new-1a2b3c4d", None, {"split": "new.csv, new rows"})
        (['--split', 'validation', '--rows', '5'], ['--data', 'new.csv'])
    """
    words = ["--split", split] if split != "test" else []
    if is_new(split):
        words = ["--data", shlex.quote(str(evidence["split"]).split(", new rows")[0])]
    return words + (["--rows", str(rows)] if rows else [])


def kind_of_number(evidence: dict[str, Any]) -> str:
    """Say whether log p(x) is a log probability or a log density."""
    return MEASURES.get(dominating(evidence["measure"]), MIXED)


def format_measure(evidence: dict[str, Any]) -> str:
    """Format method and measure, and the number in bits."""
    bits = f"{format_bits(evidence)} bits for each of {format_elements(evidence)} (lower is better)"
    return (
        f"measure: {evidence['measure']}, {kind_of_number(evidence)}; {bits}\n"
        f"method: {evidence['method']}, {format_how(evidence)}"
    )


def format_elements(evidence: Mapping[str, Any]) -> str:
    """Format how many elements a row has; where some are missing, how many are there on average.

    Example:
        >>> format_elements({"elements": 64.0}), format_elements({"elements": 2.88889})
        ('64 elements', 'the 2.89 elements of a row that are there on average')
    """
    elements = float(evidence["elements"])
    if elements.is_integer():
        return f"{elements:g} elements"
    return f"the {elements:.2f} elements of a row that are there on average"


def format_bits(evidence: Mapping[str, Any]) -> str:
    """Format log p(x) in bits an element; of a loose bound as one, from above (of an oracle "≈").

    Example:
        >>> format_bits({"bits_per_dim": 2.5, "rows": 10}), format_bits({"bits_per_dim": 2.5, "rows": 10, "rows_flagged": 2})
        ('2.5000', '≤ 2.50')
    """
    if not is_loose(evidence):
        return f"{evidence['bits_per_dim']:.4f}"
    return f"{'≈' if 'how' in evidence else '≤'} {evidence['bits_per_dim']:.2f}"


def format_how(evidence: dict[str, Any]) -> str:
    """Format how the method was used."""
    if "num_chains" in evidence:
        return f"{counted(evidence['num_chains'], 'chain')}, {counted(evidence['num_temperatures'], 'temperature')}"
    return evidence["how"] if "how" in evidence else f"from the {evidence.get('proposal', 'guide')}"


def cautions(evidence: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each reason to doubt the number."""
    rows = evidence["rows"]
    if so_far := format_unfinished(evidence.get("training")):
        yield f"note: {so_far}"
    if low := evidence.get("rows_of_low_ess"):
        have = "has" if low == 1 else "have"
        yield (
            f"{low} of {counted(rows, 'row')} {have} an ESS below {LOW_ESS}: log p(x) is a lower bound there that "
            "more samples would "
            "raise, and its Monte Carlo error is not to be believed."
        )
    if flagged := evidence.get("rows_flagged"):
        are = "is" if flagged == 1 else "are"
        yield f"{flagged} of {counted(rows, 'row')} {are} flagged, not to be believed: {why_flagged(evidence)}."


def why_flagged(evidence: dict[str, Any]) -> str:
    """Explain why rows are flagged."""
    if "how" in evidence:
        return "their error is above what was asked for"
    if "khat_threshold" not in evidence:
        return "their chains have too low an effective sample size"
    few = evidence["num_samples"] < LEAST
    reason = f"k̂ takes {LEAST} samples" if few else f"k̂ is above {evidence['khat_threshold']:.2f}"
    if evidence.get("rows_too_narrow"):
        reason += ", or the proposal too narrow for its own draws to tell"
    target = evidence["target_se"]
    return reason if target is None else f"{reason}, or the Monte Carlo error above {target:g}"
