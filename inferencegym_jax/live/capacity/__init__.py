"""A second engine that is started and stopped, and which of two engines a request goes to."""
