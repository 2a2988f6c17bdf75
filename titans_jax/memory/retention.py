"""How a memory forgets: the coordinates in which what is kept is a product keep_t A_{t-1}."""

from titans_jax.memory.base import Retention


def decay(home: bool = False) -> Retention:
    """W = A: weight decay, keep_t = 1 - alpha_t (Titans Eq 13).

    With a home, A_t = keep_t A_{t-1} + (1 - keep_t) A_0 + S_t: what is forgotten is what was learned since the stream
    began, and the network that training made stays. Where decay ends at zero, a memory behind a layer norm shrinks
    until its gradients, which grow as 1/|W|, make its streams chaotic (ours; MIRAS section 3.2 allows any centre).
    """
    return Retention(lift=lambda weights: weights, link=lambda dual: dual, identity=True, home=home)
