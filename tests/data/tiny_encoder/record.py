"""Record what transformers makes of the tiny encoder: `python record.py`, with torch installed."""

import json
import tempfile
from pathlib import Path

import tiny_encoder
import torch
from tokenizers import Tokenizer
from transformers import BertModel

with tempfile.TemporaryDirectory() as place:
    folder = tiny_encoder.write(Path(place))
    # The header of tiny_encoder's file lacks what transformers insists on.
    model = BertModel(BertModel.config_class(**tiny_encoder.CONFIG), add_pooling_layer=False).eval()
    weights = {name: torch.from_numpy(tensor) for name, tensor in tiny_encoder.tensors().items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all("position_ids" in name or "token_type_ids" in name for name in missing), missing
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(tiny_encoder.MAX_TOKENS)
    golden = []
    for text in tiny_encoder.TEXTS:
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
        vector = [round(value, 6) for value in (mean / mean.norm()).tolist()]
        golden.append({"text": text, "ids": ids, "vector": vector})
Path(__file__).with_name("golden.json").write_text(json.dumps(golden) + "\n", "utf-8")
