"""The live server: SPEC 8's endpoints and the OpenEnv contract over the library's jitted step."""
