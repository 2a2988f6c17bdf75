# No imports here: the process that runs another library imports titans_jax.bench.processes and must not import jax.
