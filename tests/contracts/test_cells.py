"""The grid of the benchmarks: every sampler is in it, and every cell is a configuration that a sweep takes."""

from __future__ import annotations

import pytest

from benchmarks import cells, scaling
from flows.config import parse_config
from flows.sweep import grid_of
from tasks.samplers.registry import PROTOCOLS


def test_every_sampler_has_its_settings() -> None:
    assert set(cells.ARMS) == set(PROTOCOLS) - {"random"}


@pytest.mark.parametrize("name", list(cells.CELLS))
def test_every_cell_is_a_sweep_of_all_samplers_at_all_keeps(name: str) -> None:
    cell = cells.CELLS[name]
    for group in cell.groups:
        config = parse_config(cell.config(name, group))
        assert config.select.keep == group.keep and config.train.replicates == 10
        assert {arm.protocol for arm in config.select.arms} == set(PROTOCOLS) - {"random"}


def test_sizes_of_the_scaling_law_are_nested_two_decades_wide() -> None:
    assert len(scaling.LIMITS) >= 6 and scaling.LIMITS[-1] / scaling.LIMITS[0] >= 100
    for limit in scaling.LIMITS:
        config = parse_config(scaling.config(limit))
        assert {arm.label for arm in config.select.arms} == set(scaling.ARMS.values()) - {"random"}
        assert grid_of(config).combinations == 3
