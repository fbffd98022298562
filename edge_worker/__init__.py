"""The program on the board: answers jobs with an ONNX language model, or escalates them."""
