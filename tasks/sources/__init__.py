"""Sources of examples, each a small class behind one protocol."""

from tasks.sources.digest import data_digest
from tasks.sources.protocol import Examples, FileRef, RawExamples, Shard, Source
from tasks.sources.registry import open_source
from tasks.sources.spec import DataSpec

__all__ = ["DataSpec", "Examples", "FileRef", "RawExamples", "Shard", "Source", "data_digest", "open_source"]
