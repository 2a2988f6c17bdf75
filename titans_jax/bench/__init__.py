# No imports here: the process that runs another library imports titans_jax.bench.clock and must not import jax.
