"""All layers of a model of Pythia-410M's shape, trained together: tokens a second, and memory."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.profile import host_waits
from benchmarks.roofline import Ceilings
from trustbench.buffer import ActivationBuffer
from trustbench.models import ActivationCapture, resolve_hook_points
from trustbench.ops.spec import Shape
from trustbench.sae import SAE, SAEConfig
from trustbench.steps.triton import DeviceTrainer, GraphMemory
from trustbench.training import TrainConfig
from trustbench.training.memory import predict
from trustbench.training.streams import Streams


class Job(NamedTuple):
    """One regime of training."""

    name: str
    activation: str
    dense_above: float = 0.0
    state_dtype: str = "fp32"
    l0: int = 0  # for "relu": b_enc starts so that about so many features are active; 0: as they come


JOBS = (
    Job("TopK", "topk"),
    Job("TopK, bf16 state", "topk", state_dtype="bf16"),
    Job("ReLU, dense regime", "relu"),
    Job("ReLU, sparse regime, L0 about 150", "relu", float("inf"), l0=150),
    Job("BatchTopK", "batchtopk"),
)


class Outcome(NamedTuple):
    """What a job measured."""

    name: str
    tokens_per_second: float
    tokens_per_second_without_model: float
    floor_tokens_per_second: float  # the job's matmuls and optimiser traffic, one after the other
    peak_bytes: int
    predicted_bytes: float
    host_waits: int  # synchronising calls of the CUDA runtime in three steps
    l0: float


def make_model(layers: int, d: int, vocabulary: int, device: torch.device) -> Any:
    """A GPT-NeoX of Pythia's proportions with random weights, in bf16."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=d, num_hidden_layers=layers,
        num_attention_heads=max(1, d // 64), intermediate_size=4 * d, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device(device):
        model = GPTNeoXForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def run(
    job: Job, model: Any, shape: Shape, context: int, ceilings: Ceilings, *, seconds: float
) -> Outcome:
    """Train for about `seconds` with the model's forward, and as long without."""
    device, (N, d, F, k) = model.device, shape
    rows = max(1, N // context)
    points = resolve_hook_points(model, "all")
    capture = ActivationCapture(model, points)
    widths = {point.name: d for point in points}
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    buffer = ActivationBuffer(
        widths, 16 * N if on_gpu else 2 * N + rows * context, dtype=torch.bfloat16, device=device
    )
    streams, graphs = Streams(device), GraphMemory() if on_gpu else None
    sae_config = SAEConfig(
        d_in=d,
        d_sae=F,
        k=k,
        activation=job.activation,
        l1_coefficient=1e-4,
        auxk=0,  # type: ignore[arg-type]
    )
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    trainers = {}
    for name in widths:
        with torch.device(device):
            sae = SAE(sae_config)
        trainers[name] = DeviceTrainer(
            sae, name=name, graphs=graphs, dense_above=job.dense_above,
            moment_dtype=kinds[job.state_dtype],
        )  # fmt: skip
    ids = torch.randint(model.config.vocab_size, (rows, context), device=device)

    def fill() -> None:
        while buffer.space >= rows * context:
            acts = capture.run(ids)
            buffer.put({name: a.flatten(0, 1) for name, a in acts.items()})

    fill()
    if job.l0:
        for name, sample in buffer.peek(1024).items():
            trainer = trainers[name]
            pre = sample.float() @ trainer.weights.W_enc.T
            least = pre.topk(min(job.l0, F // 4), dim=1).values[:, -1]
            trainer.weights.b_enc.fill_(-least.mean().item())

    def step(batch: dict[str, Tensor], measure: bool) -> float:
        results = [t.step(batch[n], 1e-5, measure=measure) for n, t in trainers.items()]
        return sum(r.l0 for r in results if r) / len(results)

    def with_model(measure: bool = False) -> float:
        batch = buffer.take(N)
        with streams.beside():
            fill()
        l0 = step(batch, measure)
        streams.join()
        return l0

    l0 = with_model(measure=True)
    for _ in range(2):
        with_model()
    waits = host_waits(with_model) if on_gpu else 0
    speed = _rate(with_model, N, seconds, device)
    batch = buffer.take(N)
    alone = _rate(lambda: step(batch, False), N, seconds, device)
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else 0
    config = TrainConfig(
        model="random", data="none", out="none", tokens=1, sae=sae_config, batch_size=N,
        context_length=context, model_rows=rows, state_dtype=job.state_dtype,  # type: ignore[arg-type]
        buffer_tokens=buffer.capacity,
    )  # fmt: skip
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = predict(config, widths, size)
    layers = len(widths)
    matmuls = 5 if job.activation == "relu" and not job.l0 else 1
    gathers = 0.0 if matmuls == 5 else 3 * 2.0 * l0 * d
    forward = 2.0 * sum(p.numel() for n, p in model.named_parameters() if "embed" not in n)
    state = 2 * F * d * ((24 if job.state_dtype == "fp32" else 16) + 4) / N
    floor = forward / ceilings.flops["bf16"] + layers * (
        matmuls * 2.0 * d * F / ceilings.flops["bf16"] + (gathers + state) / ceilings.bytes_per_second
    )
    return Outcome(job.name, speed, alone, 1 / floor, peak, needed.total - needed.other, waits, l0)


def _rate(step: Any, N: int, seconds: float, device: torch.device) -> float:
    """Tokens a second over about so many seconds (at least three steps)."""
    on_gpu = device.type == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize(device)

    wait()
    started, steps = time.perf_counter(), 0
    while steps < (3 if on_gpu else 1) or time.perf_counter() - started < seconds:
        step()
        steps += 1
        if steps % 4 == 0:
            wait()  # or the clock would only see how fast steps are queued
    wait()
    return steps * N / (time.perf_counter() - started)
