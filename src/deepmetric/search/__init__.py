"""Embeddings in a file, and an index that finds the nearest of them."""

from __future__ import annotations

from deepmetric.search.embed import Embeddings, embed_shards, embed_to_file, read_embeddings
from deepmetric.search.index import Index, Neighbours

__all__ = ["Embeddings", "Index", "Neighbours", "embed_shards", "embed_to_file", "read_embeddings"]
