"""Recurrent summarisers: parity with arrays made by nmtpytorch and by MFFG's code on small random
weights (tests/fixtures/baselines), and what holds for all of them.

Time-first arrays of the released code are `s b d`; ours are `b s d`."""
import itertools, json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcls_nb.core import DataError
from mcls_nb.summarize.decoding import beam_search, look
from mcls_nb.summarize.models import summary_loss
from mcls_nb.summarize.rnn import ContextAttention, PackedGRU, RNNConfig, convert_recurrent
from mcls_nb.text import EOS, PAD
from mcls_nb.checkpoints import load_weights, save_checkpoint

FIXTURES = Path(__file__).parent/'fixtures'/'baselines'
RELEASED = {
    'nmt_s2s_mlp': dict(reads='text'),
    'nmt_s2s_dot': dict(reads='text', attention='dot'),
    'nmt_videornn': dict(reads='video'),
    'nmt_ha': dict(),
    'mffg_rnn': dict(cross_fusion=True, mask_fused=False)}
SMALL = RNNConfig(source_words=15, target_words=13, embed=6, hidden=5, state=7, rows=6, d_video=8,
                  max_text=12, max_video=9, dropout=0.)
SYSTEMS = {
    'S2S': dict(reads='text'),
    'S2S dot': dict(reads='text', attention='dot'),
    'VideoRNN': dict(reads='video'),
    'HA': dict(),
    'HA dot, video GRU': dict(video_rnn=True, attention='dot'),
    'MFFG-RNN': dict(cross_fusion=True),
    'MFFG-RNN, video GRU': dict(cross_fusion=True, video_rnn=True)}
released = pytest.mark.parametrize('name', RELEASED)
systems = pytest.mark.parametrize('name', SYSTEMS)


def load(name):
    "Parameters, inputs and outputs of a fixture."
    with np.load(FIXTURES/f'{name}.npz', allow_pickle=False) as z:
        arrays = {k: torch.from_numpy(np.asarray(z[k])) for k in z.files if k != 'cfg'}
        cfg = json.loads(str(z['cfg']))
    def part(prefix):
        return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return cfg, part('sd.'), part('in.'), part('out.')

def equal(ours, theirs, what='', tolerance=1e-5):
    assert ours.shape == theirs.shape, f'{what}: {tuple(ours.shape)} against {tuple(theirs.shape)}'
    off = (ours - theirs).abs().max()
    assert off <= tolerance * max(1., theirs.abs().max().item()), f'{what}: off by {off:.2e}'

def batch_of(inputs):
    "A fixture's batch; where there is no text, or no video, a stand-in that must not matter."
    tgt = inputs['tgt'].T # t b -> b t
    src = inputs['src'].T if 'src' in inputs else torch.zeros(len(tgt), 1, dtype=torch.long)
    video = torch.zeros(len(tgt), 1, 8)
    if 'video' in inputs: video = inputs['video'].transpose(0, 1)
    masks = dict(src_mask=src != 0, video_mask=(video != 0).any(-1), tgt_mask=tgt[:, 1:] != 0)
    return SimpleNamespace(src=src, video=video, tgt_in=tgt[:, :-1], tgt_out=tgt[:, 1:], **masks)

def as_released(name):
    c, state, inputs, out = load(name)
    sizes = dict(embed=c['emb_dim'], hidden=c['enc_dim'], state=c['dec_dim'])
    sizes |= dict(layers=c.get('n_encoders', 2), rows=c.get('proj', 256))
    cfg = RNNConfig(source_words=c['vocab'], target_words=c['vocab'],
                    d_video=c.get('n_channels', 8), **sizes, **RELEASED[name])
    model = cfg.build().eval()
    model.load_state_dict(convert_recurrent(state, cfg)) # strict: nothing is missing or left over
    return model, batch_of(inputs), out


# --- parity

@released
def test_network_as_released(name):
    model, batch, out = as_released(name)
    seen = model(batch, need_weights=True)
    equal(seen.logits.log_softmax(-1).transpose(0, 1), out['log_probs'], 'log-probabilities')
    at_text, at_video = seen.cross[0][:, 0], seen.video and seen.video[0]
    for key, weights in dict(alpha_txt=at_text, txt_alpha_t=at_text, img_alpha_t=at_video).items():
        if key in out: equal(weights.permute(1, 2, 0), out[key], key) # b t s -> t s b
    if 'h_att' in out: # weights of text and video, b t k -> t k b 1
        equal(seen.shares[0].permute(1, 2, 0)[..., None], out['h_att'], 'h_att')
    loss, n = summary_loss(model, batch)
    equal(loss, out['loss_sum'], 'loss')
    assert n == batch.tgt_mask.sum()

@released
def test_parts_as_released(name):
    model, batch, out = as_released(name)
    if name == 'nmt_videornn':
        mask = batch.video_mask
        states = model.reader.video(model.reader.project(batch.video).tanh(), mask)
    else:
        mask = batch.src_mask
        states = model.reader.text(model.reader.embed(batch.src), mask)
    equal(states.transpose(0, 1), out['enc_states'], 'states')
    equal(mask.T.float(), out['enc_mask'])
    memory = model.encode(batch.src, batch.src_mask, batch.video, batch.video_mask)
    equal(memory.start, out['h0'], 'first state')
    equal(model.writer(batch.tgt_in, memory).states[:, -1], out['h_last'], 'last state')
    if name == 'mffg_rnn':
        contexts, _ = model.reader(batch.src, batch.src_mask, batch.video, batch.video_mask)
        (text, _), (video, _) = contexts
        equal(text.transpose(0, 1), out['fused_text'])
        equal(video.transpose(0, 1), out['fused_video'])

def test_released_padding_is_only_a_switch():
    "Fused text is not zero in the padding, and the released mean counts it."
    model, batch, out = as_released('mffg_rnn')
    alone = {k: v[2:] for k, v in vars(batch).items()} # three words, four rows
    alone |= {k: alone[k][:, :3] for k in ('src', 'src_mask')}
    alone |= {k: alone[k][:, :4] for k in ('video', 'video_mask')}
    one = model(SimpleNamespace(**alone)).logits
    assert (one - model(batch).logits[2:]).abs().max() > 1e-3
    model.cfg = model.reader.cfg = replace(model.cfg, mask_fused=True)
    equal(model(batch).logits[2:], one)


# --- all systems

def toy(b=3, extra=0, junk=0):
    "b samples of falling length, the last of a single word and row; `extra` padding of `junk`."
    g = torch.Generator().manual_seed(0)
    def mask(size): return torch.arange(size + extra) < torch.linspace(size, 1, b).long()[:, None]
    def ids(size):
        drawn = torch.randint(3, 13, (b, size), generator=g)
        return F.pad(drawn, (0, extra)).masked_fill(~mask(size), junk)
    src, tgt = ids(7), ids(6)
    video = F.pad(torch.randn(b, 5, 8, generator=g), (0, 0, 0, extra))
    video = video.masked_fill(~mask(5)[..., None], junk)
    tgt_in = torch.cat([torch.full((b, 1), EOS), tgt[:, :-1]], 1)
    masks = dict(src_mask=mask(7), video_mask=mask(5), tgt_mask=mask(6))
    return SimpleNamespace(src=src, video=video, tgt_in=tgt_in, tgt_out=tgt, **masks)

def make(name, **changes):
    torch.manual_seed(1)
    return replace(SMALL, **SYSTEMS[name], **changes).build().eval()

def take(batch, i): return SimpleNamespace(**{k: v[i:i + 1] for k, v in vars(batch).items()})

def encode(model, batch):
    return model.encode(batch.src, batch.src_mask, batch.video, batch.video_mask)

@systems
def test_padding_changes_nothing(name):
    model, batch = make(name), toy()
    logits = model(batch, real_only=True).logits
    equal(model(toy(extra=2, junk=5), real_only=True).logits, logits, 'more padding, of junk')
    def alone(i): # without any padding
        one = take(batch, i)
        masks = dict(src=one.src_mask, video=one.video_mask, tgt=one.tgt_mask)
        lengths = {kind: int(mask.sum()) for kind, mask in masks.items()}
        return SimpleNamespace(**{k: x[:, :lengths[k.split('_')[0]]] for k, x in vars(one).items()})
    equal(torch.cat([model(alone(i)).logits[0] for i in range(3)]), logits, 'samples alone')

@systems
def test_word_by_word_is_all_at_once(name):
    model, batch = make(name), toy()
    whole, memory = model(batch, need_weights=True), encode(model, batch)
    for sizes in ([1] * 6, [2, 1, 3]):
        caches = model.caches()
        words = batch.tgt_in.split(sizes, 1)
        parts = [model.decode(y, memory, caches, need_weights=True) for y in words]
        equal(torch.cat([p.logits for p in parts], 1), whole.logits)
        equal(torch.cat([p.cross[0] for p in parts], 2), whole.cross[0])
        pieces = zip(*(p.shares + p.video for p in parts))
        for a, b in zip(whole.shares + whole.video, pieces): equal(torch.cat(b, 1), a)
        assert caches[0].size == 6
    copies = batch.tgt_in.repeat_interleave(4, 0) # beams share a memory
    equal(model.decode(copies, memory).logits, whole.logits.repeat_interleave(4, 0))
    few = torch.tensor([2, 0])
    some = model.decode(batch.tgt_in[few], memory.select(few)).logits
    equal(some, whole.logits[few], 'some of the samples')

@systems
def test_greedy_search_is_the_likeliest_word_each_time(name):
    model, batch = make(name), toy()
    for i, (hyp,) in enumerate(beam_search(model, batch, beam=1, max_len=8)):
        words, memory = [EOS], encode(model, take(batch, i))
        while len(words) == 1 or words[-1] != EOS:
            logits = model.decode(torch.tensor([words]), memory).logits[0, -1]
            logits[[PAD] + [EOS] * (len(words) == 1)] = -torch.inf
            words.append(int(logits.argmax()) if len(words) <= 8 else EOS)
        assert list(hyp.tokens) == words[1:]

@systems
def test_a_wide_beam_is_exhaustive_search(name):
    model, batch = make(name, target_words=6), take(toy(), 0)
    every = [w for n in (1, 2, 3) for w in itertools.product((2, 3, 4, 5), repeat=n)]
    tgt = torch.tensor([[*w, EOS, 0, 0][:4] for w in every])
    before = torch.cat([torch.full((len(every), 1), EOS), tgt[:, :-1]], 1)
    logp = model.decode(before, encode(model, batch)).logits.log_softmax(-1)
    real = tgt != 0
    sums = (logp.gather(2, tgt[..., None])[..., 0] * real).sum(1) # by teacher forcing, no search
    for alpha in (0., 1.):
        best = sorted(zip((sums / real.sum(1) ** alpha).tolist(), every), reverse=True)
        found, = beam_search(model, batch, beam=100, max_len=3, length_penalty=alpha)
        assert [h.tokens[:-1] for h in found] == [w for _, w in best]
        assert np.allclose([h.score for h in found], [s for s, _ in best], atol=1e-4)

@systems
def test_a_batch_is_searched_like_its_samples(name):
    model, batch = make(name), toy()
    together = beam_search(model, batch, beam=4, max_len=7)
    for i, hyps in enumerate(together):
        alone, = beam_search(model, take(batch, i), beam=4, max_len=7)
        assert [h.tokens for h in hyps] == [h.tokens for h in alone]
        seen = look(model, take(batch, i), hyps[0].tokens)
        assert seen.cross.shape[2] == len(hyps[0].tokens)
        assert np.allclose(seen.cross.sum(-1), 1, atol=1e-5)
        assert (seen.gate is None) == (not model.cfg.cross_fusion)
        assert (seen.video is None) == (seen.shares is None) == (model.cfg.reads != 'both')

@systems
def test_every_parameter_learns(name):
    model, batch = make(name, dropout=.1).train(), toy()
    optimizer, losses = torch.optim.Adam(model.parameters(), 5e-3), []
    for _ in range(15):
        loss, n = summary_loss(model, batch)
        losses.append(loss.item() / n)
        optimizer.zero_grad()
        loss.backward()
        grads = {k: p.grad for k, p in model.named_parameters()}
        silent = [k for k, g in grads.items() if g is None or not g.any()]
        assert not silent, silent
        assert all(g.isfinite().all() for g in grads.values())
        optimizer.step()
    assert losses[-1] < .8 * losses[0]

@systems
def test_a_checkpoint_is_the_same_network(name, tmp_path):
    model, batch = make(name, source_words=13, share_words=True), toy()
    save_checkpoint(tmp_path/'m.safetensors', model)
    torch.manual_seed(5)
    other = model.cfg.build().eval()
    assert (other(batch).logits - model(batch).logits).abs().max() > 1e-3
    loaded = load_weights(other, tmp_path/'m.safetensors')
    assert torch.equal(loaded(batch).logits, model(batch).logits)
    if model.cfg.reads != 'video': assert other.reader.embed is other.writer.embed

@systems
def test_initial_weights(name):
    model = replace(SMALL, **SYSTEMS[name], hidden=128, state=128, d_video=100).build()
    for key, p in model.named_parameters():
        if p.dim() == 1: # GRUs keep torch's biases
            in_gru = '.gru.' in key or key.startswith(('writer.before', 'writer.after'))
            assert in_gru or not p.any(), f'{key} is not zero'
        elif 'cross.' not in key and p.numel() > 5000: # Kaiming's normal
            assert abs(p.std().item() / (2 / p.shape[1]) ** .5 - 1) < .1, key
    for table in (m for m in model.modules() if isinstance(m, torch.nn.Embedding)):
        assert not table.weight[0].any() and table.weight[1:].any(1).all()

@systems
def test_other_precisions(name):
    model, batch = make(name), toy()
    logits = model(batch).logits
    with torch.autocast('cpu', torch.bfloat16): rough = summary_loss(model, batch)[0]
    rough.backward()
    targets = batch.tgt_out[batch.tgt_mask]
    exact = F.cross_entropy(logits[batch.tgt_mask], targets, reduction='sum').item()
    assert abs(rough.item() / exact - 1) < .03
    batch.video = batch.video.double()
    equal(model.double()(batch).logits.float(), logits)

def test_dropout_is_where_it_was_released():
    "On source words, on what was read, on the bottleneck; never on summary words."
    model, batch = make('S2S', dropout=.999).train(), toy()
    calls = []
    def note(name): return lambda m, args, out: calls.append((name, tuple(out.shape)))
    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Dropout): m.register_forward_hook(note(name))
    model(batch)
    reader, writer = [('reader.drop', (3, 7, d)) for d in (6, 10)], [('writer.drop', (3, 6, 6))]
    assert calls == reader + writer


# --- parts

@pytest.mark.parametrize('layers', [1, 3])
def test_packed_gru_reads_each_sample_alone(layers):
    torch.manual_seed(0)
    gru, x = PackedGRU(4, 3, layers), torch.randn(4, 6, 4, requires_grad=True)
    mask = torch.arange(6) < torch.tensor([[6], [3], [1], [0]])
    states = gru(x, mask)
    for i, n in enumerate([6, 3, 1]): equal(states[i, :n], gru.gru(x[i:i + 1, :n])[0][0])
    states.sum().backward()
    assert not states[~mask].any() and not x.grad[~mask].any()

@pytest.mark.parametrize('kind', ['mlp', 'dot'])
def test_an_empty_context_gives_nothing_and_no_nan(kind):
    torch.manual_seed(0)
    ask, h = ContextAttention(5, 4, kind), torch.randn(2, 5, requires_grad=True)
    S = torch.randn(2, 3, 4, requires_grad=True)
    z, alpha = ask(h, ask.memory(S, torch.tensor([[True, True, False], [False] * 3])))
    (z.sum() + alpha.square().sum()).backward()
    assert not z[1].any() and not alpha[1].any()
    assert h.grad.isfinite().all() and S.grad.isfinite().all()
    assert not S.grad[1].any()

@pytest.mark.parametrize('name', ['VideoRNN', 'HA', 'MFFG-RNN'])
def test_a_video_without_rows(name):
    model, batch = make(name), toy()
    batch.video_mask = batch.video_mask & (torch.arange(3) != 1)[:, None]
    loss, _ = summary_loss(model, batch)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


# --- what cannot be used

@pytest.mark.parametrize('changes, says', [
    (dict(reads='sound'), "no value of reads 'sound'"),
    (dict(attention='bilinear'), "no value of attention 'bilinear'"),
    (dict(reads='text', cross_fusion=True), 'nothing to fuse where only text is read'),
    (dict(share_words=True), 'needs one vocabulary, not 15 and 13 words')])
def test_bad_configurations(changes, says):
    with pytest.raises(DataError, match=says): replace(SMALL, **changes).build()

def test_bad_sources():
    batch = toy()
    wrong = {'there is no video for a system that reads both': dict(video=None),
             'there is no text': dict(src=None),
             'a row has 7 numbers instead of 8': dict(video=batch.video[..., :7]),
             '13 words are more than 12': dict(src=torch.ones(3, 13, dtype=torch.long)),
             '10 rows are more than 9': dict(video=torch.zeros(3, 10, 8))}
    def ask(name, **changes): make(name)(SimpleNamespace(**vars(batch) | changes))
    for says, changes in wrong.items():
        with pytest.raises(DataError, match=says): ask('HA', **changes)
    ask('S2S', video=None, video_mask=None) # what is not read may be absent
    ask('VideoRNN', src=None, src_mask=None)

def test_weights_of_another_system_do_not_fit(tmp_path):
    save_checkpoint(tmp_path/'m.safetensors', make('HA'))
    with pytest.raises(DataError, match='missing: .*cross_fusion is False there and True here'):
        load_weights(make('MFFG-RNN'), tmp_path/'m.safetensors')
