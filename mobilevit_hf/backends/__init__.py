"""Export to other engines, and run there: ONNX Runtime, OpenVINO, ExecuTorch; Core ML is exported only."""
