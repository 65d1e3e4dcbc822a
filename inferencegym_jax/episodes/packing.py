"""Pytrees as runs of 32-bit words, floats by their bits: one array in, one array out."""

from __future__ import annotations

from struct import Struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _name(key: Any) -> str:
    """The name of one step of a leaf's path: of a field, a key or a place."""
    return str(next(getattr(key, kind) for kind in ("name", "key", "idx") if hasattr(key, kind)))


class Layout:
    """A pytree of float32, int32, uint32 and bool leaves as a run of 32-bit words.

    Args:
        example: arrays or their shapes.
    """

    structure: Any
    names: list[str]
    array: bool
    shapes: list[tuple[int, ...]]
    dtypes: list[np.dtype[Any]]
    record: Struct
    words: int
    spans: list[tuple[int, int]]
    special: list[tuple[str, int, int, bool, bool]]
    starts: list[int]
    scalar: bool

    def __init__(self, example: Any):
        paths, self.structure = jax.tree.flatten_with_path(example)
        self.names = [".".join(_name(key) for key in path) for path, _ in paths]
        self.array = jax.tree_util.treedef_is_leaf(self.structure)  # no tree at all
        leaves = [leaf for _, leaf in paths]
        self.shapes = [tuple(np.shape(leaf)) for leaf in leaves]
        self.dtypes = [np.dtype(leaf.dtype) for leaf in leaves]
        sizes = [int(np.prod(shape, dtype=np.int64)) for shape in self.shapes]
        codes = ["f" if dtype == np.float32 else "I" if dtype == np.uint32 else "i" for dtype in self.dtypes]
        self.record = Struct("<" + "".join(code * size for code, size in zip(codes, sizes, strict=True)))
        self.words = sum(sizes)
        ends = np.cumsum(sizes).tolist()
        self.spans = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        # fields that are no plain number: (name, start, end, is a vector, is bool)
        self.special = [
            (name, *span, bool(shape), dtype == np.bool_)
            for name, span, shape, dtype in zip(self.names, self.spans, self.shapes, self.dtypes, strict=True)
            if shape or dtype == np.bool_
        ]
        self.starts = [start for start, _ in self.spans]
        self.scalar = all(size == 1 for size in sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(self.shapes, self.dtypes, strict=True)]
        return Layout, (jax.tree.unflatten(self.structure, shapes),)

    def pack(self, tree: Any) -> jax.Array:
        """int32[words] of a (traced) tree."""
        parts = []
        for leaf, dtype in zip(jax.tree.leaves(tree), self.dtypes, strict=True):
            value = jnp.asarray(leaf, dtype)
            value = value.astype(jnp.int32) if dtype == np.bool_ else jax.lax.bitcast_convert_type(value, jnp.int32)
            parts.append(jnp.reshape(value, (-1,)))
        return jnp.concatenate(parts)

    def unpack(self, words: jax.Array) -> Any:
        """The tree of a (traced) int32[words]."""
        leaves = []
        for (start, end), shape, dtype in zip(self.spans, self.shapes, self.dtypes, strict=True):
            part = jnp.reshape(words[start:end], shape)
            leaves.append(part != 0 if dtype == np.bool_ else jax.lax.bitcast_convert_type(part, dtype))
        return jax.tree.unflatten(self.structure, leaves)

    def pack_concrete(self, tree: Any) -> bytes:
        """The words of a concrete tree as bytes."""
        leaves = zip(jax.tree.leaves(tree), self.dtypes, strict=True)
        return b"".join(np.asarray(leaf, np.int32 if dtype == np.bool_ else dtype).tobytes() for leaf, dtype in leaves)

    def read(self, buffer: bytes, offset: int = 0) -> Any:
        """The fields in a buffer as Python numbers, bools and lists: what ``models.plain`` gives of the tree. Of a lone
        array, a NumPy one."""
        if self.array:
            kind = np.int32 if self.dtypes[0] == np.bool_ else self.dtypes[0]
            words = np.frombuffer(buffer, kind, self.words, offset)
            return words.astype(self.dtypes[0]).reshape(self.shapes[0])
        values = self.record.unpack_from(buffer, offset)
        fields = dict(zip(self.names, values if self.scalar else [values[i] for i in self.starts], strict=True))
        for name, start, end, vector, boolean in self.special:
            if vector:
                fields[name] = [bool(x) for x in values[start:end]] if boolean else list(values[start:end])
            else:
                fields[name] = bool(values[start])
        return fields
