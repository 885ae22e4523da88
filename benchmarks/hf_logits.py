"""Logits of a Hugging Face T5 directory by transformers: run by a Python that has torch.

    python benchmarks/hf_logits.py DIRECTORY EXAMPLES.npz LOGITS.npz
    python benchmarks/hf_logits.py save DIRECTORY T5|MT5|UMT5 SETTINGS.json

EXAMPLES has arrays inputs_N and targets_N of token ids; LOGITS gets logits_N (targets, vocabulary),
of float32 models under teacher forcing. `save` writes a model with random weights.
"""

import json
import sys

import numpy as np
import torch
import transformers


def save(directory: str, kind: str, settings: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**json.loads(settings))
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms of one and biases of nothing would hide a wrong name.
            if "norm" in name or "relative" in name:
                parameter.normal_()
    model.save_pretrained(directory)


def main() -> None:
    if sys.argv[1] == "save":
        return save(*sys.argv[2:])
    directory, examples_file, logits_file = sys.argv[1:]
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        directory, dtype=torch.float32
    ).eval()
    examples = np.load(examples_file)
    logits = {}
    for i in range(len(examples.files) // 2):
        inputs = torch.tensor(examples[f"inputs_{i}"][None], dtype=torch.long)
        targets = torch.tensor(examples[f"targets_{i}"][None], dtype=torch.long)
        with torch.no_grad():
            shifted = torch.cat([torch.zeros_like(targets[:, :1]), targets[:, :-1]], dim=1)
            output = model(input_ids=inputs, decoder_input_ids=shifted)
        logits[f"logits_{i}"] = output.logits[0].numpy()
    np.savez(logits_file, **logits)


if __name__ == "__main__":
    main()
