"""The training loss: next-token cross-entropy with label smoothing and z-loss."""

import jax
import jax.numpy as jnp


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted mean cross-entropy of unmasked tokens, and sums for evaluation.

    With log Z = logsumexp(logits) and s = label_smoothing (Szegedy et al. 2016, section 7):
        loss = mean(log Z - (1 - s) logits[target] - s mean(logits) + z_loss (log Z)^2)
    The last term is PaLM's (Chowdhery et al. 2022, section 5), which uses z_loss = 1e-4.

    Args:
        logits: [..., vocab], any float dtype; computed in float32 (float64 for float64 logits).
        targets: int [...]. An unmasked id outside the vocabulary gives NaN; masked ids may be anything.
        mask: [...], a token's weight in the loss, mostly 1; 0 for tokens that do not count.
        label_smoothing: probability spread evenly over the vocabulary, in [0, 1).
        z_loss: weight of (log Z)^2, 0 or more.

    Returns:
        loss: scalar, in nats; 0 if every token is masked.
        sums: `dict(nll, correct, tokens)`, sums over unmasked tokens of -log p(target), without smoothing and z-loss;
            of argmax(logits) == target; and of 1.

    Raises ValueError: shapes that do not match, or a coefficient out of range.

    >>> loss, sums = cross_entropy(jnp.zeros([1, 2, 4]), jnp.array([[3, -1]]), jnp.array([[1, 0]]))
    >>> float(loss / jnp.log(4)), float(sums["tokens"])
    (1.0, 1.0)
    """
    if not logits.shape[:-1] == targets.shape == mask.shape:
        raise ValueError(
            f"cross_entropy: logits {logits.shape}, targets {targets.shape} and mask {mask.shape} do not match; "
            "they must be [..., vocab], [...] and [...]"
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"cross_entropy: label_smoothing is {label_smoothing}, it must be in [0, 1)")
    if not z_loss >= 0:
        raise ValueError(f"cross_entropy: z_loss is {z_loss}, it must be 0 or more")

    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    vocab, counts = logits.shape[-1], mask != 0
    logits = jnp.where(counts[..., None], logits, 0)  # what a masked token holds reaches no gradient, inf included
    # A comparison, not a gather: it needs no communication if the vocabulary is sharded, and no scatter backward.
    is_target = targets[..., None] == jnp.arange(vocab)
    target_logit = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    target_logit = jnp.where((targets >= 0) & (targets < vocab), target_logit, jnp.nan)
    log_z = jax.nn.logsumexp(logits, axis=-1)

    nll = log_z - target_logit
    token_loss = nll
    if label_smoothing:
        token_loss = token_loss + label_smoothing * (target_logit - jnp.mean(logits, axis=-1))
    if z_loss:
        token_loss = token_loss + z_loss * jnp.square(log_z)

    tokens = jnp.sum(counts, dtype=logits.dtype)
    sums = {
        "nll": jnp.sum(jnp.where(counts, nll, 0)),
        "correct": jnp.sum(counts & (jnp.argmax(logits, axis=-1) == targets), dtype=logits.dtype),
        "tokens": tokens,
    }
    weights = mask.astype(logits.dtype)
    loss = jnp.sum(weights * jnp.where(counts, token_loss, 0)) / jnp.where(tokens > 0, jnp.sum(weights), 1)
    return loss, sums
