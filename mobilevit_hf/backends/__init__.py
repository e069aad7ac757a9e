"""Export to other runtimes and inference there: ONNX Runtime, OpenVINO, ExecuTorch; Core ML is export-only."""
