"""index.html: the findings of a run for people, in one file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tasks.report.charts import accuracy_chart, forest_chart, time_chart
from tasks.report.curves import curve_section
from tasks.report.inputs import PageInputs
from tasks.report.policy import policy_section, sentences
from tasks.report.scoring import scoring_cell
from tasks.report.sections import balance_section, score_section, weight_section
from tasks.report.shift import SHIFT_STYLE, shift_section
from tasks.report.style import STYLE
from tasks.report.terminal import arms_of
from tasks.report.time_to_accuracy_page import time_section
from tasks.report.variance import variance_section
from tasks.report.vega import SERIES_STYLE
from tasks.report.wording import GLOSSARY, bounds, count, duration, kept_text, needed_text, percent, signed, with_margin

HEADERS = (
    "arm", "verdict", "difference to random", "accuracy, %", "non-inferior", "kept", "touched", "steps", "batch", "epochs",
    "scoring steps", "over test examples too", "worst class, %", "its difference", "score", "protocol", "alpha", "why",
)  # fmt: skip
WORDS = ("verdict", "non-inferior", "score", "protocol", "why")


def render_page(results: Mapping[str, Any], page: PageInputs | None = None) -> str:
    """Return the whole page; every name in it is escaped."""
    page = page or PageInputs()
    body = [
        _head(results),
        policy_section(results),
        curve_section(results),
        *(_keep_section(results, entry) for entry in results["keeps"]),
        time_section(results, page),
        _notes(results),
        score_section(page),
        balance_section(page, results),
        weight_section(page),
        variance_section(page),
        shift_section(results, page),
        _stages(page),
        _configuration(page),
        _glossary(results),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Secateur: {escape(str(results['run']))}</title><style>{STYLE}{SERIES_STYLE}{SHIFT_STYLE}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in body if part)}\n</main></body></html>\n"
    )


def _head(results: Mapping[str, Any]) -> str:
    data = results["dataset"]
    replicates = sorted({len(arm["accuracy"]) for arm in results["arms"]})
    said = "–".join(str(number) for number in sorted({replicates[0], replicates[-1]}))
    facts = (
        f"{count(data['n_train'])} train, {count(data['n_validation'])} validation and {count(data['n_test'])} test "
        f"examples in {data['num_classes']} classes; {said} replicate{'s' * (said != '1')} of each arm; "
        f"equivalence margin ±{results['margin_points']:g} points, non-inferiority margin "
        f"{results['non_inferiority_points']:g} points."
    )
    slice_note = "".join(
        f'<p class="slice"><strong>{escape(note)}</strong></p>' for note in results["notes"] if note.startswith("Slice")
    )
    lead = "".join(f'<p class="lead">{escape(said)}</p>' for said in sentences(results) or [results["headline"]])
    return (
        f'<header><h1>Run {escape(str(results["run"]))}</h1>{lead}'
        f'<p class="facts">{escape(facts)}</p>{slice_note}</header>'
    )


def _keep_section(results: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    keep = entry["keep"]
    arms = arms_of(results, keep)
    order = {arm["name"]: number for number, arm in enumerate(arms)}
    rows = sorted((row for row in results["comparisons"] if row["keep"] == keep), key=lambda row: order[row["arm"]])
    kept = next((arm["n_kept"] for arm in arms if not arm["full"]), arms[0]["n_kept"])
    cards = [
        '<div class="card"><h3>Test accuracy</h3>'
        + accuracy_chart(arms)
        + _key(("faint", "a replicate"), ("bar", "mean"), ("thick", "95 % interval of the mean"))
        + "</div>"
    ]
    if rows:
        keys = [("dot", "verdict"), ("ring", "undecided"), ("thick", "interval that decides"),
                ("thin", "over test examples too")]  # fmt: skip
        if results["margin_points"] > 0:
            keys.append(("band", f"margin ±{results['margin_points']:g}"))
        cards.append(
            '<div class="card"><h3>Paired difference to random</h3>'
            + forest_chart(rows, results["margin_points"])
            + _key(*keys)
            + f'<p class="caption">{escape(entry["adjustment"])}</p></div>'
        )
    return (
        f"<section><h2>Keep {percent(keep)}: {count(kept)} of {count(results['dataset']['n_train'])} examples</h2>"
        f'<p>{escape(entry["sentence"])}</p><div class="cards">{"".join(cards)}</div>{_table(arms, rows)}</section>'
    )


def _key(*entries: tuple[str, str]) -> str:
    items = "".join(f'<li><i class="i-{name}"></i>{escape(words)}</li>' for name, words in entries)
    return f'<ul class="key">{items}</ul>'


def _table(arms: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    compared = {row["arm"]: row for row in rows}
    head = "".join(f'<th scope="col"{_words(name)}>{name}</th>' for name in HEADERS)
    body = []
    for arm in arms:
        cells = _cells(arm, compared.get(arm["name"]))
        said = "".join(f"<td{_words(name)}>{cell}</td>" for name, cell in zip(HEADERS[1:], cells))
        body.append(f'<tr><th scope="row">{escape(arm["name"])}</th>{said}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cells(arm: Mapping[str, Any], row: Mapping[str, Any] | None) -> list[str]:
    """Return the cells of one arm, after its name, as markup."""
    if row is None:
        why = "the baseline" if arm["protocol"] == "random" and not arm["full"] else "not compared"
        verdict = difference = two_way = loss = lowest = "–"
    else:
        needed = needed_text(row)
        why = row["reason"] + (f"; {needed}" if needed else "")
        verdict = f'<span class="verdict v-{row["verdict"]}">{row["verdict"]}</span>'
        difference = _minus(f"{signed(row['mean_difference'])} {bounds(row['ci95'])}")
        two_way = "–" if row["two_way_ci95"] is None else _minus(bounds(row["two_way_ci95"]))
        loss = {True: "yes", False: "not shown", None: "not judged"}[row["non_inferior"]]
        lowest = "–"
        if row["worst_class_difference"] is not None:
            lowest = _minus(f"{signed(row['worst_class_difference'])} {bounds(row['worst_class_ci95'])}")
    worst = arm["worst_class"]
    return [
        verdict,
        difference,
        with_margin(arm["mean"], arm["ci95"]),
        loss,
        kept_text(arm),
        count(arm["examples_touched"]),
        count(arm["steps"]),
        count(arm["batch_size"]),
        f"{arm['epochs']:.1f}",
        scoring_cell(arm["scoring_steps"]),
        two_way,
        escape(f"{worst['accuracy']:.1f} ({worst['name']})"),
        lowest,
        escape(arm["score"] or "–"),
        escape(arm["protocol"]),
        "–" if arm["alpha"] is None else f"{arm['alpha']:g}",
        escape(why),
    ]


def _words(name: str) -> str:
    if name not in WORDS:
        return ""
    return ' class="words why"' if name == "why" else ' class="words"'


def _minus(figures: str) -> str:
    return escape(figures.replace("-", "−"))


def _notes(results: Mapping[str, Any]) -> str:
    # The slice stands at the top of the page.
    items = "".join(f"<li>{escape(note)}</li>" for note in results["notes"] if not note.startswith("Slice"))
    return f"<section><h2>Before you believe these figures</h2><ul>{items}</ul></section>"


def _stages(page: PageInputs) -> str:
    if not page.stages:
        return ""
    computed = [stage for stage in page.stages if stage.computed]
    total = duration(sum(stage.seconds for stage in page.stages))
    said = f"{len(computed)} of {len(page.stages)} stages computed something in this run's attempts, {total} in all."
    return (
        f'<section><h2>What ran</h2><p>{said}</p><div class="cards"><div class="card">{time_chart(page.stages)}'
        f"{_key(('done', 'computed'), ('hollow', 'reused: sealed before'))}</div></div></section>"
    )


def _configuration(page: PageInputs) -> str:
    if not page.config and not page.versions:
        return ""
    import yaml

    config = escape(yaml.safe_dump(dict(page.config), sort_keys=False, allow_unicode=True)) if page.config else ""
    versions = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="words">{escape(str(version))}</td></tr>'
        for name, version in sorted(page.versions.items())
    )
    parts = ["<section><h2>Configuration and versions</h2>"]
    if config:
        parts.append(f"<details><summary>Resolved configuration</summary><pre>{config}</pre></details>")
    if versions:
        parts.append(
            "<details><summary>Versions</summary>"
            f'<div class="scroll"><table><tbody>{versions}</tbody></table></div></details>'
        )
    return "".join(parts) + "</section>"


def _glossary(results: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>" for word, meaning in GLOSSARY.items())
    rule = (
        f"Verdicts: paired over at least {results['min_replicates']} replicates (5 for one comparison named in "
        "advance, 10 where a run names several, over all its keeps), two-sided 5 % over all pruned arms of one "
        "keep: by paired t for one arm, by Dunnett or Holm for several, as said under each chart. The interval shown is the "
        "one that decides: it leaves 0 out exactly where the verdict is better or worse, and taken alone it covers at least "
        "95 %. The full data is no candidate and is judged by itself."
    )
    return f"<section><h2>What the words mean</h2><p>{rule}</p><dl>{items}</dl></section>"
