"""Kernel choices are fixed inside the block and put back after it."""

from __future__ import annotations

import pytest
import torch

from tasks.arithmetic import arithmetic
from tasks.spec import Numerics


def choices() -> tuple[object, ...]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_num_threads(),
    )


@pytest.mark.parametrize(("device", "deterministic"), [("cuda", True), ("cpu", False)])
def test_choices_hold_in_the_block_and_are_put_back_when_it_fails(device: str, deterministic: bool) -> None:
    before = choices()

    def fail() -> None:
        with arithmetic(Numerics(device=device, threads=3)):
            assert choices() == (deterministic, deterministic, not deterministic, True, False, False, False, 3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert choices() == before


def test_a_users_own_choice_of_determinism_is_put_back() -> None:
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        with arithmetic(Numerics(device="cuda")):
            assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
