from .types import BatchProgress, BatchSummary, Chunk, ChunkResult, Job

__all__ = [
    "BatchProgress",
    "BatchSummary",
    "Chunk",
    "ChunkResult",
    "Job",
]
