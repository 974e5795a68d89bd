"""The fused loss and its gradients equal naive ones in float64, in pieces of any size and in all uses of autograd."""

import math
import threading

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ingot.model import fused_cross_entropy as fused_file
from ingot.model import loss as loss_file
from ingot.model.cross_entropy import VocabularyPart
from ingot.model.loss import keep_targets, linear_cross_entropy, rows_at_a_time

ROWS, WIDTH, VOCABULARY = 23, 16, 41


def naive(hidden, weight, bias, labels, softcap=None, z_loss=0.0, label_smoothing=0.0):
    """Row by row, as the definitions are written, in float64."""
    total = hidden.double().sum() * 0 + weight.double().sum() * 0
    for row, label in enumerate(labels.tolist()):
        if label == -100:
            continue
        logits = weight.double() @ hidden[row].double()
        logits = logits if bias is None else logits + bias.double()
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        log_denominator = logits.exp().sum().log()
        losses = log_denominator - logits
        total = total + (1 - label_smoothing) * losses[label] + label_smoothing * losses.mean()
        total = total + z_loss * log_denominator**2
    return total


def plain_bf16(hidden, weight, bias, labels, softcap=None, z_loss=0.0, label_smoothing=0.0):
    """What a user writes without a fused loss: a product in bf16, the rest in fp32."""
    logits = F.linear(hidden, weight, bias).float()
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    z = z_loss * logits[labels != -100].logsumexp(-1).square().sum()
    return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing) + z


def rows(dtype=torch.float32, num_rows=ROWS, ignored=True):
    generator = torch.Generator().manual_seed(0)
    shapes = ((num_rows, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    factors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    labels = torch.randint(0, VOCABULARY, (num_rows,), generator=generator)
    if ignored:
        labels[::3] = -100
    return *factors, labels


def relative_error(found, exact):
    return float(((found.double() - exact).norm() / exact.norm()).detach())


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Chunks of 9 rows and blocks of 4, so that neither divides what it cuts."""
    monkeypatch.setattr(loss_file, "rows_at_a_time", lambda num_rows, *_: (min(9, max(1, num_rows)), 4))


@pytest.fixture
def way(request, monkeypatch):
    """The loss of a CPU, or the one that is compiled on a GPU, here run without the compiler."""
    if request.param == "fused":
        fuse(monkeypatch)
        monkeypatch.setattr(fused_file, "_compiled", lambda function: function)


def fuse(monkeypatch):
    monkeypatch.setattr(loss_file, "fuses", lambda device: True)


OPTIONS = [
    {},
    {"softcap": 3.0},
    {"z_loss": 0.1},
    {"label_smoothing": 0.2},
    {"softcap": 3.0, "z_loss": 0.1, "label_smoothing": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("ignored", [True, False], ids=["ignored rows", "all targets"])
@pytest.mark.parametrize("way", ["operators", "fused"], indirect=True)
@pytest.mark.usefixtures("way")
class TestAgainstFloat64:
    def test_in_fp32(self, options, has_bias, ignored):
        hidden, weight, bias, labels = rows(ignored=ignored)
        factors = [hidden, weight, bias] if has_bias else [hidden, weight]
        arguments = (hidden, weight, bias if has_bias else None, labels)
        got, exact = linear_cross_entropy(*arguments, **options), naive(*arguments, **options)
        assert (got.dtype, got.shape) == (torch.float32, ())
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)
        for a, b in zip(*(torch.autograd.grad(0.37 * x, factors) for x in (got, exact)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)

    def test_in_bf16(self, options, has_bias, ignored):
        hidden, weight, bias, labels = rows(torch.bfloat16, ignored=ignored)
        factors = [hidden, weight, bias] if has_bias else [hidden, weight]
        arguments = (hidden, weight, bias if has_bias else None, labels)
        doubles = [x.detach().double().requires_grad_() for x in factors]
        got, plain = (f(*arguments, **options) for f in (linear_cross_entropy, plain_bf16))
        exact = naive(*(doubles if has_bias else [*doubles, None]), labels, **options)
        assert got.dtype == torch.float32
        assert relative_error(got, exact) <= relative_error(plain, exact) + 1e-3
        gradients = (torch.autograd.grad(0.37 * x, f) for x, f in ((got, factors), (plain, factors), (exact, doubles)))
        for a, b, c in zip(*gradients, strict=True):
            assert a.dtype == torch.bfloat16
            assert relative_error(a, c) <= 1.5 * relative_error(b, c) + 1e-3


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_the_compiled_loss_is_one_kernel_without_a_second_copy_of_the_logits(has_bias, monkeypatch):
    from torch._inductor.utils import run_and_get_code

    def run():
        hidden, weight, bias, labels = rows(torch.bfloat16)
        loss = linear_cross_entropy(hidden, weight, bias if has_bias else None, labels, z_loss=0.1, label_smoothing=0.2)
        loss.backward()
        return loss, hidden.grad, weight.grad, *([bias.grad] if has_bias else [])

    plain = run()
    fuse(monkeypatch)
    torch._dynamo.reset()
    compiled, sources = run_and_get_code(run)
    for got, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-3)
    assert len(sources) == 2  # one for the first number of rows, and one for all numbers of rows
    for source in sources:
        call = source[source.index("def call(self, args)") : source.index("runner = Runner")]
        assert sum(line.lstrip().startswith("cpp_fused") for line in call.splitlines()) == 1
        buffers = [line for line in call.splitlines() if "= empty_strided" in line]
        assert buffers
        assert all(", 1), (" in line for line in buffers), "only numbers of rows, not of logits"


@pytest.mark.parametrize("way", ["operators", "fused"], indirect=True)
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]])
def test_two_parts_of_a_vocabulary_give_the_loss_and_gradients_of_the_whole(options, monkeypatch):
    hidden, weight, bias, labels = (x.detach() for x in rows())
    expected = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    naive(*expected, labels, **options).backward()

    # Two threads meet in each exchange, as two ranks would.
    barrier, boxes = threading.Barrier(2), [None, None]

    def exchange(combine, rank):
        def run(x):
            boxes[rank] = x
            barrier.wait(60)
            result = combine(*boxes)
            barrier.wait(60)
            return result

        return run

    halves, found = ((0, 30), (30, VOCABULARY)), [None, None]

    def run(rank):
        first, end = halves[rank]
        add, maximum = exchange(torch.add, rank), exchange(torch.maximum, rank)
        part = VocabularyPart(first, end - first, VOCABULARY, lambda x: x, add, maximum, lambda x: x)
        factors = [hidden.clone(), weight[first:end].clone(), bias[first:end].clone()]
        factors = [x.requires_grad_() for x in factors]
        loss = linear_cross_entropy(*factors, labels, **options, part=part)
        found[rank] = (loss, *torch.autograd.grad(loss, factors))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (loss, *one), (same_loss, *other) = found
    assert loss == same_loss
    torch.testing.assert_close(one[0] + other[0], expected[0].grad, rtol=1e-4, atol=2e-6)
    for mine, theirs, whole in zip(one[1:], other[1:], expected[1:], strict=True):
        torch.testing.assert_close(torch.cat((mine, theirs)), whole.grad, rtol=1e-4, atol=2e-6)


def test_rows_of_logits_start_at_multiples_of_64_elements(monkeypatch):
    strides = set()
    plain = loss_file.cross_entropy

    def recorded(product_NV, *rest):
        strides.add((product_NV.shape[1], product_NV.stride()))
        return plain(product_NV, *rest)

    monkeypatch.setattr(loss_file, "cross_entropy", recorded)
    hidden, weight, bias, labels = rows(torch.bfloat16)
    linear_cross_entropy(hidden, weight, bias, labels).backward()
    assert strides == {(41, (64, 1))}
    assert [loss_file.padded(n) for n in (1, 64, 65, 50257, 50304)] == [64, 64, 128, 50304, 50304]


@pytest.mark.parametrize("num_rows", [1, 8, 9, 10, 18, 27])
def test_any_number_of_rows(num_rows):
    *factors, labels = rows(num_rows=num_rows, ignored=False)
    got, exact = linear_cross_entropy(*factors, labels), naive(*factors, labels)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)
    for a, b in zip(*(torch.autograd.grad(x, factors) for x in (got, exact)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("num_rows", [0, 5, 12])
def test_no_target_gives_zero_with_zero_gradients(num_rows):
    *factors, labels = rows(num_rows=num_rows)
    loss = linear_cross_entropy(*factors, torch.full_like(labels, -100), z_loss=0.1, label_smoothing=0.2)
    assert loss.item() == 0
    for factor, gradient in zip(factors, torch.autograd.grad(loss, factors), strict=True):
        assert gradient.shape == factor.shape
        assert not gradient.any()


def test_a_certain_token_has_the_small_loss_and_gradient_that_it_should_in_bf16():
    hidden, weight = torch.eye(2)[:1].bfloat16(), torch.tensor([[7.0, 0.0], [0.0, 0.0]]).bfloat16().requires_grad_()
    loss = linear_cross_entropy(hidden, weight, None, torch.tensor([0]))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-7)), rel=1e-4)
    assert gradient[0, 0].item() == pytest.approx(-1 / (1 + math.exp(7)), rel=1e-2)


def test_the_weight_gradient_of_many_bf16_chunks_accumulates_in_fp32():
    hidden, weight = torch.ones(900, WIDTH).bfloat16(), torch.zeros(VOCABULARY, WIDTH).bfloat16().requires_grad_()
    linear_cross_entropy(hidden, weight, None, torch.zeros(900, dtype=torch.long)).backward()
    # In bf16 each of the hundred additions of 9 / 41 would be rounded to a multiple of up to 1 / 8.
    torch.testing.assert_close(weight.grad[1:], torch.full_like(weight[1:], 900 / VOCABULARY), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_vocabulary_so_large_that_its_gradient_is_added_up_in_slabs(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(shape, generator=generator).to(dtype) for shape in ((20, 8), (9001, 8)))
    labels = torch.randint(0, 9001, (20,), generator=generator)
    exact_weight = weight.double().requires_grad_()
    F.cross_entropy(hidden.double() @ exact_weight.T, labels, reduction="sum").backward()
    linear_cross_entropy(hidden, weight.requires_grad_(), None, labels).backward()
    assert relative_error(weight.grad, exact_weight.grad) < tolerance


def test_logits_so_large_that_their_exponentials_overflow():
    *factors, labels = rows()
    factors = [factor.detach() * 30 for factor in factors]
    exact = F.cross_entropy(F.linear(*(factor.double() for factor in factors)), labels, reduction="sum")
    torch.testing.assert_close(linear_cross_entropy(*factors, labels).double(), exact, rtol=1e-6, atol=0)


def test_gradients_accumulate_over_several_losses_and_a_tied_weight():
    def run(loss, halves):
        hidden, weight, bias, labels = rows()
        for half in halves:
            tied = F.embedding(labels[half].clamp(min=0), weight) + hidden[half]
            (loss(tied, weight, bias, labels[half]) / 7).backward()
        return hidden.grad, weight.grad, bias.grad

    got, exact = run(linear_cross_entropy, [slice(0, 10), slice(10, ROWS)]), run(naive, [slice(0, ROWS)])
    for a, b in zip(got, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("frozen", range(3))
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen):
    *factors, labels = rows()
    expected = torch.autograd.grad(linear_cross_entropy(*factors, labels), factors)
    factors[frozen].requires_grad_(False)
    loss = linear_cross_entropy(*factors, labels)
    assert [x is None for x in loss.grad_fn.saved_tensors] == [place == frozen for place in range(3)]
    loss.backward()
    for place, factor in enumerate(factors):
        if place == frozen:
            assert factor.grad is None
        else:
            torch.testing.assert_close(factor.grad, expected[place], rtol=0, atol=0)


class Recorder(TorchDispatchMode):
    """Sizes of all results, and names of all operators."""

    def __init__(self):
        super().__init__()
        self.sizes, self.names = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket.__name__)
        self.sizes += [x.numel() for x in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(x)]
        return result


def test_no_logits_of_all_rows_and_each_product_once():
    *factors, labels = rows(num_rows=180)
    with Recorder() as recorder:
        linear_cross_entropy(*factors, labels).backward()
    assert max(recorder.sizes) <= 180 * WIDTH  # hidden itself; logits of 9 rows are far smaller
    assert sum(name in ("mm", "addmm_") for name in recorder.names) == 3 * 180 / 9


def test_without_gradients_none_are_computed():
    *factors, labels = rows()
    with Recorder() as recorder, torch.no_grad():
        loss = linear_cross_entropy(*factors, labels)
    assert not loss.requires_grad
    assert recorder.names.count("mm") == math.ceil(ROWS / 9)
    torch.testing.assert_close(loss, linear_cross_entropy(*factors, labels), rtol=0, atol=0)


def test_autograd_takes_the_gradient_over_without_a_copy():
    hidden, weight, _, labels = rows()
    loss = linear_cross_entropy(hidden, weight, None, labels)
    made = [x.data_ptr() for x in loss.grad_fn.saved_tensors[:2]]
    loss.backward()
    assert [hidden.grad.data_ptr(), weight.grad.data_ptr()] == made


def test_a_second_backward_is_refused():
    *factors, labels = rows()
    loss = linear_cross_entropy(*factors, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_that_are_not_contiguous():
    *factors, labels = rows()
    expected = torch.autograd.grad(linear_cross_entropy(*factors, labels), factors)
    strided = [torch.stack([x, x], -1).detach()[..., 0].requires_grad_() for x in factors]
    strided[1] = factors[1].detach().T.contiguous().T.requires_grad_()  # column by column; the others with gaps
    labels = torch.stack([labels, labels], -1)[:, 0]
    assert not any(x.is_contiguous() for x in (*strided, labels))
    for a, b in zip(torch.autograd.grad(linear_cross_entropy(*strided, labels), strided), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_label_outside_the_vocabulary_is_refused():
    *factors, labels = rows()
    labels[1] = VOCABULARY
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        linear_cross_entropy(*factors, labels)


def test_targets_are_kept_with_their_rows_and_nothing_is_copied_where_all_are():
    hidden, _, _, labels = rows()
    kept, kept_labels = keep_targets(hidden, labels)
    torch.testing.assert_close(kept, hidden[labels != -100], rtol=0, atol=0)
    assert torch.equal(kept_labels, labels[labels != -100])
    assert keep_targets(kept, kept_labels)[0] is kept


@pytest.mark.parametrize("element_size", [2, 4])
@pytest.mark.parametrize("vocabulary", [97, 8192, 50304, 262144])
@pytest.mark.parametrize("num_rows", [0, 1, 2048, 2049, 100_000])
def test_pieces_are_within_their_bounds_and_even(num_rows, vocabulary, element_size):
    for device, limit in (("cpu", 100), ("cuda", 512)):
        chunk, block = rows_at_a_time(num_rows, vocabulary, element_size, device)
        assert chunk >= 1
        assert block >= 1
        assert chunk * vocabulary * element_size <= limit * 2**20
        shortest = num_rows - chunk * (math.ceil(num_rows / chunk) - 1)
        assert num_rows == 0 or chunk - shortest < math.ceil(num_rows / chunk)
    assert rows_at_a_time(2048, 50304, 4, "cpu") == (512, 20)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_a_compiled_model_gives_the_same_loss_and_gradients(build, tokens, kind, backend):
    model, ids, labels = build(kind, num_hidden_layers=1), tokens(2, 12), tokens(2, 12, seed=1)
    labels[:, ::3] = -100
    parameters = list(model.parameters())
    compiled = torch.compile(model, backend=backend)
    for part in (slice(0, 2), slice(0, 1)):  # another number of targets
        got, expected = (m(ids[part], labels_BT=labels[part], z_loss=0.1) for m in (compiled, model))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
        for a, b in zip(*(torch.autograd.grad(x, parameters) for x in (got, expected)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_rows_of_targets_that_are_given_are_those_that_are_searched(build, tokens, kind):
    model, ids, labels = build(kind, num_hidden_layers=1), tokens(2, 12), tokens(2, 12, seed=1)
    labels[:, ::3] = -100
    target_rows = (labels.flatten() != -100).nonzero()[:, 0]
    expected = model(ids, labels_BT=labels)
    assert model(ids, labels_BT=labels, target_rows=target_rows) == expected
    assert model(ids, labels_BT=labels, target_rows=target_rows[1:]) < expected  # they are used
    assert model(ids, labels_BT=torch.full_like(labels, -100), target_rows=target_rows[:0]) == 0
