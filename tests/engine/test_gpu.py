"""On a GPU: every attention kernel against float64, the 8B layer's shape in bf16, fp16 as on a T4, graphs, offload."""

import threading
from contextlib import suppress
from itertools import pairwise

import pytest
import torch
from families import adapted_model, batch, step, worst
from torch.nn import functional as F

from sloth_nb.engine import graphs
from sloth_nb.engine.attention import Composite, CuDNN, Efficient, Flash
from sloth_nb.engine.mlp_half import MlpHalf
from sloth_nb.engine.policy import LayerPolicy
from sloth_nb.engine.sequences import Sequences
from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of

pytestmark = pytest.mark.gpu

CASES = {
    "cudnn": (lambda s, g, w: CuDNN(s), torch.bfloat16, None, False),
    "cudnn-fp16": (lambda s, g, w: CuDNN(s), torch.float16, None, False),
    "flash": (lambda s, g, w: Flash(s), torch.bfloat16, None, False),
    "flash-window": (lambda s, g, w: Flash(s, w), torch.bfloat16, 37, False),
    "flash-packed": (lambda s, g, w: Flash(s), torch.bfloat16, None, True),
    "flash-packed-window": (lambda s, g, w: Flash(s, w), torch.bfloat16, 37, True),
    "efficient-fp16": (lambda s, g, w: Efficient(s, g), torch.float16, None, False),
    "efficient-fp32": (lambda s, g, w: Efficient(s, g), torch.float32, None, False),
    "efficient-window": (lambda s, g, w: Efficient(s, g, w), torch.float16, 37, False),
    "efficient-packed": (lambda s, g, w: Efficient(s, g), torch.float16, None, True),
    "efficient-packed-window": (lambda s, g, w: Efficient(s, g, w), torch.float16, 37, True),
    "composite": (lambda s, g, w: Composite(s, g, w), torch.float32, 37, True),
}


def reference(q, k, v, scale, window, bounds):
    """Attention in float64, sequence by sequence, head by head."""
    outs = []
    for a, b in bounds:
        groups = q.shape[1] // k.shape[1]
        qs, ks, vs = (x[a:b].transpose(0, 1) for x in (q, k, v))
        ks, vs = ks.repeat_interleave(groups, 0), vs.repeat_interleave(groups, 0)
        i = torch.arange(b - a, device=q.device)
        distance = i[:, None] - i[None, :]
        seen = (distance >= 0) & ((distance < window) if window else True)
        scores = (qs @ ks.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        outs.append((scores.softmax(-1) @ vs).transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("name", sorted(CASES))
def test_attention_forward_and_backward_match_float64(name):
    make, dtype, window, packed = CASES[name]
    if dtype is torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this device has no bf16")
    torch.manual_seed(0)
    heads, kv_heads, dim, scale = 4, 2, 64, 0.1
    if packed:
        edges = [0, 70, 71, 200, 256]
        seqs = Sequences(1, 129, torch.tensor(edges, device="cuda", dtype=torch.int32), 256)
        bounds = list(pairwise(edges))
    else:
        seqs, bounds = Sequences(2, 128), [(0, 128), (128, 256)]
    fused = torch.randn(256, (heads + 2 * kv_heads) * dim, device="cuda", dtype=dtype)
    q, k, v = fused.split([heads * dim, kv_heads * dim, kv_heads * dim], 1)
    q, k, v = q.unflatten(1, (heads, -1)), k.unflatten(1, (kv_heads, -1)), v.unflatten(1, (kv_heads, -1))
    kernel = make(scale, heads // kv_heads, window)
    out, extra = kernel.forward(q, k, v, seqs)
    dout = torch.randn_like(out)
    grads = kernel.backward(dout, q, k, v, out, extra, seqs)
    leaves = [x.double().detach().requires_grad_() for x in (q, k, v)]
    truth = reference(*leaves, scale, window, bounds)
    truths = torch.autograd.grad(truth, leaves, dout.double())
    # Probabilities and their gradients are rounded to the dtype before the second product: a few units of 2^-8 (bf16).
    limit = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 2e-3}[dtype]
    for got, wanted in zip((out, *grads), (truth, *truths), strict=True):
        assert float((got.double() - wanted).norm() / wanted.norm()) < limit


def on_gpu(model, inputs, dtype=None):
    model.cuda()
    if dtype is not None:
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
    return model, {n: t.cuda() for n, t in inputs.items()}


def wide_ones_between(layers):
    """What the "sloth" rule makes: everything but gate_up goes to the host, in some layers gate_up too."""
    moved = frozenset({"input", "qkv", "attention", "middle"})
    return [LayerPolicy(frozenset(), moved | ({"gate_up"} if i % 2 else set())) for i in range(layers)]


@pytest.mark.parametrize("policy", ["keep", "recompute", "offload", "wide"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "phi3"])
def test_fp32_gradients_match_peft(family, policy):
    model, inputs = on_gpu(adapted_model(family), batch())
    wanted = step(model, **inputs)
    if policy == "wide":
        policy = wide_ones_between(model.config.num_hidden_layers)
    install(model, policy, cuda_graphs=False, mlp_tile=16)
    loss, grads = step(model, **inputs)
    assert abs(float(loss - wanted[0])) < 1e-4 and worst(grads, wanted[1]) < 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_a_replayed_step_gives_the_gradients_of_an_eager_one(family):
    model, _ = on_gpu(adapted_model(family), batch())
    install(model, True, cuda_graphs=False)
    wanted = [step(model, **on_gpu(model, batch(seed=seed))[1]) for seed in range(6)]
    install(model, True)
    for seed, (loss, grads) in enumerate(wanted):
        got_loss, got = step(model, **on_gpu(model, batch(seed=seed))[1])
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4
    replays = engine_of(model).captured.replays
    assert len(replays) and replays.disabled_because is None


@pytest.mark.parametrize("policy", [True, "offload"])
def test_batches_of_any_length_are_replayed_from_one_capture(policy):
    model, _ = on_gpu(adapted_model("llama"), batch())
    batches = [on_gpu(model, batch(2, length, seed=length))[1] for length in (38, 45, 33, 47, 40, 48, 36)]
    install(model, policy, cuda_graphs=False)
    wanted = [step(model, **inputs) for inputs in batches]
    install(model, policy)
    for inputs, (loss, grads) in zip(batches, wanted, strict=True):
        got_loss, got = step(model, **inputs)
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4
    replays = engine_of(model).captured.replays
    assert len(replays) == 1 and replays.disabled_because is None


def test_what_was_replayed_for_a_model_that_stands_differently_is_thrown_away():
    model, inputs = on_gpu(adapted_model("llama"), batch())
    adapter = model.get_base_model().model.layers[1].mlp.down_proj
    install(model, True, cuda_graphs=False)
    by_scaling = {}
    for scaling in (1.5, 5.0):
        adapter.scaling["default"] = scaling
        by_scaling[scaling] = step(model, **inputs)
    install(model, True)
    for scaling in (1.5, 5.0, 5.0, 1.5, 5.0):
        adapter.scaling["default"] = scaling
        wanted = by_scaling[scaling]
        for _ in range(3):
            loss, grads = step(model, **inputs)
            assert abs(float(loss - wanted[0])) < 1e-5 and worst(grads, wanted[1]) < 1e-4


def test_replayed_gradients_accumulate_and_two_forwards_may_wait():
    model, _ = on_gpu(adapted_model("llama"), batch())
    batches = [on_gpu(model, batch(seed=seed))[1] for seed in range(4)]

    def accumulate():
        model.zero_grad(set_to_none=True)
        for inputs in batches[:2]:
            model(**inputs).loss.backward()
        (model(**batches[2]).loss + model(**batches[3]).loss).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    install(model, True, cuda_graphs=False)
    wanted = accumulate()
    install(model, True)
    for _ in range(3):
        assert worst(accumulate(), wanted) < 1e-4


def test_several_captured_shapes_share_their_memory_and_keep_apart():
    model, _ = on_gpu(adapted_model("llama"), batch())
    shapes = [(8, 512), (8, 384), (4, 512)]
    batches = [on_gpu(model, batch(*shape, seed=seed))[1] for seed in range(2) for shape in shapes]
    for policy in (True, "offload"):
        install(model, policy, cuda_graphs=False)
        wanted = [step(model, **inputs) for inputs in batches]
        install(model, policy)
        reserved = []
        for inputs in (None, *batches[:3]):
            for _ in range(3 if inputs else 0):
                step(model, **inputs)
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved())
        replays = engine_of(model).captured.replays
        assert len(replays) == 3 and replays.disabled_because is None
        assert reserved[3] - reserved[1] < 0.5 * (reserved[1] - reserved[0])
        for _ in range(2):
            for inputs, (loss, grads) in zip(batches, wanted, strict=True):
                got_loss, got = step(model, **inputs)
                assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4


def test_a_captured_shape_is_right_after_more_lengths_than_rotations_are_kept_of():
    model, _ = on_gpu(adapted_model("llama"), batch())
    first = on_gpu(model, batch())[1]
    install(model, True, cuda_graphs=False)
    loss, grads = step(model, **first)
    install(model, True)
    for length in (*[19] * 4, *range(20, 60)):
        step(model, **on_gpu(model, batch(1 if length > 19 else 2, length))[1])
    torch.full((1 << 22,), float("nan"), device="cuda")  # whatever was freed is written over
    got_loss, got = step(model, **first)
    assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4


def test_a_capture_that_is_broken_off_leaves_the_stream_and_the_next_steps_as_they_were(monkeypatch):
    model, _ = on_gpu(adapted_model("llama"), batch())
    inputs = on_gpu(model, batch())[1]
    install(model, True, cuda_graphs=False)
    loss, grads = step(model, **inputs)
    stream = torch.cuda.current_stream()
    for error in (KeyboardInterrupt, torch.OutOfMemoryError, RuntimeError):
        install(model, "offload")

        def breaks(self, *args, keeps, error=error, forward=MlpHalf.forward):
            if torch.cuda.is_current_stream_capturing():
                raise error("in the middle")
            return forward(self, *args, keeps=keeps)

        with monkeypatch.context() as broken:
            broken.setattr(MlpHalf, "forward", breaks)
            for _ in range(4):
                with suppress(KeyboardInterrupt):
                    step(model, **inputs)
        assert torch.cuda.current_stream() == stream
        got_loss, got = step(model, **inputs)
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4


def test_other_threads_use_the_device_while_a_step_is_captured():
    model, _ = on_gpu(adapted_model("llama"), batch())
    over, failed = threading.Event(), []

    def pins():
        while not over.is_set():
            try:
                torch.empty(1 << 20).pin_memory().cuda(non_blocking=True).sum().item()
            except RuntimeError as error:
                failed.append(error)

    thread = threading.Thread(target=pins)
    thread.start()
    try:
        install(model, True)
        for length in range(19, 27):
            for _ in range(4):
                step(model, **on_gpu(model, batch(2, length))[1])
    finally:
        over.set()
        thread.join()
    assert not failed and engine_of(model).captured.replays.disabled_because is None


def test_a_shape_of_which_no_second_step_would_fit_is_not_captured(monkeypatch):
    model, _ = on_gpu(adapted_model("llama"), batch())
    install(model, True, cuda_graphs=False)
    loss, grads = step(model, **on_gpu(model, batch())[1])
    monkeypatch.setattr(graphs, "unreserved", lambda device: -1)
    install(model, True)
    for _ in range(5):
        got_loss, got = step(model, **on_gpu(model, batch())[1])
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-4
    assert (
        not len(engine_of(model).captured.replays)
        and engine_of(model).captured.replays.disabled_because is None
    )


def test_replayed_packed_batches_follow_their_boundaries():
    model, _ = on_gpu(adapted_model("llama"), batch(), torch.float16)
    batches = []
    for lengths in ([5, 9, 18], [16, 16], [30, 2], [1, 1, 30], [8, 8, 8, 8]):
        ids = batch(1, 32, seed=len(lengths))["input_ids"].cuda()
        positions = torch.cat([torch.arange(n) for n in lengths])[None].cuda()
        cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32).cuda()
        told = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 32, "max_length_k": 32}
        batches.append(
            {"input_ids": ids, "labels": ids.masked_fill(positions == 0, -100), "position_ids": positions}
            | told
        )
    install(model, True, cuda_graphs=False)
    wanted = [step(model, **inputs) for inputs in batches]
    install(model, True)
    for _ in range(4):
        for inputs, (loss, grads) in zip(batches, wanted, strict=True):
            got_loss, got = step(model, **inputs)
            assert abs(float(got_loss - loss)) < 1e-3 and worst(got, grads) < 1e-2


def test_fp16_with_a_grad_scaler_trains_without_nan():
    model, inputs = on_gpu(adapted_model("llama"), batch(), torch.float16)
    install(model, "sloth")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser, scaler = torch.optim.AdamW(parameters, lr=1e-2), torch.amp.GradScaler("cuda")
    losses = []
    for _ in range(120):
        with torch.autocast("cuda", dtype=torch.float16):
            loss = model(**inputs).loss
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    assert all(loss == loss for loss in losses) and losses[-1] < 0.5 * losses[0]
    assert all(bool(torch.isfinite(p).all()) for p in parameters)


def test_bf16_at_the_8b_layers_shape_agrees_with_fp32():
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=2,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096,
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules=targets)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01)
            elif not parameter.requires_grad:  # both sides see weights that bf16 can say
                parameter.copy_(parameter.bfloat16())
    ids = torch.randint(0, 32000, (2, 512), device="cuda")
    loss, wanted = step(model, input_ids=ids, labels=ids)

    def cosine(grads):
        """Of all adapters' gradients with the fp32 ones."""
        return float(
            F.cosine_similarity(*(torch.cat([g[n].flatten() for n in wanted]) for g in (grads, wanted)), 0)
        )

    def furthest(grads):
        return min(float(F.cosine_similarity(grads[n].flatten(), wanted[n].flatten(), 0)) for n in wanted)

    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    _, theirs = step(model, input_ids=ids, labels=ids)
    for policy in ("keep", "recompute", "offload"):
        install(model, policy, mlp_tile=512)
        got_loss, got = step(model, input_ids=ids, labels=ids)
        assert abs(float(got_loss - loss)) < 1e-3
        assert cosine(got) >= 0.9995 and cosine(got) > cosine(theirs)
        assert furthest(got) >= min(0.9995, furthest(theirs))
