"""Parity with arrays made by the released MCLS code on small random weights (tests/fixtures/mcls).

Time-first arrays of the released code are `s b d`; ours are `b s d`. Everything is compared in
float32 to 1e-5 and in float64 to 1e-9."""
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcls_nb.summarize.decoding import beam_search
from mcls_nb.summarize.fusion import CascadedFusion, ForgetGateFusion
from mcls_nb.summarize.models import (SummarizerConfig, convert_reference, from_reference,
                                      summary_loss)
from mcls_nb.transformer import DecoderLayer, EncoderLayer

FIXTURES = Path(__file__).parent/'fixtures'/'mcls'
CONFIG = SummarizerConfig(source_words=37, target_words=40, d=16, heads=2, ffn=32,
                          encoder_layers=2, decoder_layers=2, d_video=24, max_text=32, max_video=20,
                          dropout=0., attention_dropout=0., ffn_dropout=0., mask_video=False)
FULL = {'d_cax2_full': CONFIG,
        'd_ca2_stage1_full': replace(CONFIG, source_words=40, share_words=True)}

precise = pytest.mark.parametrize('dtype', [torch.float32, torch.float64],
                                  ids=['float32', 'float64'])


def load(name, dtype):
    "The arrays of a fixture; floats in `dtype`."
    with np.load(FIXTURES/f'{name}.npz', allow_pickle=False) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in arrays.items()}

def part(arrays, prefix):
    "Those whose names begin so, without the beginning."
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}

def equal(ours, theirs, what='', scale=1.):
    "Equal to 1e-5 (float32) or 1e-9 (float64) of the array's largest value, at least of `scale`."
    assert ours.shape == theirs.shape, f'{what}: {tuple(ours.shape)} against {tuple(theirs.shape)}'
    digits, off = 1e-5 if theirs.dtype == torch.float32 else 1e-9, (ours - theirs).abs().max()
    assert off < digits * max(scale, theirs.abs().max().item()), f'{what}: off by {off:.2e}'

def equal_gradients(module, grads):
    "Every parameter's gradient, measured against the largest: a key's bias has but rounding."
    scale = max(g.abs().max().item() for g in grads.values())
    for name, p in module.named_parameters(): equal(p.grad, grads[name], name, scale)

def length_mask(lengths, size): return torch.arange(size) < lengths[:, None]

def load_part(module, arrays, prefix):
    "Give a part of the network its released parameters; returns them under the module's names."
    params = {k.removeprefix(prefix): v for k, v in convert_reference(arrays).items()}
    module.load_state_dict(params)
    return params


# (a) forget gate fusion alone --------------------------------------------------------------------

def fgf(z, dtype):
    module = ForgetGateFusion(16, 24).to(dtype)
    params = {f'decoder.cross_fusion.{k}': v for k, v in part(z, 'param.').items()}
    load_part(module, params, 'reader.forget.fusion.')
    return module

@precise
def test_forget_gate_fusion_as_released(dtype):
    z = load('a_fgf', dtype)
    text, video = z['in.text'].transpose(0, 1).requires_grad_(), z['in.video'].requires_grad_()
    out, fused = fgf(z, dtype)(text, video, need_weights=True)
    equal(out.transpose(0, 1), z['out.text'])
    equal(fused.attention, z['out.attention'])
    equal(fused.gate, z['out.forget_gate'])
    out.pow(2).sum().backward()
    equal(text.grad.transpose(0, 1), z['grad.in.text'])
    equal(video.grad, z['grad.in.video'])
    if dtype == torch.float64:
        equal(fgf(z, dtype)(text, video).transpose(0, 1), z['out.text'], 'fused kernel')

@precise
def test_forget_gate_fusion_masked(dtype):
    z = load('a_fgf', dtype)
    mask = length_mask(z['in.video_lengths'], 8)
    text, video = z['in.text'].transpose(0, 1), z['in.video']
    out, fused = fgf(z, dtype)(text, video, mask, need_weights=True)
    equal(out.transpose(0, 1), z['masked.text'])
    equal(fused.attention, z['masked.attention'])


# (b) cascaded and (c) standard layers ------------------------------------------------------------

def layer_gradients(arrays, theirs, ours):
    "Gradients of a layer, from under its name there to its own names here."
    grads = convert_reference({theirs + k: v for k, v in arrays.items()})
    return {k.removeprefix(ours): v for k, v in grads.items()}

def check_decoder_layer(z, dtype, fusion, prefix=''):
    layer = DecoderLayer(16, 2, 32, fusion=fusion).to(dtype)
    params = {f'decoder.layers.0.{k}': v for k, v in part(z, f'{prefix}param.').items()}
    load_part(layer, params, 'writer.layers.0.')
    x, text = (z[f'{prefix}in.{k}'].transpose(0, 1).requires_grad_() for k in ('x', 'encoder_out'))
    video = z['in.video'].requires_grad_() if fusion else None
    source = layer.source(text, ~z[f'{prefix}in.encoder_padding_mask'], video)
    out, seen, _ = layer(x, source, need_weights=True)
    equal(out.transpose(0, 1), z[f'{prefix}out.x'])
    equal(seen.mean(1), z[f'{prefix}out.encoder_attn_weights'])
    out.pow(2).sum().backward()
    equal(x.grad.transpose(0, 1), z[f'{prefix}grad.in.x'])
    equal(text.grad.transpose(0, 1), z[f'{prefix}grad.in.encoder_out'])
    grads = layer_gradients(part(z, f'{prefix}grad.'), 'decoder.layers.0.', 'writer.layers.0.')
    equal_gradients(layer, grads)
    return layer, video

@precise
def test_cascaded_decoder_layer(dtype):
    z = load('b_cax_decoder_layer', dtype)
    layer, video = check_decoder_layer(z, dtype, CascadedFusion(16, 24))
    equal(video.grad, z['grad.in.video'])
    text_mask, video_mask = ~z['in.encoder_padding_mask'], length_mask(z['in.video_lengths'], 8)
    text = z['in.encoder_out'].transpose(0, 1)
    source = layer.source(text, text_mask, z['in.video'], video_mask)
    equal(layer(z['in.x'].transpose(0, 1), source)[0].transpose(0, 1), z['masked.x'], 'masked')

@precise
def test_plain_decoder_layer(dtype):
    check_decoder_layer(load('c_standard_layers', dtype), dtype, None, 'dec.')

@precise
def test_encoder_layer(dtype):
    z = load('c_standard_layers', dtype)
    layer = EncoderLayer(16, 2, 32).to(dtype)
    params = {f'encoder.layers.0.{k}': v for k, v in part(z, 'enc.param.').items()}
    load_part(layer, params, 'reader.encoder.layers.0.')
    x = z['enc.in.x'].transpose(0, 1).requires_grad_()
    out = layer(x, ~z['enc.in.encoder_padding_mask'])
    equal(out.transpose(0, 1), z['enc.out.x'])
    out.pow(2).sum().backward()
    equal(x.grad.transpose(0, 1), z['enc.grad.in.x'])
    grads = layer_gradients(part(z, 'enc.grad.'), 'encoder.layers.0.', 'reader.encoder.layers.0.')
    equal_gradients(layer, grads)


# (d) the whole network ---------------------------------------------------------------------------

def batch_of(z):
    "The fixture's batch."
    src, video = z['in.src_tokens'], z['in.video_inputs']
    tgt_in, tgt_out = z['in.tgt_inputs'], z['in.tgt_tokens']
    video_mask = length_mask(z['in.video_lengths'], video.shape[1])
    return SimpleNamespace(src=src, src_mask=src != 0, video=video, video_mask=video_mask,
                           tgt_in=tgt_in, tgt_out=tgt_out, tgt_mask=tgt_out != 0)

whole = pytest.mark.parametrize('name', FULL)

@precise
@whole
def test_network_as_released(name, dtype):
    z = load(name, dtype)
    model, batch = from_reference(part(z, 'param.'), FULL[name]), batch_of(z)
    assert next(model.parameters()).dtype == dtype
    out = model(batch, need_weights=True)
    equal(out.logits, z['out.logits'])
    equal(out.cross[-1].mean(1), z['out.last_layer_cross_attn'])
    text = model.reader.encoder.norm(model.reader.states(batch.src, batch.src_mask))
    equal(text.transpose(0, 1), z['out.encoder_out'])
    fused = model.encode(batch.src, batch.src_mask, batch.video).text
    equal(fused.transpose(0, 1), z['out.fused_encoder_out'])
    loss, n = summary_loss(model, batch)
    equal(loss, z['out.loss_sum'])
    assert n == z['out.num_tokens']

@precise
@whole
def test_gradients_as_released(name, dtype):
    z = load(name, dtype)
    model = from_reference(part(z, 'param.'), FULL[name])
    summary_loss(model, batch_of(z))[0].backward()
    grads = convert_reference(part(z, 'grad.'))
    names = [k for k, _ in model.named_parameters()] # a shared table once, under the reader
    equal_gradients(model, {k: grads[k] for k in names})

@precise
@whole
def test_masked_batch_equals_single_samples(name, dtype):
    z = load(name, dtype)
    masked = replace(FULL[name], mask_video=True)
    model, batch = from_reference(part(z, 'param.'), masked), batch_of(z)
    logits = model(batch).logits
    for i, t in enumerate(z['in.tgt_lengths']):
        equal(logits[i, :t], z['nopad.logits'][i, :t], f'sample {i}')
    equal(summary_loss(model, batch)[0], z['nopad.loss_sum'])
    video, video_mask = F.pad(batch.video, (0, 0, 0, 5)), F.pad(batch.video_mask, (0, 5))
    wider = SimpleNamespace(**{**vars(batch), 'video': video, 'video_mask': video_mask})
    def moved(m): return (m(wider).logits - m(batch).logits)[batch.tgt_mask].abs().max()
    assert moved(model) < (1e-5 if dtype == torch.float32 else 1e-9) # padding changes nothing
    assert moved(from_reference(part(z, 'param.'), FULL[name])) > 1e-3 # as released it does

@whole
def test_a_misfit_is_named(name):
    params = part(load(name, torch.float32), 'param.')
    with pytest.raises(ValueError, match='left over'):
        from_reference(params, replace(FULL[name], encoder_fusion=False))
    with pytest.raises(ValueError, match='expected'):
        from_reference(params, replace(FULL[name], ffn=64))

@precise
@whole
def test_greedy_summaries_as_released(name, dtype):
    z = load(name, dtype)
    model = from_reference(part(z, 'param.'), replace(FULL[name], mask_video=True))
    found = beam_search(model, batch_of(z), beam=1, max_len=20)
    for (hyp,), tokens in zip(found, z['gen.tokens']):
        n = len(hyp.tokens)
        assert list(hyp.tokens) == tokens[:n].tolist()
        assert not tokens[n:].any() # padding
