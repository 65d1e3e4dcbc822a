"""Agents that are not policies: language models that read the observation as text and set the knobs by a tool call."""
