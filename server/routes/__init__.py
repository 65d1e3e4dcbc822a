"""HTTP endpoints by concern; each module holds a ``build`` that makes its router."""
