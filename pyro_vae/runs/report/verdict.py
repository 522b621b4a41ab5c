"""The verdict of a report: may the number be used, why, and what to run next."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_share, is_loose, share_flagged, why_loose
from pyro_vae.runs.evaluations import AGAIN
from pyro_vae.runs.marginal_baseline import below_floor, within_chance
from pyro_vae.runs.progress import format_unfinished
from pyro_vae.runs.told import next_command, why_flagged

from .facts import RunFacts
from .words import capital

HARDLY_ANY = 0.9  # of the rows flagged, and more: fewer than a tenth say anything of log p(x)
TRUSTED, LOOSE, DO_NOT_USE = "trusted", "loose bound", "do not use"
AT_THE_FLOOR = (
    " But the model does no better than its floor beyond chance: it has learned nothing that these rows show."
)


@dataclass(frozen=True)
class Verdict:
    """One of three words, what it rests on, and the command that goes on from here."""

    word: str
    why: str
    next: str


def judge(facts: RunFacts) -> Verdict:
    """Judge the number that heads a report.

    Do not use: no number of the weights that are there, a training that has not ended or diverged, a number that is not
    finite, a model below the floor of independent elements beyond chance (a loose bound is none of those: it says little of the
    floor), or a number of rows of which more than nine tenths are flagged. Loose bound: more than a tenth of its rows is
    flagged (:mod:`pyro_vae.common.flagged`). Trusted: all else; a number may be right of a model that has learned nothing, and
    is told so.
    """
    run, s = shlex.quote(str(facts.path)), facts.summary
    if facts.diverged:
        why = "The training diverged: a loss or gradient was not finite. These are the weights from before."
        return Verdict(DO_NOT_USE, why, f"pyro-vae replay {run}")
    if facts.unfinished:
        so_far = format_unfinished({"unfinished": facts.unfinished}) or ""
        return Verdict(DO_NOT_USE, f"{capital(so_far)}.", f"pyro-vae train --resume {run}")
    if facts.main is None:
        why = "The run was never scored: it has no log p(x)."
        if facts.stale:
            why = "Its evaluations are of weights from before, which the run has no longer: they say nothing of these."
        return Verdict(DO_NOT_USE, why, f"{AGAIN} {run}")
    if not math.isfinite(s["log_px"]):
        return Verdict(DO_NOT_USE, "The mean log p(x) is not finite: some row has no probability.", next_of(facts))
    below, loose = below_floor(s["floor"], s), is_loose(s)
    level = within_chance(s["floor"])
    if below and not loose and not level:  # what lies above a loose bound may lie above the floor
        return Verdict(DO_NOT_USE, capital(below), f"pyro-vae train --config {run}/config.json --run NEW")
    if loose:
        so = (
            "no bound, as an oracle errs to either side"
            if "how" in s
            else "a lower bound: true log p(x) is higher, by an unknown amount"
        )
        word = DO_NOT_USE if share_flagged(s) > HARDLY_ANY else LOOSE
        return Verdict(word, f"{capital(why_loose(s))}; {why_flagged(s)}. It is {so}.", next_of(facts))
    share, rows = share_flagged(s), s["rows"]
    are = "is" if s.get("rows_flagged") == 1 else "are"
    some = f"{s.get('rows_flagged')} of {counted(rows, 'row')} ({format_share(share)}) {are} flagged"
    flagged = some if share else "No row is flagged"
    how = "the method is exact" if "how" in s else "the weights of its rows have light tails"
    how = "enough chains count in its rows" if "num_chains" in s else how
    why = f"{flagged}: {how}, so the errors beside the number are its errors."
    if level:
        return Verdict(TRUSTED, why + AT_THE_FLOOR, f"pyro-vae train --config {run}/config.json --run NEW")
    return Verdict(TRUSTED, why, f"pyro-vae sample {run}")


def next_of(facts: RunFacts) -> str:
    """Format the command that may believe more rows, without what is said beside it."""
    return next_command(facts.summary, facts.path).partition("   (")[0]
