"""What several tests of tasks share."""

from __future__ import annotations

import pytest

from tasks.scores import norms


@pytest.fixture
def looped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of parameters whenever the loop is taken."""
    counts: list[int] = []
    loop = norms.squares_one_by_one

    def counting(model, inputs, logits, parameters, root):  # type: ignore[no-untyped-def]
        counts.append(len(parameters))
        return loop(model, inputs, logits, parameters, root)

    monkeypatch.setattr(norms, "squares_one_by_one", counting)
    return counts
