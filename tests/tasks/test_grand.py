"""GraNd against a backward pass for each example, over every kind of layer and way to use a parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.errors import InputError
from tasks.scores import norms, probing, score_batch
from tasks.scores.convolution import Convolution, Geometry
from tasks.scores.layout import Layout
from tests.oracles import scores as oracle
from tests.tasks.grand_models import CASES, CLASSES, make
from tests.tasks.grand_uses import USES_LOOPED

# Cases where some parameter has no form of its own, and how many: they take the loop, which is exact too.
LOOPED = {
    "raw parameters": 2,
    "functional use": 1,
    "folded and shuffled examples": 2,
    "parametrized": 2,
    **USES_LOOPED,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def grand(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    return score_batch(model, inputs, targets, ["grand"])["grand"].numpy()


@pytest.mark.parametrize("name", list(CASES))
def test_grand_is_the_length_of_each_examples_own_gradient(name: str, looped: list[int]) -> None:
    model, inputs, targets = make(name, 12)
    np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
    assert looped == ([LOOPED[name]] if name in LOOPED else [])


@pytest.mark.parametrize("name", list(CASES))
def test_grand_of_an_example_does_not_depend_on_its_batch(name: str) -> None:
    model, inputs, targets = make(name, 12, seed=1)
    whole = grand(model, inputs, targets)
    for rows in (1, 2, 5):
        parts = [grand(model, inputs[at : at + rows], targets[at : at + rows]) for at in range(0, 12, rows)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "resnet with batch norm", "transformer encoder", "tied weights"])
def test_rows_that_pad_a_batch_leave_the_others_as_they_are(name: str) -> None:
    model, inputs, targets = make(name, 32, seed=2)
    padded, labels = inputs.clone(), targets.clone()
    padded[20:], labels[20:] = inputs[19], targets[19]
    np.testing.assert_array_equal(grand(model, padded, labels)[:20], grand(model, inputs, targets)[:20])


@pytest.mark.parametrize("norms", ["norms after", "norms first"])
@pytest.mark.parametrize("learns", ["words", "body", "out.bias"])
def test_an_encoder_of_which_a_part_learns_is_seen_through_its_fused_path(norms: str, learns: str, looped: list[int]) -> None:
    # Frozen layers may run as one fused operation. What flows through them, and what they hide, must be right.
    model, inputs, targets = make(f"text encoder, {norms}", 12)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(learns))
    np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
    assert looped == []


def test_trap_3_gradients_are_of_the_examples_own_loss_not_of_the_mean() -> None:
    model, inputs, targets = make("cnn", 12)
    expected = oracle.gradient_norms(model, inputs, targets)
    # A batch and a short last batch: a mean would make these 8 and 4 times too small.
    np.testing.assert_allclose(grand(model, inputs[:8], targets[:8]), expected[:8], rtol=1e-5)
    np.testing.assert_allclose(grand(model, inputs[8:], targets[8:]), expected[8:], rtol=1e-5)


def test_grand_of_fitted_examples_keeps_its_digits() -> None:
    # p_y is 1 in float32 here: 1 - p_y would be nothing but rounding.
    model, inputs, _ = make("mlp", 12)
    with torch.no_grad():
        model[-1].weight.mul_(90)
        targets = model(inputs).argmax(1)
    expected = oracle.gradient_norms(model, inputs, targets)
    # The reference takes 1 - p_y too, in float64: it has its digits down to about 1e-10.
    known = expected > 1e-10
    assert expected[known].min() < 1e-6
    np.testing.assert_allclose(grand(model, inputs, targets)[known], expected[known], rtol=1e-4)


def test_a_large_batch_goes_through_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.scores import convolution, operations

    def small(examples: int, floats_each: int, device: torch.device) -> Iterator[tuple[int, int]]:
        assert examples % 4 == 0
        return ((start, start + 4) for start in range(0, examples, 4))

    cases = [make(name, 12) for name in ("resnet with batch norm", "linear over a long sequence", "tied weights")]
    whole = [grand(*case) for case in cases]
    for module in (convolution, operations, norms):
        monkeypatch.setattr(module, "chunks", small)
    for case, expected in zip(cases, whole):
        np.testing.assert_allclose(grand(*case), expected, rtol=1e-6)


def test_chunks_are_equal_and_cover_every_example() -> None:
    from tasks.scores.operations import chunks

    for examples in (1, 7, 12, 256):
        for floats in (1, 2**20, 2**21 + 1, 2**30):
            parts = list(chunks(examples, floats, torch.device("cpu")))
            assert [number for start, stop in parts for number in range(start, stop)] == list(range(examples))
            assert len({stop - start for start, stop in parts}) == 1


@pytest.mark.parametrize(
    "settings",
    [
        ((8, 8), (3, 3), (1, 1), (1, 1), (1, 1), 1),
        ((9, 7), (3, 2), (2, 1), (1, 0), (1, 2), 2),
        ((6, 6), (3, 3), (1, 1), (2, 2), (2, 2), 4),
        ((5, 5), (1, 1), (2, 2), (0, 0), (1, 1), 1),
        ((10,), (4,), (3,), (2,), (1,), 2),
        ((4, 3, 5), (2, 3, 3), (1, 1, 2), (1, 1, 1), (1, 1, 1), 1),
    ],
)
def test_both_batched_forms_of_a_convolution_equal_its_gradients(settings: tuple[Any, ...]) -> None:
    size, kernel, stride, padding, dilation, groups = settings
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, generator=generator)
    weight = torch.randn(8, 4 // groups, *kernel, generator=generator)
    apply = (torch.conv1d, torch.conv2d, torch.conv3d)[len(size) - 1]
    out = apply(x, weight, None, stride, padding, dilation, groups)
    g = torch.randn(out.shape, generator=generator)
    operation = Convolution(x, weight, Geometry(stride, padding, dilation, groups, False, (0,) * len(size)))
    gradients = []
    for number in range(3):
        w = weight.double().requires_grad_()
        y = apply(x[number : number + 1].double(), w, None, stride, padding, dilation, groups)
        gradients.append(torch.autograd.grad(y, w, g[number : number + 1].double())[0])
    expected = torch.stack([gradient.square().sum() for gradient in gradients]).float()
    torch.testing.assert_close(operation._gram(x, g), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(operation._unfolded(x, g), expected, rtol=1e-5, atol=0)
    layout = Layout(1, 3, 1)
    torch.testing.assert_close(operation.squares(g, layout), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(operation.gradients(g, layout, 1, 3), torch.stack(gradients[1:]).float())


def test_the_cheaper_form_of_a_convolution_is_taken() -> None:
    def cheaper(channels: int, size: int) -> bool:
        x, weight = torch.zeros(2, 1, channels, size, size), torch.zeros(channels, channels, 3, 3)
        return Convolution(x, weight, Geometry((1, 1), (1, 1), (1, 1), 1, False, (0, 0)))._gram_is_cheaper(
            x, torch.zeros_like(x)
        )

    assert cheaper(512, 4) and cheaper(256, 8)
    assert not cheaper(64, 32)


def test_layouts_are_probed_once_for_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets = make("resnet with batch norm", 12)
    calls: list[int] = []
    model.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    for _ in range(3):
        grand(model, inputs, targets)
    assert calls == [12, 12, 12]
    assert len(probing._KNOWN[model]) == 1


class Counting(nn.Module):
    """Keeps what a careless scorer would change: a mode of its own, buffers, a frozen part, gradients, hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 7 * 7, CLASSES)
        self.words = nn.Embedding(3, 4 * 7 * 7, max_norm=0.5)
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("rebound", torch.zeros(2))
        self.fails = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.rebound = self.rebound + 1
        torch.rand(3)
        out = self.head(self.body(x).flatten(1) + self.words(torch.zeros(len(x), dtype=torch.long)))
        if self.fails:
            raise RuntimeError("no forward today")
        return out


def state_of(model: nn.Module) -> dict[str, object]:
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: p.grad.clone() if p.grad is not None else None for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in (
                "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
            )] for name, module in model.named_modules()
        },
        "rng": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),  # type: ignore[union-attr]
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }  # fmt: skip


@pytest.mark.parametrize("failure", ["none", "forward", "labels", "logits", "backward"])
def test_trap_12_the_model_and_global_state_are_left_as_they_were(
    failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(3)
    model = Counting().train()
    model.body[1].eval()
    model.body[0].bias.requires_grad_(False)
    model(torch.randn(4, 3, 9, 9)).sum().backward()
    model.head.register_forward_hook(lambda *_: None)
    held = {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]}
    inputs, targets = torch.randn(6, 3, 9, 9), torch.arange(6) % CLASSES
    names = ["grand", "grand_last", "el2n", "entropy"]
    before = copy.deepcopy(state_of(model))
    if failure == "none":
        score_batch(model, inputs, targets, names)
    else:
        model.fails = failure == "forward"
        if failure == "labels":
            targets = targets + CLASSES
        if failure == "logits":
            model.head.register_forward_hook(hook := (lambda *_: None))
            assert hook is not None
            before = copy.deepcopy(state_of(model))
            model.head.out_features = CLASSES
            model.forward = lambda x: Counting.forward(model, x)[:, :1]  # type: ignore[method-assign]
        if failure == "backward":

            def broken(*_: object) -> torch.Tensor:
                raise RuntimeError("no backward today")

            monkeypatch.setattr(Convolution, "squares", broken)
            model.body[0].weight.requires_grad_(True)
        with pytest.raises((RuntimeError, InputError)):
            score_batch(model, inputs, targets, names)
    after = state_of(model)
    assert {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]} == held
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0)


def test_trap_5_batch_norm_and_dropout_are_in_eval_mode() -> None:
    torch.manual_seed(0)
    model = Counting()
    inputs, targets = torch.randn(6, 3, 9, 9), torch.arange(6) % CLASSES
    names = ["el2n", "grand", "loss"]
    torch.nn.init.normal_(model.body[1].running_mean)
    in_train = score_batch(model.train(), inputs, targets, names)
    in_eval = score_batch(model.eval(), inputs, targets, names)
    for name in names:
        assert torch.equal(in_train[name], in_eval[name])
    np.testing.assert_allclose(in_train["grand"], oracle.gradient_norms(model, inputs, targets), rtol=1e-5)


def test_frozen_parameters_do_not_count_and_a_model_of_them_is_refused() -> None:
    model, inputs, targets = make("mlp", 4)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InputError, match="requires a gradient"):
        grand(model, inputs, targets)


def test_grand_works_where_the_caller_has_gradients_off() -> None:
    model, inputs, targets = make("cnn", 4)
    expected = grand(model, inputs, targets)
    with torch.no_grad():
        np.testing.assert_array_equal(grand(model, inputs, targets), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(grand(model, inputs.clone(), targets), expected)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.body, self.out, self.reentrant = nn.Linear(6, 6), nn.Linear(6, CLASSES), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x.requires_grad_() if self.reentrant else x
        return self.out(torch.tanh(checkpoint(self.body, x, use_reentrant=self.reentrant)))


def test_activation_checkpointing_is_followed_or_refused() -> None:
    torch.manual_seed(0)
    model, inputs, targets = Checkpointed(False), torch.randn(6, 6), torch.arange(6) % CLASSES
    np.testing.assert_allclose(
        grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5
    )
    with pytest.raises(InputError, match="use_reentrant=False"):
        grand(Checkpointed(True), inputs, targets)


def test_batch_norms_without_running_statistics_are_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match="track_running_stats"):
        score_batch(model, torch.randn(4, 6), None, ["entropy"])


def test_grand_in_bfloat16_is_near_and_in_float32() -> None:
    model, inputs, targets = make("cnn", 8)
    expected = oracle.gradient_norms(model, inputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score_batch(model, inputs, targets, ["grand", "el2n"])
    assert scores["grand"].dtype == scores["el2n"].dtype == torch.float32
    np.testing.assert_allclose(scores["grand"], expected, rtol=0.05)


@pytest.mark.parametrize("bias", [True, False])
def test_grand_last_is_the_gradient_of_the_last_layer(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, CLASSES, bias=bias))
    inputs, targets = torch.randn(10, 6), torch.randint(0, CLASSES, (10,))
    scores = score_batch(model, inputs, targets, ["grand_last", "grand"])
    with torch.no_grad():
        hidden, logits = model[:2](inputs).numpy(), model(inputs).numpy()
    expected = oracle.last_layer_norms(hidden, logits, targets.numpy(), bias)
    np.testing.assert_allclose(scores["grand_last"], expected, rtol=1e-5)
    # It is what GraNd is when nothing else learns.
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    np.testing.assert_allclose(grand(model, inputs, targets), expected, rtol=1e-5)
    assert math.isfinite(float(scores["grand"].sum()))


def test_grand_last_is_refused_where_it_would_not_be_exact() -> None:
    images, targets = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    without = nn.Sequential(nn.Conv2d(3, CLASSES, 8), nn.Flatten())
    with pytest.raises(InputError, match="calls none"):
        score_batch(without, images, targets, ["grand_last"])
    cooled = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.Softplus())
    with pytest.raises(InputError, match="not the logits"):
        score_batch(cooled, images, targets, ["grand_last"])
    inplace = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.ReLU(inplace=True))
    with pytest.raises(InputError, match="not the logits"):
        score_batch(inplace, images, targets, ["grand_last"])
    line = nn.Linear(CLASSES, CLASSES)
    with pytest.raises(InputError, match="called 2 times"):
        score_batch(nn.Sequential(line, nn.ReLU(), line), torch.randn(4, CLASSES), targets, ["grand_last"])

    class Cosine(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))

    with pytest.raises(InputError, match="Cosine has a forward of its own"):
        score_batch(Cosine(5, CLASSES, bias=False), torch.randn(4, 5), targets, ["grand_last"])
