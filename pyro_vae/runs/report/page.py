"""The page itself: what is known of a run, or of several, put into the templates beside this file."""

from __future__ import annotations

import base64
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pyro_vae.common.atomic_write import write_atomic
from pyro_vae.common.counted import counted
from pyro_vae.common.environment import versions
from pyro_vae.common.flagged import format_both_errors, format_nats, format_share, is_loose, share_flagged
from pyro_vae.common.plain_text import plain
from pyro_vae.data import Data
from pyro_vae.errors import PyroVAEError, RunFolderError
from pyro_vae.evidence.annealing.bracket import format_end
from pyro_vae.plots import figures
from pyro_vae.runs import folder
from pyro_vae.runs.compare_runs import compare_runs, name_all
from pyro_vae.runs.custom_components import NOTHING, Components
from pyro_vae.runs.load import FAULTS, Run, load_run, read_data

from . import words
from .columns import ColumnName, column_fits, column_names, draws_of, is_table, picture, values_of
from .facts import PARTS, RunFacts, read_facts
from .pictures import Picture, pictures_of
from .rows import picture_of_rows, worst_rows
from .verdict import judge

NAME = "report.html"
COLUMNS = 40  # in the table
MADE_UP = 5, 10  # rows and columns of them
MOST = 1_000_000  # bytes of a page


def write_report(
    path: Path | str, *, components: Components = NOTHING, data_dir: Path | None = None, out: Path | None = None
) -> Path:
    """Write the report of a run, ``RUN/report.html`` unless `out` says otherwise; return where it is.

    The model is loaded, and the data read, for what is drawn of them; where either cannot be, the page says so. No
    log-likelihood is computed: the numbers are those of the evaluations in the folder.

    Raises:
        RunFolderError: the folder is no run, or is damaged.
        StorageError: the page cannot be written.
    """
    path = Path(path)
    if out is None:
        folder.check_own(path)
    facts, trouble = read_facts(path), list[str]()
    run = attempt(lambda: load_run(path, components), "the model cannot be opened", trouble)
    data = None if run is None else attempt(lambda: read_data(run, data_dir), "the data cannot be read", trouble)
    with usable(path):
        page = render_run(facts, run, data, trouble)
    return save(page, path / NAME if out is None else out)


def report_training(run: Run, data: Data) -> Path:
    """Write the report of a training that has just ended, with its model and its data at hand."""
    return save(render_run(read_facts(run.path), run, data, []), run.path / NAME)


def write_comparison(paths: Sequence[Path | str], out: Path, components: Components = NOTHING) -> Path:
    """Write the report of several runs, compared on the rows that all were scored on; return where it is.

    Raises:
        UsageError, RunFolderError, DataError: as :func:`~pyro_vae.compare_runs`.
    """
    return save(render_comparison([Path(path) for path in paths], components), out)


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Refuse a folder whose fields are of other kinds than they are written as, by name.

    Raises:
        RunFolderError: they are.
    """
    try:
        yield
    except FAULTS as error:
        if isinstance(error, PyroVAEError):
            raise
        raise RunFolderError(f"{path} holds what a run does not, and cannot be shown: {error!r}"[:500]) from error


def attempt(make: Callable[[], Any], what: str, trouble: list[str]) -> Any:
    """Return what can be made; else None, and say why."""
    try:
        return make()
    except PyroVAEError as error:
        trouble.append(f"{what}: {error}")
        return None


def save(page: str, path: Path) -> Path:
    """Write a page, whole or not at all."""
    folder.make(path.parent)
    write_atomic(path, page)
    return path


def environment() -> jinja2.Environment:
    """Make the templates' environment: every text is escaped for HTML, and its control and bidi signs are written out."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("pyro_vae.runs.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    """Fill a template, with who wrote it and when."""
    common = {"version": versions()["pyro-vae"], "today": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    return environment().get_template(template).render(**common, **values)


def render_run(facts: RunFacts, run: Run | None, data: Data | None, trouble: Sequence[str]) -> str:
    """Return the page of one run."""
    pictures, s = pictures_of(facts, run, data), facts.summary
    worst: list[Any] = []
    if facts.main is not None:
        worst, trouble = tried(lambda: worst_rows(facts, data), [], "no rows", trouble)
    columns = None
    if run is not None and data is not None and is_table(run):
        columns, trouble = tried(lambda: columns_of(run, data), None, "columns are not compared", trouble)
    content = picture_of_rows(facts, data, worst) if data is not None else None
    fix = f"pyro-vae report {shlex.quote(str(facts.path))} --data-dir FOLDER"
    return render(
        "run.html",
        title=f"{facts.path.resolve().name}: a model of {facts.record['data'].get('name')}",
        subtitle=subtitle(facts),
        verdict=judge(facts),
        numbers=words.numbers(s) if s else [],
        sentences=words.three_sentences(facts),
        pictures=pictures,
        bracket=bracket_of(facts),
        gaps=gaps_of(facts),
        warnings=[*words.warnings_of(facts), *((words.capital(what), fix) for what in trouble)],
        columns=columns,
        worst=worst,
        worst_picture=None if content is None else f"data:image/png;base64,{base64.b64encode(content).decode()}",
        missing=missing_from(pictures, run, data),
        members=[],
        evaluations=evaluations_of(facts),
        asked=words.asked(facts),
        notes=facts.record["data"].get("notes") or [],
        again=words.again(facts),
        versions=words.versions_of(facts.config, facts.record, s),
        config=config_of(facts),
    )


def tried(make: Callable[[], Any], otherwise: Any, what: str, trouble: Sequence[str]) -> tuple[Any, list[str]]:
    """Return what can be made, and the troubles so far; where a run's own parts fail, the page goes on without it."""
    try:
        return make(), list(trouble)
    except Exception as error:
        why = str(error) if isinstance(error, PyroVAEError) else f"{type(error).__name__}: {error}"
        print(f"note: in the report, {what}: {plain(why)}", file=sys.stderr)
        return otherwise, [*trouble, f"{what}: {why}"]


def subtitle(facts: RunFacts) -> str:
    """Say where the number is of, and when it was made."""
    s = facts.summary
    if not s:
        return f"{facts.path}"
    return f"{s['split']} ({counted(s['rows'], 'row', ',')}), by {s['method']}; {str(s.get('time') or '')[:10]} · {facts.path}"


def columns_of(run: Run, data: Data) -> dict[str, Any]:
    """Compare the columns of a table with draws of the model, in numbers and as a picture."""
    values, draws = values_of(data), draws_of(run)
    names = column_names(data, values.shape[1])
    fits = column_fits(values, draws, names)
    wrong = [fit for fit in fits if fit.wrong]
    said = f"{len(wrong)} of {counted(len(fits), 'column')} differ by more than chance explains"
    return {
        "words": f"{said}{', the worst first' if wrong else ''}. Distance: the largest difference between the cumulative "
        f"distributions of {counted(len(values), 'row', ',')} and {counted(len(draws), 'draw', ',')} of the "
        "model, 0 to 1; chance: what it may be where "
        "the model is right (one per cent, for all columns together).",
        "fits": fits[:COLUMNS],
        "made_up": made_up(draws, names),
        "more": f"and {counted(len(fits) - COLUMNS, 'column', ',')} more." if len(fits) > COLUMNS else "",
        "picture": Picture(
            "columns", "Columns: data, and draws of the model", "The columns that differ most.",
            figures.png(picture(fits, values, draws, names)),
        ),
    }  # fmt: skip


def made_up(draws: np.ndarray, names: Sequence[ColumnName]) -> list[list[str]]:
    """Tabulate a few draws of the model, categories by their labels."""
    shown = range(min(MADE_UP[1], len(names)))
    more = ["…"] if len(names) > len(shown) else []
    lines = [["", *(names[i].name for i in shown), *more]]
    for n, row in enumerate(draws[: MADE_UP[0]], 1):
        lines.append([str(n), *(format_cell(row[i], names[i].codes) for i in shown), *more])
    return lines


def format_cell(value: float, codes: Sequence[str]) -> str:
    """Format a number, or the label of a code."""
    whole = bool(np.isfinite(value)) and value == round(value)
    return codes[int(value)] if whole and 0 <= value < len(codes) else f"{value:.4g}"


def bracket_of(facts: RunFacts) -> list[tuple[str, str]]:
    """List the two ends of log p(x), and by how much each method falls short."""
    b = facts.bracket
    if b is None:
        return []
    names = {
        "lower end": "lower", "upper end": "upper", "between them": "gap",
        "importance sampling alone": "importance", "annealing alone": "annealing",
    }  # fmt: skip
    said = [
        (f"{name}, ± {'rows' if key == 'gap' else 'Monte Carlo'}", f"{format_end(b, key)} nats a row")
        for name, key in names.items()
    ]
    return [*said, ("upper end is", str(b.get("upper_is"))), ("rows", f"{b['rows']:,}")]


def gaps_of(facts: RunFacts) -> list[tuple[str, str]]:
    """List log p(x) − ELBO and what of it the family and the network cost; of loose rows without an error."""
    g = facts.gaps
    if g is None:
        return []
    loose = is_loose(g)
    names = (
        "gap, log p(x) − ELBO",
        "approximation: what the family of q(z | x) costs",
        "amortisation: what its network costs",
    )
    listed = []
    for name, key in zip(names, PARTS, strict=True):
        part = g[key]
        bound = loose and key != "amortisation"  # both of its terms are ELBOs
        error = "" if bound or part.get("mc_se") is None else f" ± {format_nats(part['mc_se'])} (Monte Carlo)"
        listed.append((name, f"{'≥ ' if bound else ''}{part['value']:.3f}{error} nats a row"))
    flagged = f", {g['rows_flagged']:,} of them flagged" if g["rows_flagged"] else ""
    return [*listed, ("rows", f"{g['rows']:,}{flagged}")]


def missing_from(pictures: Mapping[str, Picture], run: Run | None, data: Data | None) -> str:
    """Say which of the pictures are not there, and why."""
    if {"reconstructions", "latent"} <= pictures.keys():
        return ""
    why = (
        "the model cannot be opened" if run is None else "the data cannot be read" if data is None else "see the notes"
    )
    return f"No pictures of rows here: {why}."


def evaluations_of(facts: RunFacts) -> list[list[str]]:
    """Tabulate the evaluations of a run's weights."""
    lines = [["rows", "log p(x) ± Monte Carlo ± data", "method", "flagged", "when"]]
    for e in facts.found:
        flagged, when = format_share(share_flagged(e.summary)), str(e.summary.get("time") or "")[:10]
        lines.append([e.told, format_both_errors(e.summary), str(e.summary["method"]), flagged, when])
    return lines


def config_of(facts: RunFacts) -> list[tuple[str, str]]:
    """List the config, as it was resolved."""
    return [(name, format_value(value)) for name, value in facts.config.to_dict().items()]


def format_value(value: Any) -> str:
    """Format a value of a config; a dash for none."""
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "—"
    return "—" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def render_comparison(paths: Sequence[Path], components: Components) -> str:
    """Return the page of several runs."""
    comparison = compare_runs(paths, components)
    head, *lines = comparison.cells()
    best = comparison.models[0]
    decided = [m.name for m in comparison.models if m.verdict == "decided"]
    sentence = f"{best.name} gives the rows the highest log p(x). "
    sentence += (
        f"It is better than {', '.join(decided)} beyond chance." if decided else "No difference to it is decided."
    )
    facts = {name: read_facts(path) for name, path in name_all(paths).items()}
    quoted = " ".join(shlex.quote(str(path)) for path in paths)
    return render(
        "comparison.html",
        title=f"{len(paths)} models on the same rows",
        subtitle=f"{counted(comparison.rows, 'row', ',')}; nats a row, higher is better",
        sentence=sentence,
        forest=Picture("forest", "Difference to the best", "", figures.png(comparison.plot())),
        head=head,
        lines=lines,
        notes=comparison.notes,
        runs=[{"name": n, "verdict": judge(f), "asked": words.asked(f)} for n, f in facts.items()],
        again=[f"pyro-vae compare {quoted}", f"pyro-vae report {quoted}"],
    )
