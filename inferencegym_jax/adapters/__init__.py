"""The environment as other libraries want it: gymnax wrappers, Gymnasium, stateful objects, HTTP."""
