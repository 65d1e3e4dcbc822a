"""PPO on the environment: networks, losses, the train loop, evaluation, plots, sweeps, and the demo.

``config -> trainer (network, losses, rollout) -> checkpoint -> evaluation -> plots``. Runs from a checkout: ``python
-m training --help``.
"""
