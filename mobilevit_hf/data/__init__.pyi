from .checks import DatasetReport, check_dataset
from .reading import load_dataset
from .types import Dataset, Sample

__all__ = ["Dataset", "DatasetReport", "Sample", "check_dataset", "load_dataset"]
