"""The sentences of a report: what was asked, what came of it for whoever was not there, and what to do about warnings."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from pyro_vae.common.counted import counted
from pyro_vae.common.flagged import format_bound, format_gap, format_nats, is_loose
from pyro_vae.runs.config import Config
from pyro_vae.runs.evaluation_options import CHUNK
from pyro_vae.runs.marginal_baseline import below_floor, within_chance
from pyro_vae.runs.told import cautions, format_bits, format_elements, kind_of_number, words_of_rows

from .facts import RunFacts

UNUSED = 0.5  # of the latents, and more: the model says little by them
BEHIND = 0.05  # of the ELBO, by which training rows are ahead of validation rows


def capital(text: str) -> str:
    """Begin a sentence with a capital letter; formulas within it stay as they are.

    Example:
        >>> capital("the bound is loose: log p(X)")
        'The bound is loose: log p(X)'
    """
    return f"{text[:1].upper()}{text[1:]}"


def part(name: str, options: Mapping[str, Any]) -> str:
    """Format a part of a config with its options.

    Example:
        >>> part("vamp", {"components": "500"}), part("normal", {})
        ('vamp (components 500)', 'normal')
    """
    listed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in options.items())
    return f"{name} ({listed})" if listed else name


def asked(facts: RunFacts) -> list[tuple[str, str]]:
    """List what was asked for: the programs, the data, the training."""
    c, data = facts.config, facts.record["data"]
    rows = data.get("rows") or {}
    counts = ", ".join(
        f"{rows[name]:,} {name}" for name in ("train", "validation", "test") if isinstance(rows.get(name), int)
    )
    shape = " × ".join(map(str, data["shape"])) if isinstance(data.get("shape"), list) else "?"
    listed = [("data", f"{data.get('name')}: rows of {shape}; {counts}"), ("values", str(data.get("policy")))]
    if c.model != "vae":
        listed.append(("model", part(c.model, c.model_options)))
    listed += [
        ("prior p(z)", f"{part(c.prior, c.prior_options)}, {counted(c.latent_dim, 'dimension')}"),
        ("likelihood p(x | z)", part(c.likelihood, c.likelihood_options)),
        ("posterior q(z | x)", part(c.posterior, c.posterior_options)),
        ("networks", f"{c.network}, hidden {' · '.join(map(str, c.hidden))}, {c.activation}"),
        (
            "objective",
            f"{part(c.objective, c.objective_options)}, gradient {c.gradient}, KL {part(c.kl, c.kl_options)}",
        ),
        (
            "training",
            f"{counted(c.epochs, 'epoch')} of {counted(c.batch_size, 'row')} a step, Adam {c.learning_rate:g}, "
            f"{c.schedule}, seed {c.seed}",
        ),
    ]
    return listed


def three_sentences(facts: RunFacts) -> list[str]:
    """Say what came of it, to somebody who was not there; of a run without a number, what is missing."""
    c, s, name = facts.config, facts.summary, facts.record["data"].get("name")
    train = (facts.record["data"].get("rows") or {}).get("train")
    learned = f"from {train:,} of its rows" if isinstance(train, int) else "from it"
    first = f"A model that explains each row of {name} by {c.latent_dim} hidden numbers was fitted {learned}"
    if not s:
        return [f"{first}.", "Nobody has measured yet how well it does on rows that it has not seen."]
    seen = (
        "that it was fitted to"
        if facts.main is not None and facts.main.name.split == "train"
        else "that it has not seen"
    )
    return [
        f"{first}, and then measured on {counted(s['rows'], 'row', ',')} {seen}.",
        f"{how_probable(s)} {above_floor(s)}",
        how_sure(s),
    ]


def how_probable(s: Mapping[str, Any]) -> str:
    """Say the mean log p(x) in words."""
    what = "log density" if kind_of_number(dict(s)).startswith("a log density") else "log probability"
    if is_loose(s):
        least = "about" if "how" in s else "at least"
        return f"Such a row gets a {what} of {least} {s['log_px']:.2f} nats on average."
    return f"Such a row gets a {what} of {s['log_px']:.2f} nats on average (higher is better)."


def above_floor(s: Mapping[str, Any]) -> str:
    """Say what the model gains over one that takes each element by itself."""
    by, se = s["floor"].get("cleared_by"), s["floor"].get("cleared_by_se")
    if by is None:
        return "The floor, of a model that takes each element by itself, is not known."
    if by < 0 and is_loose(s):
        return f"The floor, of a model that takes each element by itself, is {-by:.2f} nats above that: it is not cleared yet."
    if within_chance(s["floor"]) and not is_loose(s):
        return (
            "A model that takes each element by itself does as well, as far as these rows tell: the difference is "
            f"{format_nats(by)} ± {format_nats(se)} nats."
        )
    if by < 0:
        return (
            f"That is {-by:.2f} nats less than by taking each element by itself: the model has learned nothing of use."
        )
    sure = "" if se is None or is_loose(s) else f" ± {format_nats(se, 2)}"
    at_least = "at least " if is_loose(s) and "how" not in s else ""
    times = f", which makes it {format_times(by)} times as probable" if by < 2000 else ""
    return f"That is {at_least}{by:.2f}{sure} nats more than by taking each element by itself{times}."


def format_times(nats: float) -> str:
    """Format e to the power of some nats, for a reader who does not think in them.

    Example:
        >>> format_times(0.7), format_times(7.0), format_times(100.0)
        ('2.0', '1,100', '10⁴³')
    """
    if nats < 3:
        return f"{math.exp(nats):.1f}"
    power = nats / math.log(10)
    if power < 6:
        digits = 10 ** max(0, int(power) - 1)
        return f"{round(math.exp(nats) / digits) * digits:,.0f}"
    return "10" + str(round(power)).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def how_sure(s: Mapping[str, Any]) -> str:
    """Say how far the number may be trusted."""
    if is_loose(s):
        return (
            f"This is {'an approximation' if 'how' in s else 'a bound'} that nobody should quote with an error: for "
            f"{s.get('rows_flagged', s['rows']):,} of {counted(s['rows'], 'row', ',')} the computation was not "
            "good enough to tell."
        )
    mc, data = s["log_px_mc_se"], s["log_px_data_se"]
    again = "by an unknown amount" if mc is None else f"by about {format_nats(mc)} nats"
    rows = "an unknown amount" if data is None else f"about {format_nats(data, 2)} nats"
    return f"Computing it again would move it {again}, and taking other rows of the same kind by {rows}."


def warnings_of(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield each thing that is not as it should be, and what to do about it."""
    c, s, run = facts.config, facts.summary, shlex.quote(str(facts.path))
    if facts.stale:
        yield "Evaluations in this folder are of weights from before.", f"pyro-vae evaluate {run}"
    if s:
        yield from of_evidence(facts)
    active = facts.best.get("active_units")
    if isinstance(active, int) and active <= UNUSED * c.latent_dim:
        yield (
            f"{active} of {c.latent_dim} latents are in use (Var E[z | x] > 0.01, on validation rows).",
            f"a smaller --latent-dim{f' {max(1, active)}' if active else ''}, or --kl free_bits",
        )
    epochs = len(facts.history)
    if facts.history and facts.best is facts.history[-1] and epochs == c.epochs > 1:
        yield "The last epoch was the best: the ELBO was still rising.", f"more --epochs than {epochs}"
    ahead, level = (facts.best.get(key) for key in ("train_elbo", "elbo"))
    if isinstance(ahead, float) and isinstance(level, float) and ahead - level > BEHIND * abs(level):
        yield (
            f"The ELBO of training rows is {ahead - level:.2f} nats above that of validation rows: the model fits rows that it "
            "has seen better than others.",
            "--patience 10, smaller --hidden, or more rows",
        )


def of_evidence(facts: RunFacts) -> Iterator[tuple[str, str]]:
    """Yield the doubts about the number itself."""
    s, run = facts.summary, shlex.quote(str(facts.path))
    more = (
        f"pyro-vae evaluate {run} --num-samples {4 * s['num_samples']}"
        if s.get("num_samples")
        else f"pyro-vae evaluate {run}"
    )
    for sentence in cautions(dict(s)):
        yield sentence, f"pyro-vae evaluate {run} --method annealing" if "flagged" in sentence else more
    if below := below_floor(s["floor"], s):
        yield (
            capital(below),
            f"pyro-vae evaluate {run} --method annealing"
            if is_loose(s)
            else f"pyro-vae train --config {run}/config.json --run NEW",
        )
    if not is_loose(s):
        if s.get("bias_matters"):
            yield "The bias of importance sampling is more than half of the Monte Carlo error.", more
        if s["log_px_mc_se"] is None:
            yield "The Monte Carlo error is not known.", more
        by, se = s["floor"].get("cleared_by"), s["floor"].get("cleared_by_se")
        if by is not None and se is not None and by >= 0 and within_chance(s["floor"]):
            yield (
                f"The model is above the floor by {format_nats(by)} ± {format_nats(se)} nats: not beyond chance.",
                "more rows or epochs, or another --likelihood",
            )
    if facts.main is not None and facts.main.name.rows:
        rows = facts.main.name.rows
        yield (
            f"Only the first {counted(rows, 'row', ',')} of the split {'was' if rows == 1 else 'were'} scored.",
            f"pyro-vae evaluate {run}",
        )


def again(facts: RunFacts) -> list[str]:
    """List the commands that make the run, its number and this page again."""
    run, lines = (
        shlex.quote(str(facts.path)),
        [f"pyro-vae train --config {shlex.quote(str(facts.path))}/config.json --run NEW"],
    )
    if facts.main is not None:
        lines.append(evaluation_command(facts))
    return [*lines, f"pyro-vae report {run}"]


def evaluation_command(facts: RunFacts) -> str:
    """Format the command that made the main evaluation."""
    assert facts.main is not None
    name, s = facts.main.name, facts.summary
    words = ["pyro-vae evaluate", shlex.quote(str(facts.path))]
    words += words_of_rows(name.split, name.rows, s)
    words += ["--method", name.method] if name.method != "importance" else []
    words += ["--proposal", name.proposal] if name.proposal != "guide" else []
    for key in ("num_samples", "num_chains", "num_temperatures", "target_se", "seed"):
        if s.get(key) is not None and "how" not in s:
            words += [f"--{key.replace('_', '-')}", f"{s[key]}"]
    if s.get("chunk_size", CHUNK) != CHUNK:
        words += ["--chunk-size", f"{s['chunk_size']}"]
    return " ".join(words)


def numbers(s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List the numbers at the top: name, value, what it means. A loose one has no error beside it."""
    exact = "how" in s
    if is_loose(s):
        listed = [("log p(x)", format_bound(s), "nats a row; a loose bound, so without an error")]
    else:
        error = "± numerical" if exact else "± Monte Carlo"
        listed = [
            ("log p(x)", f"{s['log_px']:.3f}", "nats a row, higher is better"),
            (error, format_nats(s["log_px_mc_se"]), "of the computation: more samples shrink it"),
            ("± data", format_nats(s["log_px_data_se"]), "of the rows: more rows shrink it"),
        ]
    floor = s["floor"]
    listed.append(
        ("floor", format_nats(floor["log_px"]), f"{floor.get('model') or 'unknown'}, exact: a model must clear it")
    )
    if s.get("elbo") is not None:
        error = f"Monte Carlo error {format_nats(s.get('elbo_mc_se'))}"
        listed.append(("ELBO", format_nats(s["elbo"]), f"what training raises: a lower bound; {error}"))
        least = "at least" if is_loose(s) and "how" not in s else "about"
        listed.append(("gap", format_gap(s), f"log p(x) − ELBO: {least} KL(q(z | x) ‖ p(z | x))"))
    listed.append(("bits", format_bits(s), f"for each of {format_elements(s)}, lower is better"))
    return listed + health(s)


def health(s: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List how well the computation went."""
    listed = []
    if s.get("ess_median") is not None:
        of = s.get("num_samples", s.get("num_chains"))
        listed.append(
            ("ESS", f"{s['ess_median']:.0f}", f"median of {of}; the least is {format_nats(s.get('ess_min'), 1)}")
        )
    if s.get("khat_max") is not None:
        listed.append(
            (
                "largest k̂",
                f"{s['khat_max']:.2f}",
                f"tail of the weights; believed below {format_nats(s.get('khat_threshold'), 2)}",
            )
        )
    if "rows_flagged" in s:
        listed.append(("flagged rows", f"{s['rows_flagged']:,}", f"of {s['rows']:,}; up to a tenth may be"))
    return listed


def versions_of(config: Config, record: Mapping[str, Any], s: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what the numbers may depend on: libraries, machine, digests."""
    versions = record.get("versions") if isinstance(record.get("versions"), dict) else {}
    listed = [(str(name), str(number)) for name, number in (versions or {}).items()]
    told = {"machine": s.get("machine"), "scored": s.get("time"), "weights SHA-256": s.get("weights")}
    told |= {"data SHA-256": record["data"].get("digest"), "data seed": config.data_seed}
    return listed + [(name, str(value)) for name, value in told.items() if value is not None]
