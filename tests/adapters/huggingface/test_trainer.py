# SPDX-License-Identifier: Apache-2.0
"""transformers' Trainer on a declared model: trained, saved, read again, detached."""

import json

import pytest
import torch
from cases import declared
from torch.testing import assert_close

import prmim_adapters as prmim

transformers = pytest.importorskip('transformers')
pytest.importorskip('accelerate')

TOKENS, MASKED, STEPS = 2 * 4 * 4, 24, 20


class Clips(torch.utils.data.Dataset):
    """A bright square that moves over a dark ground, and a tube mask."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        clip = torch.zeros(4, 3, 32, 32)
        for time in range(4):
            clip[time, :, 4 * time : 4 * time + 8, index : index + 8] = 1.0
        generator = torch.Generator().manual_seed(index)
        tube = torch.rand(TOKENS // 2, generator=generator).argsort() < MASKED // 2
        return {'pixel_values': clip, 'bool_masked_pos': tube.repeat(2)}


def build():
    torch.manual_seed(0)
    return declared.videomae()


def test_videomae_under_trainer(tmp_path):
    model = prmim.attach(build(), throw_ratio=0.5)
    seen = []
    model.decoder.decoder_layers[0].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape[1])
    )
    arguments = transformers.TrainingArguments(
        str(tmp_path / 'run'),
        max_steps=STEPS,
        per_device_train_batch_size=4,
        learning_rate=3e-3,
        logging_steps=1,
        save_strategy='no',
        report_to=[],
        use_cpu=True,
        seed=0,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Clips())
    trainer.train()
    losses = [entry['loss'] for entry in trainer.state.log_history if 'loss' in entry]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert set(seen) == {TOKENS // 2}
    trainer.save_model(tmp_path / 'saved')

    names = json.loads((tmp_path / 'saved' / 'config.json').read_text())['architectures']
    assert names == ['VideoMAEForPreTraining']
    again = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / 'saved')
    prmim.detach(model)
    assert type(model) is transformers.VideoMAEForPreTraining
    batch = {key: value[None] for key, value in Clips()[3].items()}
    with torch.no_grad():
        assert_close(model.eval()(**batch).loss, again.eval()(**batch).loss, rtol=0, atol=0)
    encoder = transformers.VideoMAEModel.from_pretrained(tmp_path / 'saved')
    state = model.videomae.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in encoder.state_dict().items())
