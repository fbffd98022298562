"""The model factory: a checkpoint becomes a small INT8 ONNX artefact. Never on a board."""
