"""Parity of MFFG on transformers, NCLS and MT with arrays made by their released codes on small
random weights (tests/fixtures/baselines).

Arrays of the released codes are time-first where they are named TBC; ours are `b t d`. Everything
is compared in float32 to 1e-5 of the largest value."""
import dataclasses, json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcls_nb.core import config_hash, override, set_seed
from mcls_nb.summarize.decoding import beam_search, look
from mcls_nb.summarize.fusion import CrossFusion, HierarchicalFusion
from mcls_nb.summarize.models import (MFFG, MT_DENSECAP, NCLS_BEAVER, SummarizerConfig,
                                      convert_reference, from_reference, summary_loss)
from mcls_nb.checkpoints import load_weights, save_checkpoint
from mcls_nb.transformer import BEAVER, DENSECAP, Style

FIXTURES = Path(__file__).parent/'fixtures'/'baselines'
SMALL = SummarizerConfig(source_words=13, target_words=13, d=8, heads=2, ffn=12, d_video=6,
                         encoder_layers=2, decoder_layers=2, max_text=12, max_video=12)
MONOLINGUAL = override(SMALL, **MFFG, share_words=True)
NO_LEVELS = dataclasses.replace(DENSECAP, levels=False, zero_padding=False)
SYSTEMS = { # as a table of the paper would have them, and with other switches
    'MFFG': MFFG,
    'MFFG w/o FF-Enc': MFFG | dict(encoder_fusion=False),
    'MFFG w/o CF-Dec': MFFG | dict(decoder_fusion=False),
    'MFFG all layers, own norms': dict(fusion='multistage', cascaded_layers='all', tie_norms=False),
    'NCLS beaver': dict(reads='text', **NCLS_BEAVER),
    'MT densecap': dict(reads='video', **MT_DENSECAP),
    'NCLS densecap': dict(reads='text', **MT_DENSECAP),
    'VDF beaver': NCLS_BEAVER,
    'MT, no levels': dict(reads='video', style=NO_LEVELS)}

def load(name):
    "The released parameters, inputs and outputs of a fixture."
    with np.load(FIXTURES/f'{name}.npz', allow_pickle=False) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files if k != 'cfg'}
        assert json.loads(str(z['cfg']))
    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return part('sd.'), part('in.'), part('out.')

def equal(ours, theirs, what=''):
    assert ours.shape == theirs.shape, f'{what}: {tuple(ours.shape)} against {tuple(theirs.shape)}'
    off = (ours - theirs).abs().max()
    assert off < 1e-5 * max(1., theirs.abs().max().item()), f'{what}: off by {off:.2e}'

def batch_of(src, tgt_in, tgt_out=None, video=None):
    if tgt_out is None: tgt_out = tgt_in
    video_mask = None if video is None else (video != 0).any(-1)
    return SimpleNamespace(src=src, src_mask=src != 0, video=video, video_mask=video_mask,
                           tgt_in=tgt_in, tgt_out=tgt_out, tgt_mask=tgt_out != 0)

def encode(model, batch):
    return model.encode(batch.src, batch.src_mask, batch.video, batch.video_mask)

def layer_states(model, batch):
    "What each decoder layer returns under teacher forcing, after the embedding."
    found = [model.writer.embed(batch.tgt_in)]
    def note(module, args, out): found.append(out[0])
    hooks = [layer.register_forward_hook(note) for layer in model.writer.layers]
    out = model(batch)
    for h in hooks: h.remove()
    return out.logits, found


# MFFG --------------------------------------------------------------------------------------------

def test_cross_fusion_as_released():
    state, x, out = load('mffg_crossmodal_fusion')
    fusion = CrossFusion(8, 6)
    ours = convert_reference({f'decoder.cross_fusion.{k}': v for k, v in state.items()})
    fusion.load_state_dict({k.removeprefix('reader.cross.'): v for k, v in ours.items()})
    asks = x['text_TBC'].transpose(0, 1)
    text, video, seen = fusion(asks, None, x['video'], need_weights=True)
    equal(text.transpose(0, 1), out['text_TBC'], 'text')
    equal(video, out['video'], 'video')
    equal(seen.attention, out['t2v_attention'], 'attention')
    equal(seen.gate, out['forget_gate_v'], 'gate')
    equal(fusion(asks, None, x['video'])[1], out['video'], 'fused kernel')

def test_hierarchical_attention_as_released():
    state, x, out = load('mffg_hierarchical_attention')
    fusion = HierarchicalFusion(8, 8, 8, shared=True, bias=False)
    theirs = {'contexts.0.weight': 'ctx2ctx.weight', 'state.weight': 'hid2ctx.weight',
              'score.weight': 'mlp.weight'}
    fusion.load_state_dict({k: state[old] for k, old in theirs.items()})
    joint, alpha = fusion(x['hid_TBC'], [x['ctx1_TBC'], x['ctx2_TBC']])
    equal(joint, out['joint_TBC'])
    equal(alpha.transpose(1, 2), out['alpha_T2B'])
    state, x, out = load('nmt_hierarchical_attention') # the one of HA
    fusion = HierarchicalFusion(7, 5, 4)
    theirs = {'contexts.0.weight': 'ctx_projs.0.weight', 'contexts.1.weight': 'ctx_projs.1.weight',
              'state.weight': 'dec_proj.weight', 'state.bias': 'dec_proj.bias',
              'score.weight': 'mlp.weight'}
    fusion.load_state_dict({k: state[old] for k, old in theirs.items()})
    joint, alpha = fusion(x['hid'][0], [x['ctx0'], x['ctx1']])
    equal(joint, out['joint_context'])
    equal(alpha.T[..., None], out['att_dist'])

def test_mffg_as_released():
    state, x, out = load('mffg_transformer')
    model = from_reference(state, override(MONOLINGUAL, mask_video=False)).eval()
    batch = batch_of(x['src_tokens'], x['tgt_inputs'], video=x['video'])
    logits, states = layer_states(model, batch)
    encoded = model.reader.encoder(model.reader.embed(batch.src), batch.src_mask)
    equal(encoded.transpose(0, 1), out['encoder_out_TBC'], 'encoder')
    memory = encode(model, batch)
    equal(memory.text.transpose(0, 1), out['fused_text_TBC'], 'memory')
    for i in range(2): equal(states[i + 1].transpose(0, 1), out[f'dec_layer{i}_TBC'], f'layer {i}')
    equal(logits, out['logits'], 'logits')
    caches, words = model.caches(), batch.tgt_in[:, :5].split(1, 1)
    steps = torch.cat([model.decode(word, memory, caches).logits for word in words], 1)
    equal(steps[batch.tgt_mask], out['incremental_logits'][batch.tgt_mask], 'word by word')

def test_mffg_masked_is_released_without_padding():
    state, x, _ = load('mffg_transformer')
    masked, released = (from_reference(state, override(MONOLINGUAL, mask_video=m)).eval()
                        for m in (True, False))
    whole = masked(batch_of(x['src_tokens'], x['tgt_inputs'], video=x['video'])).logits
    for i in range(3):
        src, tgt, video = (x[k][i] for k in ('src_tokens', 'tgt_inputs', 'video'))
        src, tgt, video = src[src != 0], tgt[tgt != 0], video[(video != 0).any(-1)]
        alone = released(batch_of(src[None], tgt[None], video=video[None])).logits
        equal(whole[i:i+1, :len(tgt)], alone, f'sample {i}')


# NCLS --------------------------------------------------------------------------------------------

def test_ncls_of_the_mcls_release():
    state, x, out = load('ncls_mcls_xtransformer')
    model = from_reference(state, override(SMALL, reads='text', source_words=11)).eval()
    batch = batch_of(x['src_tokens'], x['tgt_inputs'])
    logits, states = layer_states(model, batch)
    equal(encode(model, batch).text.transpose(0, 1), out['encoder_out_TBC'])
    for i in range(3): equal(states[i].transpose(0, 1), out[f'dec_state{i}_TBC'], f'state {i}')
    equal(logits, out['logits'])

def test_ncls_beaver():
    state, x, out = load('ncls_beaver')
    model = from_reference(state, override(SMALL, source_words=11, **SYSTEMS['NCLS beaver'])).eval()
    batch = batch_of(x['src'], x['tgt'][:, :-1], x['tgt'][:, 1:])
    real = batch.src_mask # padding has no positions here
    equal(encode(model, batch).text[real], out['encoder_out'][real])
    out_mask = batch.tgt_in != 0
    equal(model(batch).logits.log_softmax(-1)[out_mask], out['log_probs'][out_mask])
    total, n = summary_loss(model, batch)
    equal(total / n, out['loss'])


# MT ----------------------------------------------------------------------------------------------

# our padding is their 1, our end of sentence their 2 (<init>), our 2 their 0
SWAPPED = [1, 2, 0, *range(3, 13)]

def densecap(state, **changes):
    "The released network under our numbers of words, on frames that are embedded already."
    ours = convert_reference(state)
    for k in ('writer.embed.words.weight', 'writer.bias'): ours[k] = ours[k][SWAPPED]
    model = override(SMALL, d_video=8, **SYSTEMS['MT densecap'] | changes).build()
    missing, extra = model.load_state_dict(ours, strict=False)
    assert not extra # and the fixture begins behind these:
    assert missing == ['reader.project.weight', 'reader.project.bias']
    model.reader.project = model.reader.relu = torch.nn.Identity()
    return model.eval()

def words(ids): return torch.argsort(torch.tensor(SWAPPED))[ids]

def test_mt_densecap():
    state, x, out = load('mt_densecap')
    model, mask = densecap(state, mask_video=False), x['mask'][..., 0] > 0
    sent = words(x['sent'])
    before, after = sent[:, :-1], sent[:, 1:]
    levels = model.reader.levels(None, None, x['x'], mask)
    for i in range(2): equal(levels[i], out[f'enc_{i}'], f'level {i}')
    equal(model.reader.levels(None, None, x['x'])[1], out['enc_1_nomask'])
    memory, real = model.encode(None, None, x['x'], mask), before != 0
    equal(model.writer(before, memory).states[real], out['dec_hidden'][real])
    equal(model.decode(before, memory).logits[real], out['logits'][real][:, SWAPPED])
    batch = SimpleNamespace(src=None, src_mask=None, video=x['x'], video_mask=mask,
                            tgt_in=before, tgt_out=after, tgt_mask=after != 0)
    equal(model(batch, real_only=True).logits, out['flat_logits'][:, SWAPPED])
    equal(batch.tgt_out[batch.tgt_mask], words(out['flat_targets']))
    loss = F.cross_entropy(out['flat_logits'], out['flat_targets'], reduction='sum')
    equal(summary_loss(model, batch)[0], loss)

def test_mt_densecap_greedily():
    state, x, out = load('mt_densecap')
    model = densecap(state, mask_video=False)
    memory = model.encode(None, None, x['x'], x['mask'][..., 0] > 0)
    caches, word, found = model.caches(), torch.ones(3, 1, dtype=torch.long), []
    greedy = words(out['greedy5'])
    for _ in range(5): # their greedy search may write padding, which has no position here
        word = model.decode(word, memory, caches).logits.argmax(-1)
        found.append(word)
    found = torch.cat(found, 1)
    for ours, theirs in zip(found.tolist(), greedy.tolist()):
        n = theirs.index(0) + 1 if 0 in theirs else 5
        assert ours[:n] == theirs[:n]

def test_mt_masked_is_released_without_padding():
    state, x, _ = load('mt_densecap')
    masked, released = densecap(state), densecap(state, mask_video=False)
    mask, sent = x['mask'][..., 0] > 0, words(x['sent'])[:, :-1]
    whole = masked.decode(sent, masked.encode(None, None, x['x'], mask)).logits
    for i, n in enumerate(mask.sum(1)):
        memory = released.encode(None, None, x['x'][i:i+1, :n])
        equal(whole[i:i+1], released.decode(sent[i:i+1], memory).logits, f'sample {i}')


# what holds for every configuration --------------------------------------------------------------

def small(name):
    return override(SMALL, target_words=17, d_video=10, dropout=0., attention_dropout=0.,
                    ffn_dropout=0., **SYSTEMS[name])

def toy(extra=0):
    "Two samples with padding on every side, and `extra` more of it."
    g = torch.Generator().manual_seed(0)
    def real(lengths): return torch.arange(lengths[0]) < torch.tensor(lengths)[:, None]
    def ids(lengths, most):
        drawn = torch.randint(3, most, (2, lengths[0]), generator=g)
        return F.pad(drawn * real(lengths), (0, extra))
    video = torch.randn(2, 5, 10, generator=g) * real([5, 2])[..., None]
    video = F.pad(video, (0, 0, 0, extra))
    return batch_of(ids([6, 3], 13), ids([4, 2], 17), ids([4, 2], 17), video)

every = pytest.mark.parametrize('name', SYSTEMS)

def take(batch, i): return SimpleNamespace(**{k: v[i:i+1] for k, v in vars(batch).items()})

@every
def test_padding_changes_nothing(name):
    set_seed(0)
    model = small(name).build().eval()
    equal(model(toy(3), real_only=True).logits, model(toy(), real_only=True).logits)

@every
def test_word_by_word_is_all_at_once(name):
    set_seed(0)
    model, batch = small(name).build().eval(), toy()
    with torch.no_grad():
        memory, caches, words = encode(model, batch), model.caches(), batch.tgt_in.split(1, 1)
        steps = torch.cat([model.decode(word, memory, caches).logits for word in words], 1)
        equal(steps[batch.tgt_mask], model(batch, real_only=True).logits)

@every
def test_beams_share_a_source(name):
    set_seed(0)
    model, batch = small(name).build().eval(), toy()
    together = beam_search(model, batch, beam=3, max_len=5)
    for i in range(2):
        alone, = beam_search(model, take(batch, i), beam=3, max_len=5)
        assert [h.tokens for h in together[i]] == [h.tokens for h in alone]

@every
def test_every_parameter_learns(name):
    set_seed(0)
    model = small(name).build()
    summary_loss(model, toy())[0].backward()
    def learns(name, g): # but for a key's bias, which moves all scores alike
        return g is not None and (g.abs().max() > 0 or name.endswith('.k.bias'))
    idle = [n for n, p in model.named_parameters() if not learns(n, p.grad)]
    unused = 'reader.cross.video.' if name == 'MFFG w/o CF-Dec' else 'none' # it goes nowhere
    assert all(n.startswith(unused) for n in idle), idle
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

@every
def test_saved_is_loaded(name, tmp_path):
    set_seed(0)
    model, again = small(name).build().eval(), small(name).build().eval()
    save_checkpoint(tmp_path/'model.safetensors', model)
    load_weights(again, tmp_path/'model.safetensors')
    assert torch.equal(model(toy()).logits, again(toy()).logits)

def test_mffg_shows_where_it_looked():
    set_seed(0)
    model, batch = small('MFFG').build().eval(), toy()
    out = model(batch, need_weights=True)
    assert [w.shape for w in out.video] == [(2, 4, 5)]
    assert [w.shape for w in out.shares] == [(2, 4, 2)]
    assert len(out.cross) == 2 and out.fused.gate.shape == (2, 6, 10)
    equal(out.video[0].sum(-1), torch.ones(2, 4))
    equal(out.shares[0].sum(-1), torch.ones(2, 4))
    seen = look(model, take(batch, 0), [3, 4])
    assert seen.video.shape == (1, 3, 5) and seen.gate_attention.shape == (6, 5)
    assert seen.cross.shape == (2, 2, 3, 6)

def test_configurations_have_names_of_their_own():
    assert len({config_hash(small(name)) for name in SYSTEMS}) == len(SYSTEMS)
    assert SummarizerConfig().style == Style() != BEAVER

bad = {'another fusion': (dict(fusion='early'), "no value of fusion 'early'"),
       'levels and both': (dict(style=DENSECAP), 'cannot be fused with video'),
       'a deep decoder': (dict(reads='video', style=DENSECAP, decoder_layers=3),
                          '3 decoder layers cannot read 2 levels')}

@pytest.mark.parametrize('what', bad)
def test_contradictions_are_refused(what):
    changes, says = bad[what]
    with pytest.raises(ValueError, match=says): override(SMALL, **changes).build()

def test_styles_are_checked():
    with pytest.raises(ValueError, match="no value of init 'zero'"): Style(init='zero')
    with pytest.raises(ValueError, match="no value of biases 'k'"): Style(biases=('k',))

def test_an_output_matrix_is_not_lost():
    released, _, _ = load('mffg_transformer')
    with pytest.raises(ValueError, match=r'1 left over \(writer.output.weight\)'):
        from_reference(released, override(MONOLINGUAL, tie_output=True))
