"""The GPU benchmark runs from its one command; on a CPU with small sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.mark.timeout(600)
def test_quick_benchmark_prints_a_table_a_section_and_finds_equal_bytes(tmp_path: Path) -> None:
    wanted = [name for name in gpu.SECTIONS if name not in ("ranks", "whole")]
    out = tmp_path / "gpu.md"
    assert gpu.main(["--quick", "--device", "cpu", "--out", str(out), "--only", *wanted]) == 0
    text = out.read_text()
    assert text.count("\n## ") == len(wanted) + 1
    assert "same" in text
    assert "DIFFERENT" not in text
    assert "FAILED" not in text
