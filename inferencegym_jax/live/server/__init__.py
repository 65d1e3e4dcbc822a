"""The OpenAI-compatible server that is measured: requests to it, what it says of itself."""
