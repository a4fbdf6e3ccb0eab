"""The page's section about alpha by theory: the variance curve of every selection whose alpha was auto."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import altair as alt

from tasks.report.charts import across
from tasks.report.inputs import ArmResult, PageInputs
from tasks.report.vega import WIDTH, drawing, linear, table_of
from tasks.report.wording import count, percent

CHART = WIDTH - 40
# Near alpha 1 the curve rises to m times random's, and says nothing there.
HIGHEST = 2.0

CAUTION = (
    "The curve is the design variance of the estimated mean gradient under exact, divided by that of a random draw of the "
    "same size, at the proxies' state; gradients enter by the second moment of their norm, which is a bound. It is a "
    "diagnostic and no verdict: it compares unbiased designs only, knows nothing of bias, and a smaller variance at one "
    "state does not imply a better model after a training: a design of small ratio may lose to random, and a biased one may "
    "beat it. Only the paired comparison of trained arms decides."
)


def variance_section(page: PageInputs) -> str:
    """Return the curve, the flat region and the figures of every arm and keep whose alpha was auto; nothing without one."""
    cards = [
        _card(arm, arm.selections[0].meta)
        for arm in sorted(page.arms, key=lambda arm: arm.keep)
        if arm.selections and arm.selections[0].meta.get("allocation")
    ]
    if not cards:
        return ""
    key = (
        '<ul class="key"><li><i class="i-thick"></i>Var(alpha)/Var_random</li><li><i class="i-dot"></i>alpha*</li>'
        '<li><i class="i-band"></i>within 5 % of the least</li></ul>'
    )
    return (
        f"<section><h2>Alpha by theory</h2><p>{escape(CAUTION)}</p>{key}"
        f'<div class="cards">{"".join(cards)}</div></section>'
    )


def _card(arm: ArmResult, meta: Mapping[str, Any]) -> str:
    found = meta["allocation"]
    lines = "".join(f"<li>{escape(said)}</li>" for said in (*_figures(found, meta), *_effects(arm), *_columns(found)))
    chart = variance_chart(meta["variance_curve"], found) if found["ratio"] is not None else ""
    return f'<div class="card"><h3>{escape(f"{arm.name} at keep {percent(arm.keep)}")}</h3>{chart}<ul>{lines}</ul></div>'


def _figures(found: Mapping[str, Any], meta: Mapping[str, Any]) -> Iterator[str]:
    yield f"alpha* is {found['alpha']:.3g}: {count(meta['num_signal'])} of {count(meta['num_kept'])} kept are signal"
    if found["ratio"] is None:
        yield "no division of the budget has any variance here, so there is nothing to choose"
        return
    yield f"Var(alpha*)/Var_random is {found['ratio']:.3g}"
    low, high = found["flat"]
    flat = f"within {100 * found['flat_within']:g} % of the least variance from alpha {low:.3g} to {high:.3g}"
    if found["flat_stretches"] > 1:
        flat += f", and in {found['flat_stretches'] - 1} more stretches apart from it"
    yield flat
    if not found["alpha"]:
        yield "exploration alone has the least variance: these selections are random draws"


def _effects(arm: ArmResult) -> Iterator[str]:
    metas = [seal.meta for seal in arm.selections or ()]
    share = sum(meta["ess"] / meta["num_kept"] for meta in metas) / len(metas)
    yield f"effective sample size {percent(round(share, 3))} of the kept (Kish, from the weights alone)"
    effects = [meta["design_effect"] for meta in metas if meta.get("design_effect") is not None]
    if effects:
        yield (
            f"design effect on class totals {sum(effects) / len(effects):.3g} (mean over replicates): their error against a "
            "random draw's, which may disagree with both figures above"
        )


def _columns(found: Mapping[str, Any]) -> Iterator[str]:
    folds = list(zip(found["rank_columns"], found["norm_columns"]))
    said = "; ".join(f"{' + '.join(rank)} → {' + '.join(norm)}" for rank, norm in folds)
    if found["cross_fitted"]:
        yield f"cross-fitted, ranked by → norm from: {said}"
    else:
        yield f"not cross-fitted, so the ratio is optimistic; ranked by → norm from: {said}"


def variance_chart(curve: Sequence[Sequence[float]], found: Mapping[str, Any]) -> str:
    """Return the curve of (alpha, ratio) points up to HIGHEST, with random's level, the flat region and alpha*."""
    best, least = found["alpha"], found["ratio"]
    top = min(HIGHEST, max(1.25, *(ratio for _, ratio in curve)))
    low, high = found["flat"]
    x = across("x", (0.0, 1.0), "alpha, share of signal in the budget")
    y = alt.Y("y:Q", title=None, axis=alt.Axis(tickCount=5), scale=linear((0.0, top)))
    rows = [{"x": x, "y": y, "part": part} for part, stretch in enumerate(_drawn(curve, top)) for x, y in stretch]
    # Beside the dot, on the side with room.
    side: dict[str, Any] = {"align": "left", "dx": 10} if best < 0.5 else {"align": "right", "dx": -10}
    here = table_of([{"x": best, "y": least, "words": f"{best:.2g}: {least:.2g}"}]).encode(x=x, y=y)
    random = table_of([{"y": 1.0}]).encode(y=y)
    layers = [
        table_of([{"x": low - 0.003, "x2": high + 0.003}]).mark_rect(fill="var(--band)").encode(x=x, x2="x2:Q"),
        random.mark_rule(color="var(--ink)", strokeWidth=1.5, strokeDash=[4, 3]),
        random.mark_text(align="right", dy=-8, fill="var(--soft)").encode(x=alt.value(CHART), text=alt.value("random")),
        table_of(rows).mark_line(strokeWidth=2.5, color="var(--arm)").encode(x=x, y=y, detail="part:N"),
        here.mark_circle(size=95, opacity=1, color="var(--arm)"),
        here.mark_text(dy=18 if least > 0.12 * top else -14, fontWeight=600, **side).encode(text="words:N"),
    ]
    return drawing(alt.layer(*layers).properties(width=CHART, height=180), "Design variance against alpha")


def _drawn(curve: Sequence[Sequence[float]], top: float) -> Iterator[list[tuple[float, float]]]:
    """Yield the parts of the curve below `top`, cut where it crosses."""
    part: list[tuple[float, float]] = []
    last: tuple[float, float] | None = None
    for alpha, ratio in curve:
        if last is not None and (ratio <= top) != (last[1] <= top):
            share = (top - last[1]) / (ratio - last[1])
            part.append((last[0] + share * (alpha - last[0]), top))
            if ratio > top:
                yield part
                part = []
        if ratio <= top:
            part.append((alpha, ratio))
        last = (alpha, ratio)
    if part:
        yield part
