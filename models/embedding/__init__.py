"""Sentence embeddings: a BERT-like encoder's checkpoint in, a small INT8 ONNX artefact out."""
