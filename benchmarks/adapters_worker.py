"""Times the `adapters` library in an environment of its own: it needs an older `transformers`.

Started by the case "bottleneck adapters" as ``$ADAPTERS_PYTHON adapters_worker.py KIND NAME ROWS LENGTH``.
For each line it reads, "adapted" or "bound", it does that step and writes its seconds.
"""

import sys
import time

import adapters
import torch
import transformers as hf

KINDS = {"pfeiffer": "seq_bn", "houlsby": "double_seq_bn"}


def model_of(name: str):
    """Return the same model as `models.base`: frozen, random, without dropout."""
    torch.manual_seed(0)
    if name == "gpt2":
        model = hf.GPT2LMHeadModel(hf.GPT2Config())
    else:
        model = hf.BertForSequenceClassification(hf.BertConfig())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.requires_grad_(False).train()


def main(kind: str, name: str, rows: str, length: str) -> None:
    torch.set_num_threads(1)
    ids = torch.randint(
        0, 1000, (int(rows), int(length)), generator=torch.Generator().manual_seed(1)
    )
    labels = ids if name == "gpt2" else ids[:, 0] % 2
    rest = {"attention_mask": torch.ones_like(ids), "labels": labels}
    plain, model = model_of(name), model_of(name)
    embedded = plain.get_input_embeddings()(ids).detach().requires_grad_(True)
    adapters.init(model)
    model.add_adapter("a", config=adapters.AdapterConfig.load(KINDS[kind]))
    model.train_adapter("a")
    if name == "bert":
        model.classifier.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(trained, flush=True)
    for line in sys.stdin:
        start = time.process_time()
        if line.strip() == "bound":
            plain(inputs_embeds=embedded, **rest).loss.backward()
        else:
            model(input_ids=ids, **rest).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(time.process_time() - start, flush=True)


main(*sys.argv[1:])
