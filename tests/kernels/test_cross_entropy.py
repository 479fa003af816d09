"""Cross-entropy against float64: any vocabulary, soft-cap, scale, smoothing, ignored rows, gradient in
place."""

import pytest
import torch
from sloth_nb_kernels import cross_entropy, cross_entropy_forward, cross_entropy_reference

SHAPES = [(1, 2), (2, 4097), (7, 100), (0, 64)]
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 30.0},
    "scaled": {"scale": 0.0625, "ignore_index": 3},
    "smoothed": {"smoothing": 0.1},
    "all": {"scale": 2.5, "softcap": 15.0, "smoothing": 0.05},
}


def targets_for(rows, vocab, ignore_index, device):
    targets = (torch.arange(rows) * 7919 + 1) % vocab
    targets[2::3] = ignore_index
    return targets.to(device)


def exact(logits, targets, **options):
    """Losses, gradient and their scales in float64, by autograd through the reference."""
    logits, targets = logits.double().cpu().requires_grad_(), targets.cpu()
    loss = cross_entropy_reference(logits, targets, **options)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    scale, softcap = options.get("scale", 1.0), options.get("softcap")
    z = (
        logits.detach() * scale
        if softcap is None
        else softcap * torch.tanh(logits.detach() * scale / softcap)
    )
    # A probability's relative error is z's absolute one: |z| and log-sum-exp, rounded to fp32, in the
    # exponent.
    size = z.abs().amax(-1, keepdim=True) + torch.logsumexp(z, -1, keepdim=True).abs() + 1.0
    p = torch.softmax(z, -1) * (targets != options.get("ignore_index", -100))[:, None]
    grad_scale = grad.abs() + scale * (p * size + 1e-3 * (grad != 0))
    return (loss.detach(), size[:, 0] * (loss != 0)), (grad, grad_scale)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_loss_and_gradient_match_float64(randn, assert_close, device, dtype, shape, options):
    check(randn, assert_close, device, dtype, shape, options)


@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("shape", [(3, 32000), (1, 262145)], ids=lambda s: "x".join(map(str, s)))
def test_wide_vocabularies_match_float64(randn, assert_close, device, dtype, shape, options):
    check(randn, assert_close, device, dtype, shape, OPTIONS[options])


def test_many_rows_match_float64(randn, assert_close, device):
    check(randn, assert_close, device, torch.float32, (127, 33), {})
    logits, targets = randn(2049, 33, scale=4), targets_for(2049, 33, -100, device)
    (loss64, loss_scale), _ = exact(logits, targets)
    assert_close(cross_entropy_forward(logits, targets).loss.cpu(), loss64, loss_scale)


def check(randn, assert_close, device, dtype, shape, options):
    logits, targets = (
        randn(*shape, dtype=dtype, scale=4),
        targets_for(*shape, options.get("ignore_index", -100), device),
    )
    (loss64, loss_scale), (grad64, grad_scale) = exact(logits, targets, **options)
    grad = torch.empty_like(logits)
    got = cross_entropy_forward(logits, targets, grad_out=grad, **options)
    assert got.entropy is None and got.correct is None
    assert_close(got.loss.cpu(), loss64, loss_scale)
    assert_close(grad.cpu(), grad64, grad_scale)
    again = cross_entropy_forward(logits, targets, grad_out=logits, **options)
    assert torch.equal(again.loss, got.loss) and torch.equal(logits, grad)


def test_rows_of_a_wider_buffer_are_used_as_they_are(randn, device):
    buffer, targets = randn(5, 700), targets_for(5, 600, -100, device)
    want_grad = torch.empty(5, 600, device=device)
    want = cross_entropy_forward(buffer[:, :600].contiguous(), targets, grad_out=want_grad).loss
    kept = buffer[:, 600:].clone()
    got = cross_entropy_forward(buffer[:, :600], targets, grad_out=buffer[:, :600]).loss
    assert (
        torch.equal(got, want)
        and torch.equal(buffer[:, :600], want_grad)
        and torch.equal(buffer[:, 600:], kept)
    )


def test_statistics_say_how_sure_and_how_often_right(randn, device):
    logits, targets = randn(9, 5000, scale=3), targets_for(9, 5000, -100, device)
    logits[0, targets[0]] = 50.0
    logits[1, 7:] = -float("inf")
    targets[1] = 3
    _, entropy, correct = cross_entropy_forward(logits, targets, statistics=True)
    trained = targets != -100
    p = torch.softmax(logits.double(), -1)
    want = -(p * p.clamp(min=1e-300).log()).sum(-1) * trained
    torch.testing.assert_close(entropy.double(), want, rtol=1e-5, atol=1e-6)
    right = (logits.argmax(-1) == targets) & trained
    assert correct.tolist() == right.float().tolist() and correct[0] == 1


def test_an_ignored_row_has_no_loss_and_no_gradient_even_when_it_holds_nan(device):
    logits = torch.full((2, 10), float("nan"), device=device)
    logits[1] = 0.0
    targets = torch.tensor([-100, 4], device=device)
    grad = torch.empty_like(logits)
    loss = cross_entropy_forward(logits, targets, grad_out=grad).loss
    assert not grad[0].any() and grad[1].isfinite().all()
    assert loss[0] == 0 and abs(loss[1].item() - torch.tensor(10.0).log().item()) < 1e-6


def test_huge_logits_do_not_overflow(device):
    logits = torch.tensor([[6e4, -6e4, 0.0], [-6e4, -6e4, -6e4]], device=device)
    grad = torch.empty_like(logits)
    loss = cross_entropy_forward(logits, torch.tensor([1, 0], device=device), grad_out=grad).loss
    torch.testing.assert_close(loss.cpu(), torch.tensor([1.2e5, 1.0986123]), rtol=1e-6, atol=1e-2)
    torch.testing.assert_close(
        grad.cpu(), torch.tensor([[1.0, -1.0, 0.0], [-2 / 3, 1 / 3, 1 / 3]]), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_autograd_matches_torch(randn, device, overwrite):
    logits, targets = randn(6, 300), targets_for(6, 300, -100, device)
    want_leaf, leaf = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    options = {"label_smoothing": 0.1, "ignore_index": -100}
    want = torch.nn.functional.cross_entropy(want_leaf, targets, **options)
    (want_grad,) = torch.autograd.grad(want * 8, want_leaf)
    got = cross_entropy(leaf, targets, smoothing=0.1, overwrite_logits=overwrite)
    torch.testing.assert_close(got, want)
    (grad,) = torch.autograd.grad(got * 8, leaf, retain_graph=True)
    torch.testing.assert_close(grad, want_grad, rtol=1e-5, atol=1e-7)
    with pytest.raises(RuntimeError, match="run the forward again"):
        torch.autograd.grad(got * 8, leaf)


def test_reductions_and_the_divisor(randn, device):
    logits, targets = randn(6, 300), targets_for(6, 300, -100, device)
    rows = cross_entropy(logits, targets, reduction="none")
    assert rows.shape == (6,) and rows.ne(0).sum() == 4
    torch.testing.assert_close(cross_entropy(logits, targets, reduction="sum"), rows.sum())
    torch.testing.assert_close(cross_entropy(logits, targets), rows.sum() / 4)
    torch.testing.assert_close(cross_entropy(logits, targets, num_items=16), rows.sum() / 16)
    with pytest.raises(ValueError, match="mean, sum or none, got 'median'"):
        cross_entropy(logits, targets, reduction="median")


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\), \(2,\)"):
        cross_entropy_forward(torch.ones(3, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="grad_out must be"):
        cross_entropy_forward(torch.ones(3, 4), torch.zeros(3, dtype=torch.long), grad_out=torch.ones(3, 5))


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """A gradient whose sum runs over one logit less, or without the soft-cap's slope, is outside the
    bound."""
    logits, targets = randn(2, 1000, dtype=dtype, scale=4), torch.tensor([3, 5], device=device)
    for wrong_options, options in (({"smoothing": 0.02}, {}), ({}, {"softcap": 15.0})):
        _, (grad64, grad_scale) = exact(logits, targets, **options)
        grad = torch.empty_like(logits)
        cross_entropy_forward(logits, targets, grad_out=grad, **wrong_options)
        with pytest.raises(AssertionError):
            assert_close(grad.cpu(), grad64, grad_scale)
    (loss64, loss_scale), _ = exact(logits, targets)
    with pytest.raises(AssertionError):
        short = cross_entropy_forward(logits[:, : logits[0].argmax()], targets).loss
        assert_close(short.cpu(), loss64, loss_scale)


@pytest.mark.gpu
def test_a_target_outside_the_vocabulary_gives_nan_and_reads_nothing_beyond():
    logits = torch.zeros(2, 10, device="cuda")
    loss = cross_entropy_forward(logits, torch.tensor([10, 2**40], device="cuda")).loss
    assert loss.isnan().all()
