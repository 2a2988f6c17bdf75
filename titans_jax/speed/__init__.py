# Empty, so that a process of another library's can take titans_jax.speed.clock without importing jax.
