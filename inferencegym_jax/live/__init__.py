"""The loop closed on a real engine: measure it, run policies on it, deploy one in front of it.

Needs the extra ``live`` (``pip install 'inferencegym-jax[live]'``) and is not imported by ``inferencegym_jax``
itself. Data flows ``streaming -> observer, gate, traffic -> measure, live_env, control -> trial -> cli``:

- ``streaming``: one streamed completion, timed; ``engine``: what a server is and says of itself.
- ``gate``: the bounded priority queue that admits up to ``batch_size``; ``observer``: one second of timings as
  ``MetricsSnapshot`` and ``ServeObservation``; ``traffic``: requests of a task or a log with their arrival times.
- ``measure``: a latency table from a live server; ``live_env``: the environment on a live server; ``trial``: policies
  compared on the same traffic; ``control``: the proxy that an engineer deploys.
"""
