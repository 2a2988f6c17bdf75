"""The timers of titans-pytorch 0.5.5, for a process with torch and without jax."""

from typing import Any

from titans_jax.bench.processes import Timer, cores, timer

DIM, HEADS, HEAD_DIM, SEGMENT = 256, 4, 64, 64


def neural_memory(
    torch: Any, titans: Any, dim: int, *, heads: int, depth: int, chunk: int, batch: int, max_rate: float
) -> Any:
    """titans-pytorch's NeuralMemory set up as in the paper, with a gradient anchor every `batch` tokens.

    With chunk 1 it computes the recurrence that ours computes; see `titans_jax.interop`.
    """
    return titans.NeuralMemory(
        dim,
        heads=heads,
        dim_head=dim // heads,
        chunk_size=chunk,
        batch_size=batch,
        model=titans.MemoryMLP(dim // heads, depth, 4.0),
        activation=torch.nn.SiLU(),
        momentum=True,
        qk_rmsnorm=True,
        pre_rmsnorm=False,
        post_rmsnorm=False,
        mem_model_norm_add_residual=False,
        store_memory_loss_fn=lambda prediction, target: (prediction - target).pow(2).sum(-1),
        default_step_transform_max_lr=max_rate,
        max_grad_norm=None,
    )


def memory(chunk: int, length: int, batch: int) -> Timer:
    """The gradient of `neural_memory` in x [B, T, 256] and in every parameter."""
    torch, titans = _libraries()
    layer = neural_memory(torch, titans, DIM, heads=HEADS, depth=2, chunk=chunk, batch=SEGMENT, max_rate=1e-4)
    _own_memory(layer)
    x, cotangent = torch.randn(2, batch, length, DIM)
    x.requires_grad_()

    def call() -> None:
        layer.zero_grad()
        x.grad = None
        y, _ = layer(x)
        (y * cotangent).sum().backward()

    return timer(call)


def training_step(length: int, batch: int) -> Timer:
    """A step of MemoryAsContextTransformer with AdamW on tokens [B, T] drawn at random."""
    torch, model = _mac()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, 256, (batch, length + 1))

    def call() -> None:
        optimizer.zero_grad()
        model(tokens, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return timer(call)


def tokens(context: int) -> Timer:
    """64 tokens of one sequence after a context, greedily and with its caches, as its `sample` does."""
    torch, model = _mac()
    model.eval()
    with torch.no_grad():
        longest = context + 64 * 64
        dims = model.axial_pos_emb.maybe_derive_outer_dim(longest, (model.neural_memory_segment_len,))
        positions = model.axial_pos_emb(dims, return_factorized=True)
        out = torch.randint(0, 256, (1, context))
        options: dict[str, Any] = dict(disable_flex_attn=True, return_cache=True, factorized_pos_emb=positions)
        logits, cache = model(out, **options)

    def call() -> None:
        nonlocal out, logits, cache
        with torch.no_grad():
            for _ in range(64):
                out = torch.cat((out, logits[:, -1].argmax(-1, keepdim=True)), -1)
                logits, cache = model(out, cache=cache, **options)

    return timer(call)


def _mac() -> tuple[Any, Any]:
    """torch and MAC: width 256, depth 4, a memory in layers 2 and 4, segments of 64 tokens.

    It has one residual stream, as ours has.
    """
    torch, titans = _libraries()
    torch.manual_seed(0)
    heads = dict(heads=HEADS, dim_head=HEAD_DIM)
    model = titans.MemoryAsContextTransformer(
        num_tokens=256,
        dim=DIM,
        depth=4,
        segment_len=SEGMENT,
        num_persist_mem_tokens=4,
        **heads,
        num_residual_streams=1,
        neural_memory_layers=(2, 4),
        neural_memory_segment_len=SEGMENT,
        neural_memory_batch_size=SEGMENT,
        neural_memory_kwargs=heads,
    )
    _own_memory(model)
    return torch, model


def _own_memory(module: Any) -> None:
    """Copy the initial weights of every head: they are views of one tensor, which no optimizer takes."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()


def _libraries() -> tuple[Any, Any]:
    import titans_pytorch
    import torch

    torch.set_flush_denormal(True)  # as XLA does, before there are threads; else decayed weights cost up to ten times
    torch.set_num_threads(cores())
    return torch, titans_pytorch
