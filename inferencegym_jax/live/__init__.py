"""The loop closed on a real engine: measure it, run policies on it, deploy one in front of it.

Needs the extra ``live`` (``pip install 'inferencegym-jax[live]'``) and is not imported by ``inferencegym_jax``
itself. Data flows ``server -> loop, capacity -> measure, trial, proxy -> cli``:

- ``server``: one streamed completion, timed; what a server is and says of itself.
- ``loop``: the bounded priority queue that admits up to ``batch_size``; one second of timings as ``MetricsSnapshot``
  and ``ServeObservation``.
- ``capacity``: a spare engine that is started and stopped, and which engine a request goes to.
- ``measure``: a latency table from a live server. ``trial``: the environment on a live server, its replay from the
  table, and policies compared on the same traffic. ``proxy``: what an engineer deploys.
"""
