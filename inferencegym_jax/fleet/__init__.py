"""Fleets: one decision for many engines behind a router, and the rules by which engineers size them.

``params, state, action -> slots of GPUs, requests of five seconds -> the engine's fluid -> observation, reward``.
Nothing of an engine is computed here: ``physics`` serves, this room says how many serve and who comes.
"""
