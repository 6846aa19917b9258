"""Parity with arrays made by the released mXML and XML code on small random weights
(tests/fixtures/mtvr), and with the consolidation losses of the C³ paper computed in plain numpy
(tests/fixtures/c3). Groups g (search) and i (suppression, bands, labels, lengths) are in
test_search.py and test_moments_data.py."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcls_nb.batching import masked_mean
from mcls_nb.distill import consolidate
from mcls_nb.retrieve.c3 import (Consolidation, TeacherScores, consolidation_losses,
                                 localisation_consolidation, retrieval_consolidation,
                                 stream_edges, teacher_scores)
from mcls_nb.retrieve.encoders import XMLConfig, xml_from_reference
from mcls_nb.retrieve.losses import (LossConfig, compare, draw_negatives, hinge, localisation_loss,
                                     mxml_losses, neighbours)
from mcls_nb.retrieve.scoring import Edges, Streams, clip_streams, retrieval_streams
from mcls_nb.training import BertAdam

FIXTURES = Path(__file__).parent/'fixtures'
LANGUAGES = ('en', 'zh')
MXML = XMLConfig(languages=LANGUAGES, d_video=24, d_text=20, d=16, heads=2, dropout=0.,
                 max_clips=14, max_words=9)
CROSS = XMLConfig(**{**vars(MXML), 'languages': ('en',), 'cross': True, 'cross_padding': True})
LOSSES = {'f_loss_nohard': (LossConfig(), None), 'f_loss_hard2': (LossConfig(), 2),
          'f_loss_lse': (LossConfig(kind='lse'), None)} # settings, pool of negatives


def load(name, folder='mtvr'):
    "The arrays of a fixture; masks boolean."
    with np.load(FIXTURES/folder/f'{name}.npz', allow_pickle=False) as z:
        arrays = {k: torch.from_numpy(z[k]) for k in z.files if z[k].dtype.kind in 'fib'}
    return {k: v.bool() if k.split('.')[-1].endswith('mask') else v for k, v in arrays.items()}

def part(arrays, prefix):
    return {k[len(prefix):]: v for k, v in arrays.items() if k.startswith(prefix)}

def equal(ours, theirs, what='', tolerance=1e-5):
    "Equal to `tolerance`; a masked logit is exactly -1e10."
    assert ours.shape == theirs.shape, f'{what}: {tuple(ours.shape)} against {tuple(theirs.shape)}'
    masked = theirs < -1e9
    assert torch.equal(ours[masked], theirs[masked].to(ours.dtype)), f'{what}: masked'
    off = (ours - theirs)[~masked].abs().max().item() if (~masked).any() else 0.
    assert off < tolerance, f'{what}: off by {off:.2e}'

@pytest.fixture(scope='module')
def batch():
    "The batch of all groups: five queries, each about a video of its own."
    x = load('inputs')
    of = lambda name: {l: x[f'{l}.{name}'] for l in LANGUAGES}
    pairs = (('en.video_feat', 'zh.video_feat'), ('en.video_mask', 'zh.video_mask'),
             ('en.video_mask', 'en.sub_mask'))
    assert all(torch.equal(x[a], x[b]) for a, b in pairs)
    return SimpleNamespace(query=of('query_feat'), query_mask=of('query_mask'),
                           video=x['en.video_feat'], subtitles=of('sub_feat'),
                           mask=x['en.video_mask'], own=torch.arange(5),
                           span=x['en.st_ed_indices'])

@pytest.fixture
def model(): return xml_from_reference(load('weights_mxml'), MXML)

@pytest.fixture
def compared(model, batch): return {l: compare(model, batch, l) for l in LANGUAGES}

@pytest.fixture
def crossed(batch):
    "Released XML with cross attention, and the batch as it sees it."
    model = xml_from_reference(load('weights_xml_cross'), CROSS)
    return model, compare(model, batch, 'en')

def test_labels_are_the_same_in_both_languages():
    x = load('inputs')
    assert torch.equal(x['en.st_ed_indices'], x['zh.st_ed_indices'])


# (a) a query's way through projection, positions and encoder --------------------------------------

def test_query_encoder_piece_by_piece(model):
    z, xml = load('a_encoder'), model.branches['en']
    theirs = load('weights_mxml')
    for name, w in part(z, 'w.').items():
        assert torch.equal(w, theirs[f'xml_en.{name}']), name
    x = xml.query_in(z['feat'])
    equal(x, z['out_input_proj'], 'projection')
    x = xml.word_positions(x)
    equal(x, z['out_pos_embed'], 'positions')
    equal(xml.query(x, z['mask']), z['out_encoder'], 'encoder')
    attention = xml.query.attention
    attention.o = torch.nn.Identity()
    seen, _ = attention(x, attention.memory(x), z['mask'][:, None, None])
    equal(seen, z['out_self_att'], 'attention')


# (b) modular vectors, (c) clips -------------------------------------------------------------------

@pytest.mark.parametrize('language', LANGUAGES)
def test_modular_vectors(model, batch, compared, language):
    z, queries = part(load('b_modular'), f'{language}.'), compared[language].queries
    xml = model.branches[language]
    assert torch.equal(z['query_mask'], batch.query_mask[language])
    rows = xml.word_positions(xml.query_in(batch.query[language]))
    equal(xml.query(rows, z['query_mask']), z['encoded_query'])
    equal(queries.words, z['modular_att'])
    equal(queries.video, z['video_query'])
    equal(queries.sub, z['sub_query'])
    assert torch.equal(xml.modular.weigh.weight, z['w.modular_vector_mapping.weight'])

@pytest.mark.parametrize('language', LANGUAGES)
def test_clips_padding_included(compared, language):
    z, clips = part(load('c_context_mxml_nocross'), f'{language}.'), compared[language].clips
    equal(clips.video, z['video_feat1'], 'frames, shallow')
    equal(clips.video_deep, z['video_feat2'], 'frames, deep')
    equal(clips.sub, z['sub_feat1'], 'subtitles, shallow')
    equal(clips.sub_deep, z['sub_feat2'], 'subtitles, deep')
    equal(masked_mean(clips.sub, clips.mask), z['sub1_pooled'], 'mean of subtitles, shallow')
    equal(masked_mean(clips.sub_deep, clips.mask), z['sub2_pooled'], 'mean of subtitles, deep')

def test_clips_with_cross_attention(crossed):
    z, (model, compared) = load('c_context_xml_cross'), crossed
    clips, mask = compared.clips, compared.clips.mask
    equal(clips.video, z['video_feat1'], 'frames, shallow')
    equal(clips.sub, z['sub_feat1'], 'subtitles, shallow')
    for name, ours in dict(video_feat2=clips.video_deep, sub_feat2=clips.sub_deep).items():
        equal(ours[mask], z[name][mask], f'{name}, clips')
        # -10000 on every key rounds what is left of the released scores
        equal(ours, z[name], f'{name}, padding', 1e-3)
    cross, pairs = model.branches['en'].video.cross, mask[:, None, None] | ~mask[:, None, :, None]
    seen = cross.attention(clips.video, cross.attention.memory(clips.sub), pairs)[0]
    equal(seen[mask], z['video_cross_att_out'][mask], 'what is seen')
    equal(seen, z['video_cross_att_out'], 'what padding sees', 1e-3)
    normed, theirs = cross(clips.video, clips.sub, mask), z['video_cross_residual_ln']
    equal(normed[mask], theirs[mask], 'after the norm')
    equal(normed, theirs, 'after the norm, padding', 1e-3)


# (d) which video, (e) where in it -----------------------------------------------------------------

@pytest.mark.parametrize('language', LANGUAGES)
def test_video_scores(compared, language):
    z, videos = part(load('d_video_scores'), f'{language}.'), compared[language].videos
    equal(videos.video, z['video_scores'])
    equal(videos.sub, z['sub_scores'])
    equal(videos.merged(), z['merged_scores'])
    equal(videos.merged('sum'), 2 * z['merged_scores'])

def test_video_scores_with_cross_attention(crossed):
    equal(crossed[1].videos.merged(), load('d_video_scores')['xml_cross.merged_scores'])

@pytest.mark.parametrize('language', LANGUAGES)
def test_edges(model, batch, compared, language):
    z, c, edges = part(load('e_st_ed'), f'{language}.'), compared[language], model.edges(language)
    assert torch.equal(z['video_mask'], c.mask)
    equal(c.curve.video, z['video_similarity'], 'frames')
    equal(c.curve.sub, z['sub_similarity'], 'subtitles')
    equal(c.curve.merged(), z['similarity'], 'both')
    own = edges(c.curve.merged(), c.mask) # q l
    every = edges(clip_streams(c.queries, c.clips).merged(), c.mask) # q n l
    for side, x, y in (('st', own.start, every.start), ('ed', own.end, every.end)):
        equal(x, z[f'{side}_logits'], side)
        equal(x.softmax(-1), z[f'{side}_prob'], side)
        equal(y, z[f'{side}_logits_cross'], f'{side}, every video')
    for stream, x in zip(('video', 'sub'), stream_edges(model, c, language)):
        equal(x.start, z[f'c3_{stream}_st_logits'], f'{stream} alone')
        equal(x.end, z[f'c3_{stream}_ed_logits'], f'{stream} alone')
    teacher = teacher_scores(model, batch, LANGUAGES)[language]
    equal(teacher.videos, c.videos.merged())
    equal(teacher.edges.end, z['ed_logits'])

def test_edges_with_cross_attention(crossed):
    z, (model, c) = part(load('e_st_ed'), 'xml_cross.'), crossed
    for name, curve in (('logits', c.curve), ('logits_cross', clip_streams(c.queries, c.clips))):
        found = model.edges('en')(curve.merged(), c.mask)
        equal(found.start, z[f'st_{name}'], name, 1e-3) # the filters read two rows of padding
        equal(found.end, z[f'ed_{name}'], name, 1e-3)

@pytest.mark.parametrize('rows', [5, 6, 7, 12])
def test_edges_depend_on_the_rows_of_padding(model, batch, rows):
    z = part(load('e2_padding_quirk'), f'pad{rows}.')
    queries = model.encode_queries(batch.query['en'][4:], batch.query_mask['en'][4:], 'en')
    cut = lambda x: x[4:, :rows]
    streams = cut(batch.video), cut(batch.subtitles['en']), cut(batch.mask)
    clips = model.encode_clips(*streams, 'en')
    found = model.edges('en')(clip_streams(queries, clips, [0]).merged(), clips.mask)
    equal(clips.video_deep[0], z['video_feat2'])
    equal(found.start[0], z['st_logits'])
    equal(found.end[0], z['ed_logits'])
    whole = retrieval_streams(queries, clips).video
    equal(whole, z['scores'], 'of the frames, whatever the padding')


# (f) losses and gradients -------------------------------------------------------------------------

@pytest.mark.parametrize('name', LOSSES)
def test_loss_with_released_negatives(model, batch, compared, name):
    z, (cfg, pool) = load(name), LOSSES[name]
    terms = mxml_losses(model, batch, compared, cfg, pool, iter(z['neg_indices']))
    equal(terms['vr'].double(), z['en.loss_vr'] + z['zh.loss_vr'], 'vr')
    equal(terms['loc'].double(), z['en.loss_st_ed'] + z['zh.loss_st_ed'], 'loc')
    equal(terms['nc'].double(), z['en.lang_align'], 'nc')
    equal(sum(terms.values()), z['loss'], 'loss')
    overall = z['en.loss_overall'] + z['zh.loss_overall']
    equal((terms['vr'] + terms['loc']).double(), overall, 'without neighbours')

@pytest.mark.parametrize('name', LOSSES)
def test_terms_of_the_loss(model, batch, compared, name):
    z, (cfg, _) = load(name), LOSSES[name]
    values, negatives, row = iter(z['term_values']), iter(z['neg_indices']), torch.arange(5)
    def directions(scores):
        for table in (scores, scores.T):
            wrong = table[row, next(negatives)]
            loss = hinge(scores.diagonal(), wrong, .1, cfg.kind).mean()
            equal(loss.double(), next(values))
    for l, c in compared.items():
        equal(c.videos.merged(), z[f'{l}.query_context_scores'])
        found = model.edges(l)(c.curve.merged(), c.mask)
        for x, label in zip((found.start, found.end), batch.span.T):
            equal(F.cross_entropy(x, label).double(), next(values))
        equal(.01 * localisation_loss(found, batch.span).double(), z[f'{l}.loss_st_ed'])
        directions(c.videos.merged())
    pairs = zip(neighbours(compared['zh']), neighbours(compared['en']))
    for what, (zh, en) in zip(('video_query', 'sub_query', 'sub1', 'sub2'), pairs):
        cosine = F.normalize(zh, dim=-1) @ F.normalize(en, dim=-1).T
        equal(cosine, z[f'neighbor_scores.{what}'])
        directions(cosine)
    assert next(values, None) is None and next(negatives, None) is None

@pytest.mark.parametrize('name', LOSSES)
def test_negatives_are_drawn_from_the_same_order(model, batch, compared, monkeypatch, name):
    z, (cfg, pool) = load(name), LOSSES[name]
    chances = (z['sorted_positions'] - .5) / (pool or 4) # that lead to the released draws
    each = iter(chances)
    monkeypatch.setattr(torch, 'rand', lambda *shape, **kw: next(each).float())
    equal(sum(mxml_losses(model, batch, compared, cfg, pool).values()), z['loss'])
    assert next(each, None) is None
    monkeypatch.setattr(torch, 'rand', lambda *shape, **kw: chances[0].float())
    drawn = draw_negatives(z['en.query_context_scores'], torch.eye(5, dtype=torch.bool), pool)
    assert torch.equal(drawn, z['neg_indices'][0])

def test_gradients_of_all_weights(model, batch, compared):
    z, theirs = load('f_loss_nohard'), load('f_grads_nohard')
    sum(mxml_losses(model, batch, compared, negatives=iter(z['neg_indices'])).values()).backward()
    tied = lambda name: name.replace('xml_zh', 'xml_en') # such a gradient is given once
    every = {n: theirs.get(n, theirs.get(tied(n))) for n in load('weights_mxml')}
    grads = dict(xml_from_reference(every, MXML).named_parameters())
    ours = dict(model.named_parameters())
    assert len(ours) == len(theirs) == 114 and ours.keys() == grads.keys()
    largest = lambda x: x.abs().max().item()
    least = 1e-6 * max(map(largest, grads.values())) # a key's bias has no gradient but rounding
    for name, p in ours.items():
        equal(p.grad, grads[name], name, 1e-4 * largest(grads[name]) + least)


# C³ and IC² ---------------------------------------------------------------------------------------

CASES = ('c3_case1', 'c3_case2_extreme', 'c3_case3_tau1')
WAYS = {'c3': (LANGUAGES, True), 'ic2_both': (LANGUAGES, False), # who learns, from others or itself
        'ic2_en': (('en',), False), 'ic2_zh': (('zh',), False)}

class CaseScores:
    "Scores of a case, where a model would have made them: teacher's and student's, in both tasks."
    def __init__(self, z, merge, languages=LANGUAGES):
        self.z, self.mask = z, z['mask']
        self.teacher, self.compared = {}, {}
        for l in LANGUAGES:
            videos = Streams(self.given('teacher_video', l), self.given('teacher_sub', l))
            edges = Edges(*self.both_edges('teacher_', l))
            self.teacher[l] = TeacherScores(videos.merged(merge), edges)
        leaf = lambda x: x.clone().requires_grad_()
        for l in languages:
            videos = (self.given(f'student_{stream}', l) for stream in ('video', 'sub'))
            curves = (self.both_edges(f'student_{stream}_', l) for stream in ('video', 'sub'))
            self.compared[l] = SimpleNamespace(
                videos=Streams(*map(leaf, videos)), curve=Streams(*map(leaf, curves)),
                mask=self.mask)

    def given(self, name, language): return self.z[f'in.{name}.{language}']

    def both_edges(self, name, language): # 2 q l, both edges in one
        names = f'{name}st_logits', f'{name}ed_logits'
        return torch.stack([self.given(n, language) for n in names])

    def edges(self, language): return lambda both, mask: Edges(*both) # the logits are given
    def terms(self, **settings):
        batch = SimpleNamespace(own=torch.arange(5))
        return consolidation_losses(self, batch, self.compared, self.teacher,
                                    Consolidation(**settings), .01)

def settings(z, **more): return dict(tau_vr=z['tau_vr'].item(), tau_loc=z['tau_loc'].item(), **more)

def close(ours, theirs, what='', tolerance=1e-5):
    "Equal to a share of the largest value, of 1 at least."
    equal(ours, theirs, what, tolerance * max(1, ours.abs().max().item()))

def same_gradient(ours, theirs, what):
    equal(ours, theirs, f'gradient of {what}', 1e-4 * theirs.abs().max().item())

@pytest.mark.parametrize('reading, short', [('full', 'full'), ('diagonal', 'diag')])
@pytest.mark.parametrize('merge', ['mean', 'sum'])
@pytest.mark.parametrize('case', CASES)
def test_consolidation_of_retrieval(case, merge, reading, short):
    z, cut = load(case, 'c3'), f'out.vr_{merge}.'
    for way, (languages, across) in WAYS.items():
        scores = CaseScores(z, merge, languages)
        loss = scores.terms(**settings(z, across=across, reading=reading))['c3_vr']
        close(loss, z[f'{cut}{way}.{short}'], way)
    scores, tau = CaseScores(z, merge), z['tau_vr'].item()
    cfg = Consolidation(**settings(z, reading=reading))
    scores.terms(**settings(z, reading=reading))['c3_vr'].backward()
    for g, h in (LANGUAGES, LANGUAGES[::-1]):
        teacher = scores.teacher[h].videos
        for stream in ('video', 'sub'):
            student = getattr(scores.compared[g].videos, stream)
            grad = z[f'{cut}grad_{short}.{stream}_{g}']
            same_gradient(student.grad, grad, f'{stream}, {g}')
            term = consolidate(teacher, student, tau, reading=reading).mean()
            close(term, z[f'{cut}term_{short}.{stream}_student_{g}'])
            equal((student / z['tau_vr']).softmax(-1), z[f'{cut}student_prob.{stream}_{g}'])
        equal((scores.teacher[g].videos / z['tau_vr']).softmax(-1), z[f'{cut}teacher_prob.{g}'])
        both = retrieval_consolidation(teacher, scores.compared[g].videos, torch.arange(5), cfg)
        due = sum(z[f'{cut}term_{short}.{s}_student_{g}'] for s in ('video', 'sub'))
        close(both, due)

@pytest.mark.parametrize('case', CASES)
def test_consolidation_of_localisation(case):
    z = load(case, 'c3')
    for way, (languages, across) in WAYS.items():
        loss = CaseScores(z, 'mean', languages).terms(**settings(z, across=across))['c3_loc']
        close(loss, z[f'out.loc.{way}.mean'], way) # .01 x 100 = 1
        equal(5 * loss, z[f'out.loc.{way}.sum'], way, 5e-5 * max(1, loss.item()))
    scores, rows, both = CaseScores(z, 'mean'), 0., 0.
    tau, cfg = z['tau_loc'].item(), Consolidation(**settings(z))
    scores.terms(**settings(z))['c3_loc'].backward()
    for g, h in (LANGUAGES, LANGUAGES[::-1]):
        teacher, curve = scores.teacher[h].edges, scores.compared[g].curve
        for stream, student in dict(video=curve.video, sub=curve.sub).items():
            sides = zip(('st', 'ed'), (teacher.start, teacher.end), student, student.grad)
            for side, t, s, grad in sides:
                term = consolidate(t, s, tau, z['mask'])
                close(term, z[f'out.loc.term.{stream}_student_{g}_{side}'])
                theirs = z[f'out.loc.grad_mean.{stream}_{g}_{side}']
                same_gradient(grad, theirs, f'{stream}, {g}, {side}')
                rows = rows + term
        students = [Edges(*curve.video), Edges(*curve.sub)]
        both = both + localisation_consolidation(teacher, students, z['mask'], cfg)
    close(rows, z['out.loc.c3.per_sample'])
    close(both, z['out.loc.c3.mean'])

@pytest.mark.parametrize('reading, short', [('full', 'full'), ('diagonal', 'diag')])
@pytest.mark.parametrize('case', CASES)
def test_whole_loss(case, reading, short):
    z = load(case, 'c3')
    base, scores = part(z, 'in.base_loss.'), CaseScores(z, 'mean')
    terms = scores.terms(**settings(z, reading=reading))
    loss = base['vr'] + .01 * base['loc'] + base['nc'] + sum(terms.values())
    close(loss, z[f'out.total.vr_mean_{short}_loc_mean'])

def test_single_precision_is_enough():
    z = load('c3_case2_extreme', 'c3') # logits of 20, temperature .02
    z = {k: v.float() if v.is_floating_point() else v for k, v in z.items()}
    for name, theirs in (('c3_vr', z['out.vr_mean.c3.full']), ('c3_loc', z['out.loc.c3.mean'])):
        ours = CaseScores(z, 'mean').terms(**settings(z))[name]
        assert abs(ours / theirs - 1) < 1e-6


def test_released_optimiser():
    "Six updates of a decayed matrix and an undecayed bias, at the released schedule."
    z = load('h_bertadam')
    w, b = (torch.nn.Parameter(z[n].clone()) for n in ('w0', 'b0'))
    optimizer = BertAdam([dict(params=[w], weight_decay=.01), dict(params=[b])])
    for k in range(1, 7):
        w.grad, b.grad = z[f'gw{k}'], z[f'gb{k}']
        for group in optimizer.param_groups: group['lr'] = 1e-2 * z[f'lr_factor{k}'].item()
        optimizer.step()
        for name, p in (('w', w), ('b', b)):
            equal(p.detach(), z[f'{name}{k}'], f'{name} after update {k}', 1e-6)
