"""The live server: the HTTP endpoints (docs/server.md) and the OpenEnv contract over the library's jitted step."""
