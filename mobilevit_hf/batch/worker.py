"""What a worker does with a chunk: read its images, predict, and write the part."""

from .types import Chunk, ChunkResult, Job


def process_chunk(job: Job, chunk: Chunk) -> ChunkResult:
    """Predict the images of a chunk and write its part, whole or not at all.

    The first call in a process loads the model, which is kept for later calls with the same job.

    Raises:
        ValueError, OSError: If the model is missing or differs from that of the job, the source can't be read, or the
            part can't be written. An image that can't be decoded is a row with the reason instead.
    """
    raise NotImplementedError
