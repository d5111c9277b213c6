"""Weights that a checkpoint lacks are the same ones whoever reads it."""

import pytest
import torch
import transformers

from fimlora import Settings, measure, measure_folder
from fimlora.model.checkpoint import Checkpoint
from fimlora.model.loading import load
from fimlora.model.skeleton import build_skeleton
from fimlora.model.weight_reader import open_weights
from support.models import make_batch, tiny
from support.streaming import quiet

__all__ = ["quiet"]  # a fixture of every test here


@pytest.mark.parametrize("executor", ["resident", "streamed"])
@pytest.mark.parametrize("saved_labels", [None, 5, 3], ids=["none", "others", "its own"])
def test_a_head_is_read_or_drawn_as_loading_does(saved_labels, executor, tmp_path):
    """What the checkpoint has for other labels is no use, and drawn like what it lacks."""
    model, targets = tiny("bert_classifier")
    if saved_labels is None:
        model.bert.save_pretrained(tmp_path)
    else:
        model.classifier = torch.nn.Linear(24, saved_labels)
        model.config.num_labels = saved_labels
        model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    cls = transformers.BertForSequenceClassification
    skeleton = build_skeleton(tmp_path, model_class=cls, config=config)
    resident = load(skeleton, tmp_path, seed=7, redraws=True).model
    batches = [make_batch("bert_classifier", [9, 5])]
    options = {"target_modules": targets, "seed": 1}

    names = ["classifier.weight", "classifier.bias"]
    reader = open_weights(skeleton, Checkpoint(tmp_path), seed=7, redraws=True)
    wanted = {name: skeleton.get_parameter(name) for name in names}
    head = reader.read_whole(wanted, torch.device("cpu"))
    found = measure_folder(
        tmp_path,
        batches,
        Settings(**options),
        executor=executor,
        model_class=cls,
        config=config,
        weights_seed=7,
        ignore_mismatched_sizes=True,
    )

    for name in names:
        assert torch.equal(head[name], resident.get_parameter(name))
    if saved_labels == 3:
        assert torch.equal(head["classifier.weight"], model.classifier.weight)
    assert found.to_bytes() == measure(resident, batches, **options).to_bytes()
