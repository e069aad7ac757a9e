from .runner import predict_dataset
from .types import BatchProgress, BatchSummary, Chunk, ChunkResult, Job

__all__ = [
    "predict_dataset",
    "BatchProgress",
    "BatchSummary",
    "Chunk",
    "ChunkResult",
    "Job",
]
